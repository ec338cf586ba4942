"""Knows what tree-sitter says about a text: what is broken, where the cursor is, what is imported and defined.

Knows nothing of editors and models. It alone touches tree-sitter. A grammar is loaded when first asked for; the trees of
the last few texts are kept, so that all questions about one cursor share one parse.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache, lru_cache
from importlib import import_module
from typing import Literal, NamedTuple

from tree_sitter import Language, Node, Parser, Point, Query, QueryCursor, Tree

from fimserver.front import languages
from fimserver.front.brackets import place_in_line
from fimserver.front.languages import language_of
from fimserver.front.window import window

__all__ = ["Import", "breaks_syntax", "code_only", "definition", "imports", "language_of", "place", "read_ahead"]

FILE_CHARS = 400_000  # of a file that is asked for imports or a definition
OUTLINE_LINES = 30
_LINE_CHARS = 160
_DEPTH = 8  # of what holds a definition


class Import(NamedTuple):
    """A module that a file takes something from; no ``names`` where it takes the module itself."""

    module: str
    names: tuple[str, ...]


def breaks_syntax(language: str | None, prefix: str, middle: str, suffix: str, replace: int = 0) -> bool:
    """Whether ``middle``, in the place of the first ``replace`` characters of ``suffix``, does damage to the text.

    Damage is the number of MISSING nodes, of ERROR nodes, and of the nodes that the parser could not fit in anywhere and
    left inside an ERROR. It is compared with the damage of the text without the middle. While a statement is being
    written that text is broken anyway, so that a wrong middle would hide behind damage that any right one repairs; where
    a mere name in place of the middle does less damage, that is what the middle is measured by. Nodes of the middle
    itself count only where the text around was sound: within an ERROR that was there before they are no news. Where the
    parser was lost already on the lines above and below the cursor, nothing can be said, and nothing breaks.
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
    """Parse what ``breaks_syntax`` is going to ask about."""
    _tree(language, "".join(window(prefix, suffix)))


def place(language: str | None, prefix: str, suffix: str) -> Literal["code", "string", "comment"]:
    """What the cursor is in. Plain text is code."""
    if language is None:
        return "code"
    prefix, suffix = window(prefix, suffix)
    at, line = len(_encode(prefix)), prefix.rsplit("\n", 1)[-1]
    root = _edited(language, prefix, "x", suffix, 0).root_node
    node = root.descendant_for_byte_range(at, at + 1)
    while node is not None and not node.is_error:
        if node.type in languages.COMMENT_KINDS:
            return "comment"
        if node.type in languages.STRING_KINDS:
            return "string"
        if node.type in languages.INTERPOLATION_KINDS:
            return "code"
        node = node.parent
    # A string that nothing ends is no string to a parser.
    around = root.descendant_for_byte_range(at - len(_encode(line)), at + 1)
    broken = around is not None and around.has_error
    return place_in_line(line, languages.COMMENT_MARKS.get(language)) if broken else "code"


def code_only(language: str | None, text: str) -> str:
    """``text`` with blanks in the place of strings and comments, line ends excepted. Same length."""
    if language is None:
        return re.sub(r'"(?:\\.|[^"\\\n])*"', lambda match: " " * len(match[0]), text)
    raw = bytearray(_encode(text))
    for start, end in _literals(_tree(language, text).root_node):
        # One blank a character: the bytes that go on with one vanish below.
        raw[start:end] = bytes(b if b == 10 or b & 0xC0 == 0x80 else 32 for b in raw[start:end])
    return re.sub(rb"(?<=[ \n])[\x80-\xbf]+", b"", bytes(raw)).decode("utf-8", "replace")


def imports(language: str, text: str) -> tuple[Import, ...]:
    """The modules a file imports, in order. ``names`` are those of the exporting module; ``*`` is all of them."""
    if language not in languages.IMPORT_QUERIES:
        return ()
    found: dict[int, tuple[str, dict[str, None]]] = {}
    root = _tree(language, text[:FILE_CHARS]).root_node
    for _, captures in QueryCursor(_query(language, languages.IMPORT_QUERIES[language])).matches(root):
        module = captures["module"][0]
        _, names = found.setdefault(module.start_byte, (_text(module).strip("<>"), {}))
        names.update(dict.fromkeys(_text(node) for node in captures.get("name", [])))
    return tuple(Import(module, tuple(names)) for _, (module, names) in sorted(found.items()))


def definition(language: str, text: str, name: str) -> str | None:
    """The outline of a top-level definition: signature and first line of the docstring; of a class also its members."""
    if language not in languages.COMMENT_MARKS:
        return None
    root = _tree(language, text[:FILE_CHARS]).root_node
    found = [(outer, inner) for outer, inner in _definitions(root) if _name_of(inner) == name]
    if not found:
        return None
    # A declaration may stand before the definition: the one with a body says more.
    outer, inner = min(found, key=lambda pair: _body(pair[1]) is None)
    lines = [*_outline(language, outer, inner), *_attached(root, name)]
    return "\n".join(line[:_LINE_CHARS] for line in lines[:OUTLINE_LINES])


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


def _edited(language: str, prefix: str, middle: str, suffix: str, replace: int) -> Tree:
    """The tree with the middle in it, made from the one without it."""
    old, new, gone = _encode(prefix), _encode(middle), _encode(suffix[:replace])
    start, old_end, new_end = len(old), len(old) + len(gone), len(old) + len(new)
    tree = _tree(language, prefix + suffix).copy()
    tree.edit(start, old_end, new_end, _point(old), _point(old + gone), _point(old + new))
    return Parser(_grammar(language)).parse(old + new + _encode(suffix[replace:]), tree)


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "replace")  # a lone surrogate is one byte then


def _point(text: bytes) -> Point:
    return Point(text.count(b"\n"), len(text) - text.rfind(b"\n") - 1)


def _text(node: Node) -> str:
    return (node.text or b"").decode("utf-8", "replace")


def _middle_damage(language: str, prefix: str, middle: str, suffix: str, replace: int) -> int:
    start = len(_encode(prefix))
    root = _edited(language, prefix, middle, suffix, replace).root_node
    return _damage(root, start, start + len(_encode(middle)))


def _damage(root: Node, start: int, end: int) -> int:
    """Damage under ``root``; nodes between the bytes ``start`` and ``end`` that an ERROR holds are not counted."""
    total, stack = 0, [root]  # a stack: text may be nested deeper than Python recurses
    while stack:
        node = stack.pop()
        total += node.is_missing
        if node.is_error:
            total += 1 + sum(not (start <= child.start_byte and child.end_byte <= end) for child in node.children)
        stack.extend(child for child in node.children if child.has_error)
    return total


def _lost(root: Node, before: bytes) -> bool:
    """Whether an ERROR begins above the line that ``before`` ends in, and ends below it."""
    row = before.count(b"\n")
    node = root.descendant_for_byte_range(len(before), len(before))
    while node is not None and not (node.is_error and node.start_point.row < row < node.end_point.row):
        node = node.parent
    return node is not None


def _literals(node: Node) -> Iterator[tuple[int, int]]:
    """The spans of strings and comments, outermost ones only."""
    stack = [node]
    while stack:
        top = stack.pop()
        if top.type in languages.STRING_KINDS or top.type in languages.COMMENT_KINDS:
            yield top.byte_range
        else:
            stack.extend(top.children)


def _definitions(node: Node, outer: Node | None = None, depth: int = 0) -> Iterator[tuple[Node, Node]]:
    """Pairs of a definition with all that belongs to it (decorators, ``export``) and the node that bears the name."""
    for child in node.named_children if depth < _DEPTH else ():
        if child.type in languages.HOLDERS:
            yield from _definitions(child, None, depth + 1)
        elif child.type in languages.WRAPPERS:
            yield child, child
            yield from _definitions(child, outer or child, depth + 1)
        else:
            yield outer or child, child


def _name_of(node: Node) -> str:
    name = node.child_by_field_name("name")
    while name is None and (inner := node.child_by_field_name("declarator")) is not None:
        node = inner
        name = inner if inner.child_count == 0 else inner.child_by_field_name("name")
    return _text(name) if name is not None else ""


def _body(node: Node, depth: int = 0) -> Node | None:
    """The body of a function or class, also where a name is bound to one (``const f = () => {…}``, ``type T struct``)."""
    if (body := node.child_by_field_name("body")) is not None or depth == _DEPTH:
        return body
    parts = (node.child_by_field_name(field) for field in ("value", "type"))
    found = (_body(part, depth + 1) for part in parts if part is not None)
    fields = (child for child in node.named_children if child.type == "field_declaration_list")
    return next((part for part in found if part is not None), None) or next(fields, None)


def _outline(language: str, outer: Node, inner: Node) -> list[str]:
    body = _body(inner)
    if body is None:
        return _text(outer).splitlines()
    doc = _docstring(body) if language == "python" else _comment_above(outer)
    above = [f"// {doc}"] if doc and language != "python" else []
    first = [f'"""{doc}"""'] if doc and language == "python" else []
    members = [line for child in body.named_children for line in _member(child)] if _holds_members(body) else []
    return [*above, *_before(outer, body), *("    " + line for line in first + members)]


def _before(outer: Node, body: Node) -> list[str]:
    """The lines from the start of ``outer`` to its body."""
    raw = (outer.text or b"")[: body.start_byte - outer.start_byte].decode("utf-8", "replace")
    return [line.rstrip() for line in raw.splitlines() if line.strip()]


def _holds_members(body: Node) -> bool:
    return body.type not in {"block", "statement_block", "compound_statement"} or (
        body.parent is not None and body.parent.type == "class_definition"
    )


def _member(node: Node) -> list[str]:
    """One line for a field or the signature of a method."""
    if node.type in languages.COMMENT_KINDS or (
        node.type == "expression_statement" and node.named_children[0].type == "string"
    ):
        return []
    inner = node.child_by_field_name("definition") or node
    body = _body(inner)
    lines = _before(node, body) if body is not None else _text(node).splitlines()[:1]
    return [" ".join(line.strip() for line in lines)]


def _attached(root: Node, name: str) -> list[str]:
    """Signatures of the methods that stand outside of the type: Rust's ``impl`` and Go's receivers."""
    lines: list[str] = []
    for node in root.named_children:
        receiver = node.child_by_field_name("receiver")
        kind = node.child_by_field_name("type")
        body = node.child_by_field_name("body")
        if node.type == "impl_item" and kind is not None and _text(kind).partition("<")[0] == name and body is not None:
            lines += [*_before(node, body), *("    " + line for child in body.named_children for line in _member(child))]
        elif receiver is not None and re.search(rf"\b{re.escape(name)}\b", _text(receiver)):
            lines += _member(node)
    return lines


def _docstring(body: Node) -> str:
    """The first line of a Python docstring."""
    first = body.named_children[0] if body.named_children else None
    if first is None or first.type != "expression_statement" or first.named_children[0].type != "string":
        return ""
    return _text(first).lstrip("rRuU").strip("\"' \n").split("\n", 1)[0].strip()


def _comment_above(node: Node) -> str:
    """The first line of the comment that stands directly above."""
    doc, below = "", node
    while (above := below.prev_sibling) is not None and above.type in languages.COMMENT_KINDS:
        if below.start_point.row - above.end_point.row > 1:
            break
        doc, below = _text(above), above
    return next((line for raw in doc.splitlines() if (line := raw.strip("/*#!- \t"))), "")
