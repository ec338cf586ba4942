"""Syntax check of the statements around the cursor with Python's own compiler.

tree-sitter accepts indentation errors, ``return`` outside of a function and more; Python does not. A whole
file takes too long to compile between two keys, so it is cut down to the statements that matter: headers of
the functions and classes around the cursor, and the statements before and after it. Errors that depend on
the whole of a long function are missed, such as a value returned from an async generator.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Sequence
from functools import lru_cache
from itertools import product, takewhile
from typing import NamedTuple

from fimserver.front.syntax.crop import WINDOW_CHARS, window
from fimserver.front.syntax.parser import Node, tree_with

_WHOLE_ROWS = (
    60  # of a statement that is compiled whole; of a longer function or class only what is near the cursor
)
_MOST_ROWS = 400  # of any other statement; what is longer is not judged
_HEADERS = ("class _:", "async def _():")
# A top-level statement that is unlikely to be a line of a docstring: a safe place to begin a cut-off text.
_STATEMENT = re.compile(
    r"^(?:(?:async def|def|class)[ ]\w+[(:]|@\w|(?:if|for|while|with|try)\b[^\n]*:$"
    r"|from[ ]\S+[ ]import\b|import[ ]\w+$"
    r"|[\w.]+(?:[ ]*:[^\n=]*)?[ ]*[-+|]?=)",
    re.MULTILINE,
)
_COMPILERS_ERRORS = (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError)


class Crop(NamedTuple):
    """Text before and after the cursor that compiles on its own with a suitable middle between them."""

    before: str
    after: str
    flags: int = 0  # of the compiler

    def without(self, count: int) -> Crop:
        """Return the crop without the first ``count`` characters after the cursor."""
        return self._replace(after=self.after[count:])

    def error_line(self, middle: str) -> int | None:
        """Line of ``middle``, from 0, with the first error; ``None`` if everything compiles."""
        line = _error_line(self.before + middle + self.after, self.flags)
        return None if line is None else max(0, line - self.before.count("\n"))


@lru_cache(maxsize=8)
def crop_of(prefix: str, suffix: str, fillers: Sequence[str], *, is_cell: bool = False) -> Crop | None:
    """Return the crop for the first of ``fillers`` that compiles at the cursor; ``None`` if none does.

    In a notebook cell ``await`` is allowed outside of functions.
    """
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT if is_cell else 0
    if len(prefix) >= WINDOW_CHARS:
        near = prefix[-WINDOW_CHARS:]
        statement = _STATEMENT.search(near, near.find("\n") + 1)
        prefix = near[statement.start() :] if statement else prefix
    prefix, suffix = window(prefix, suffix)
    is_inside = prefix.lstrip("\n")[:1] in {" ", "\t"}
    texts = [_with_header(prefix, header) for header in _HEADERS] if is_inside else [prefix]
    for text, filler in product(texts, fillers):
        crop = _cut(text, filler, suffix, flags)
        if crop is not None and crop.error_line(filler) is None:
            return crop
    return None


@lru_cache(maxsize=64)
def _error_line(text: str, flags: int) -> int | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # an escape sequence that Python does not know is none of our business
            compile(text, "<crop>", "exec", flags, dont_inherit=True)
    except SyntaxError as error:
        return (error.lineno or 1) - 1
    except _COMPILERS_ERRORS:
        return 0
    return None


def _cut(prefix: str, filler: str, suffix: str, flags: int = 0) -> Crop | None:
    """Cut the text down to the statements around the cursor; ``None`` if one is too long to compile."""
    data = (prefix + filler + suffix).encode("utf-8", "replace")
    start = len(prefix.encode("utf-8", "replace"))
    end = start + len(filler.encode("utf-8", "replace"))
    kept = _Cutter(data, start, end).around(tree_with("python", prefix, filler, suffix).root_node)
    if kept is None:
        return None
    before, after = (part.decode("utf-8", "replace") for part in kept)
    return Crop(before.lstrip("\ufeff"), after, flags)


def _with_header(prefix: str, header: str) -> str:
    """Add a header to a text that begins inside a function or class whose own header was cut off.

    The text begins with its first line of the least indentation.
    """
    lines = prefix.split("\n")
    widths = {i: len(line) - len(line.lstrip()) for i, line in enumerate(lines[:-1]) if line.strip()}
    outermost = min(widths.values(), default=0)
    starts = (i for i, width in widths.items() if width == outermost and re.match(r"[\w@]", lines[i][width:]))
    start = next(starts, None)
    return prefix if start is None or not outermost else "\n".join([header, *lines[start:]])


class _Cutter(NamedTuple):
    """Cuts the bytes of a text around the span between ``start`` and ``end``: the filler at the cursor."""

    data: bytes
    start: int
    end: int

    def around(self, block: Node) -> tuple[bytes, bytes] | None:
        """Return what to keep of a block: the statement at the cursor, the one before and the one after."""
        children = [child for child in block.children if child.type != "comment"]
        before = [child for child in children if child.end_byte < self.start]
        after = [child for child in children if child.start_byte > self.end]
        touched = children[len(before) : len(children) - len(after)]
        first, last = (touched[0].start_byte, touched[-1].end_byte) if touched else (self.start, self.end)
        inner = self._within(touched, first, last)
        above = self._tail(before[-1]) if before else b""
        below = b"\n".join(map(self._head, self._next(after)))
        if inner is None or above is None:
            return None
        gap = before[-1].end_byte if before else self._line_start(min(first, self.start))
        begin = (
            b"pass\n" if len(before) > 1 and block.type == "module" and b"__future__" not in above else b""
        )
        return (
            begin + above + self.data[gap:first] + inner[0],
            inner[1] + self.data[last : after[0].start_byte if after else max(last, block.end_byte)] + below,
        )

    def _within(self, nodes: Sequence[Node], first: int, last: int) -> tuple[bytes, bytes] | None:
        """Return the text of the statements that the cursor touches, before and after it."""
        if len(nodes) == 1 and _rows(nodes[0]) > _WHOLE_ROWS and (body := _body(nodes[0])) is not None:
            inside = self._line_start(body.start_byte)
            if self.start >= inside > nodes[0].start_byte and (kept := self.around(body)) is not None:
                return self.data[first:inside] + kept[0], kept[1]
            if self.end <= body.start_byte:  # in the header
                return self.data[first : self.start], self.data[self.end : body.start_byte] + b"pass"
        if sum(map(_rows, nodes)) > _MOST_ROWS:
            return None
        return self.data[first : self.start], self.data[self.end : max(last, self.end)]

    def _tail(self, node: Node) -> bytes | None:
        """Return a statement before the cursor; of a long function or class its header and last statement."""
        begin = self._line_start(node.start_byte)
        body = _body(node)
        if _rows(node) <= (_WHOLE_ROWS if body else _MOST_ROWS):
            return self.data[begin : node.end_byte]
        if body is None:
            return None
        inside = self._line_start(body.start_byte)
        statements = [child for child in body.children if child.type != "comment"]
        if inside <= node.start_byte or not statements:
            return None
        last = self._tail(statements[-1])
        return None if last is None else self.data[begin:inside] + last

    def _next(self, nodes: Sequence[Node]) -> Sequence[Node]:
        """Return the next statement, and any docstring and ``__future__`` imports before it."""
        texts = (self.data[node.start_byte : node.end_byte] for node in nodes)
        first = sum(
            1
            for _ in takewhile(lambda text: text[:1] in b"\"'" or text.startswith(b"from __future__"), texts)
        )
        return nodes[: first + 1]

    def _head(self, node: Node) -> bytes:
        """Return a statement after the cursor; of a long function or class only the header."""
        if _rows(node) <= _WHOLE_ROWS:
            return self.data[node.start_byte : node.end_byte]
        body = _body(node)
        return b"pass" if body is None else self.data[node.start_byte : body.start_byte] + b"pass"

    def _line_start(self, at: int) -> int:
        return self.data.rfind(b"\n", 0, at) + 1


def _rows(node: Node) -> int:
    return node.end_point.row - node.start_point.row + 1


def _body(node: Node) -> Node | None:
    """Body of a function or class, decorated or not."""
    inner = node.child_by_field_name("definition") or node
    return (
        inner.child_by_field_name("body")
        if inner.type in {"function_definition", "class_definition"}
        else None
    )
