"""Parser: asks tree-sitter for syntax errors, the cursor's surroundings, imports, definitions and blocks.

A grammar is loaded on first use. The trees of the last few texts are cached, so that all questions about one
cursor share one parse.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from importlib import import_module
from itertools import accumulate
from typing import Literal, NamedTuple

from tree_sitter import Language, Node, Parser, Point, Query, QueryCursor, Tree

from fimserver.front.syntax import languages
from fimserver.front.syntax.brackets import place_in_line
from fimserver.front.syntax.crop import window
from fimserver.front.syntax.languages import language_of
from fimserver.front.syntax.outline import body_of, outline, text_of

__all__ = [
    "Import",
    "Node",
    "StatementRun",
    "blocks",
    "breaks_syntax",
    "code_around",
    "code_only",
    "definition",
    "imports",
    "language_of",
    "place",
    "read_ahead",
    "tree_with",
]

FILE_CHARS = 400_000  # of a file that are parsed for imports or a definition

# Languages without statements.
_DATA = frozenset({"json", "yaml", "html", "css"})
_DEFINES = re.compile(
    r"function|method|func_literal|class|constructor|closure|struct|union|interface|enum|trait|impl|record"
)
_BLOCKS = frozenset(
    {
        "module", "program", "source_file", "translation_unit", "compilation_unit", "chunk", "block",
        "statement_block",
        "statement_list", "compound_statement", "do_group", "then", "body_statement", "block_body",
        "constructor_body",
        "class_body", "interface_body", "enum_body", "declaration_list", "field_declaration_list",
    },
)  # fmt: skip


class Import(NamedTuple):
    """An imported module, and the names imported from it; none if the module itself is imported."""

    module: str
    names: tuple[str, ...]


class StatementRun(NamedTuple):
    """Consecutive statements or members of a block. Spans are character offsets, the end excluded."""

    span: tuple[int, int]  # the block, with its brackets
    statements: tuple[tuple[int, int], ...]  # with comments
    owner: tuple[int, int] | None  # the function or class whose body it is


def breaks_syntax(language: str | None, prefix: str, middle: str, suffix: str, replace: int = 0) -> bool:
    """Whether ``middle``, in place of the first ``replace`` characters of ``suffix``, adds syntax errors.

    Damage is the number of MISSING nodes, of ERROR nodes, and of nodes directly inside an ERROR. The damage
    with the middle is compared with that of the text without it. While a statement is being written that text
    is broken anyway, which would hide the errors of a wrong middle; so if a plain name in place of the middle
    does less damage, the middle is compared with the name. Nodes of the middle inside an ERROR are not
    counted, as that may have been there before. If an ERROR already spans the lines above and below the
    cursor, nothing can be judged and the answer is ``False``.
    """
    if language is None or not middle:
        return False
    prefix, suffix = window(prefix, suffix)
    root = _tree(language, prefix + suffix).root_node
    if _lost(root, _encode(prefix)):
        return False
    before = _damage(root, 0, 0)
    after = _middle_damage(language, prefix, middle, suffix, replace)
    if not before or after > before:
        return after > before
    return after > _middle_damage(language, prefix, languages.FILLERS.get(language, "x"), suffix, replace)


def read_ahead(language: str, prefix: str, suffix: str) -> None:
    """Parse the text for a later call of ``breaks_syntax``."""
    _tree(language, "".join(window(prefix, suffix)))


def place(language: str | None, prefix: str, suffix: str) -> Literal["code", "string", "comment"]:
    """Whether the cursor is in code, a string or a comment. Plain text counts as code."""
    if language is None:
        return "code"
    prefix, suffix = window(prefix, suffix)
    at = len(_encode(prefix))
    line = prefix.rsplit("\n", 1)[-1]
    root = tree_with(language, prefix, "x", suffix, 0).root_node
    node = root.descendant_for_byte_range(at, at + 1)
    while node is not None and not node.is_error:
        if node.type in languages.COMMENT_KINDS:
            return "comment"
        if node.type in languages.STRING_KINDS:
            return "string"
        if node.type in languages.INTERPOLATION_KINDS:
            return "code"
        node = node.parent
    # The parser does not recognise an unterminated string.
    around = root.descendant_for_byte_range(at - len(_encode(line)), at + 1)
    broken = around is not None and around.has_error
    return place_in_line(line, languages.COMMENT_MARKS.get(language)) if broken else "code"


def code_only(language: str | None, text: str) -> str:
    """Replace strings and comments by blanks, except line ends. The length stays the same."""
    if language is None:
        return re.sub(r'"(?:\\.|[^"\\\n])*"', lambda match: " " * len(match[0]), text)
    return _code_of(language, text, _tree(language, text))


def code_around(language: str | None, prefix: str, middle: str, suffix: str) -> tuple[str, str]:
    """Return the code near a cursor before the end of the middle and after it, as ``code_only`` gives it."""
    prefix, suffix = window(prefix, suffix)
    text = prefix + middle + suffix
    at = len(prefix) + len(middle)
    if language is None:
        code = code_only(None, text)
    else:
        code = _code_of(language, text, tree_with(language, prefix, middle, suffix))
    return code[:at], code[at:]


def _code_of(language: str, text: str, tree: Tree) -> str:
    raw = bytearray(_encode(text))
    for start, end in _literals(language, tree.root_node):
        # One blank per character: continuation bytes of UTF-8 are removed below.
        raw[start:end] = bytes(b if b == 10 or b & 0xC0 == 0x80 else 32 for b in raw[start:end])
    return re.sub(rb"(?<=[ \n])[\x80-\xbf]+", b"", bytes(raw)).decode("utf-8", "replace")


def imports(language: str, text: str) -> tuple[Import, ...]:
    """Modules that a file imports, in order. ``names`` are as in the exporting module; ``*`` means all."""
    if language not in languages.IMPORT_QUERIES:
        return ()
    found: dict[int, tuple[str, dict[str, None]]] = {}
    root = _tree(language, text[:FILE_CHARS]).root_node
    for _, captures in QueryCursor(_query(language, languages.IMPORT_QUERIES[language])).matches(root):
        module = captures["module"][0]
        _, names = found.setdefault(module.start_byte, (text_of(module).strip("<>"), {}))
        names.update(dict.fromkeys(text_of(node) for node in captures.get("name", [])))
    return tuple(Import(module, tuple(names)) for _, (module, names) in sorted(found.items()))


def definition(language: str, text: str, name: str) -> str | None:
    """Outline of a top-level definition: signature, first line of the docstring, members of a class."""
    if language not in languages.COMMENT_MARKS:
        return None
    return outline(language, _tree(language, text[:FILE_CHARS]).root_node, name)


def blocks(language: str | None, text: str) -> tuple[StatementRun, ...]:
    """Blocks of a whole file, outer ones first. Data (JSON, YAML, HTML, CSS) and plain text have none."""
    if language is None or language in _DATA:
        return ()
    at = _characters(text)
    found: list[StatementRun] = []
    owners: dict[int, tuple[int, int]] = {}
    stack = [_tree(language, text).root_node]
    while stack:
        node = stack.pop()
        children = node.named_children
        if _DEFINES.search(node.type) and (body := body_of(node)) is not None:
            owners.setdefault(body.id, at(node))
        if node.id in owners or node.type in _BLOCKS:
            found.append(StatementRun(at(node), tuple(map(at, children)), owners.get(node.id)))
        stack.extend(reversed(children))
    return tuple(found)


@cache
def _grammar(language: str) -> Language:
    module, function = languages.GRAMMARS[language]
    return Language(getattr(import_module(module), function)())


@cache
def _query(language: str, source: str) -> Query:
    return Query(_grammar(language), source)


@lru_cache(maxsize=8)
def _tree(language: str, text: str) -> Tree:
    return Parser(_grammar(language)).parse(_encode(text))


def tree_with(language: str, prefix: str, middle: str, suffix: str, replace: int = 0) -> Tree:
    """Parse the text with the middle, incrementally from the tree without it."""
    old = _encode(prefix)
    new = _encode(middle)
    gone = _encode(suffix[:replace])
    start = len(old)
    old_end = len(old) + len(gone)
    new_end = len(old) + len(new)
    tree = _tree(language, prefix + suffix).copy()
    tree.edit(start, old_end, new_end, _point(old), _point(old + gone), _point(old + new))
    return Parser(_grammar(language)).parse(old + new + _encode(suffix[replace:]), tree)


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "replace")  # a lone surrogate becomes one byte


def _characters(text: str) -> Callable[[Node], tuple[int, int]]:
    """Return a function from a node of ``text`` to its span in characters."""
    if text.isascii():
        return lambda node: node.byte_range
    starts = [0, *accumulate(len(_encode(char)) for char in text)]
    return lambda node: (bisect_left(starts, node.start_byte), bisect_left(starts, node.end_byte))


def _point(text: bytes) -> Point:
    return Point(text.count(b"\n"), len(text) - text.rfind(b"\n") - 1)


def _middle_damage(language: str, prefix: str, middle: str, suffix: str, replace: int) -> int:
    start = len(_encode(prefix))
    root = tree_with(language, prefix, middle, suffix, replace).root_node
    return _damage(root, start, start + len(_encode(middle)))


def _damage(root: Node, start: int, end: int) -> int:
    """Damage under ``root``, without nodes inside an ERROR that are between bytes ``start`` and ``end``."""
    total = 0
    stack = [root]  # a stack: text may be nested deeper than Python recurses
    while stack:
        node = stack.pop()
        total += node.is_missing
        if node.is_error:
            total += 1 + sum(
                not (start <= child.start_byte and child.end_byte <= end) for child in node.children
            )
        stack.extend(child for child in node.children if child.has_error)
    return total


def _lost(root: Node, before: bytes) -> bool:
    """Whether an ERROR begins above the last line of ``before`` and ends below it."""
    row = before.count(b"\n")
    node = root.descendant_for_byte_range(len(before), len(before))
    while node is not None and not (node.is_error and node.start_point.row < row < node.end_point.row):
        node = node.parent
    return node is not None


@cache
def _literal_kinds(language: str) -> str:
    """Return a query for the strings and comments that a grammar has."""
    grammar = _grammar(language)
    kinds = sorted(languages.STRING_KINDS | languages.COMMENT_KINDS)
    return "[{}] @literal".format(
        " ".join(f"({kind})" for kind in kinds if grammar.id_for_node_kind(kind, True))
    )


def _literals(language: str, root: Node) -> Iterator[tuple[int, int]]:
    """Yield the byte spans of strings and comments in order, outermost ones only."""
    found = QueryCursor(_query(language, _literal_kinds(language))).captures(root).get("literal", ())
    end = 0
    for span in sorted((node.start_byte, -node.end_byte) for node in found):
        if -span[1] > end:
            end = -span[1]
            yield span[0], end
