"""Knows how ``FILE:LINE:COL`` and a row of a spans file become a request. Knows nothing of models."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fimserver.errors import InputError
from fimserver.settings import Settings
from fimserver.types import Request

MAX_BYTES = 64 << 20
_PLACE = re.compile(r"^(?P<file>.+?):(?P<line>\d+)(?::(?P<column>\d+))?$", re.DOTALL)


@dataclass(frozen=True)
class CursorPosition:
    """A cursor in a file. Lines and columns count from 1; a column counts characters."""

    path: Path
    line: int
    prefix: str
    suffix: str


def read_place(spec: str) -> CursorPosition:
    """Open the file and cut it at the cursor. Raises ``InputError``."""
    match = _PLACE.match(spec)
    if not match:
        raise InputError(f"{spec!r} is not FILE:LINE:COL; lines and columns count from 1")
    path, line = Path(match["file"]), int(match["line"])
    text = read_text(path)
    offset = _offset(text, line, int(match["column"]) if match["column"] else None, path)
    return CursorPosition(path, line, text[:offset], text[offset:])


def read_text(path: Path) -> str:
    """A text file as it is, line ends and all. Raises ``InputError``."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path} is larger than {MAX_BYTES >> 20} MiB: complete a smaller file")
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text: convert it, or choose another file") from None
    if "\0" in text:
        raise InputError(f"{path} is a binary file: choose a text file")
    return text


def _offset(text: str, line: int, column: int | None, path: Path) -> int:
    """Character offset of a place. Only LF, CRLF and CR end a line."""
    starts = [0, *(m.end() for m in re.finditer(r"\r\n|\r|\n", text))]
    if not 1 <= line <= len(starts):
        raise InputError(f"{path} has lines 1 to {len(starts)}; line {line} is outside")
    start = starts[line - 1]
    end = starts[line] if line < len(starts) else len(text)
    width = len(text[start:end].rstrip("\r\n"))
    column = width + 1 if column is None else column
    if not 1 <= column <= width + 1:
        raise InputError(f"{path}: line {line} has columns 1 to {width + 1}; column {column} is outside")
    return start + column - 1


def make_request(prefix: str, suffix: str, settings: Settings, path: str = "") -> Request:
    """A request with the options of the user."""
    return Request(
        prefix,
        suffix,
        settings.max_tokens,
        settings.temperature,
        settings.top_p,
        settings.seed,
        settings.stop,
        path,
    )


def line_end(request: Request) -> str:
    """The line end that most lines around the cursor have."""
    text = request.prefix[-100_000:] + request.suffix[:100_000]
    return "\r\n" if 2 * text.count("\r\n") > text.count("\n") else "\n"


@dataclass(frozen=True)
class SpanRow:
    """A row of a spans file, or what is wrong with it."""

    span_id: Any
    prefix: str = ""
    suffix: str = ""
    problem: str = ""


def read_spans(path: Path, limit: int | None) -> Iterator[SpanRow]:
    """Rows ``{"id", "prefix", "suffix"}`` of a JSONL file; a bad row says so and does not end the rest."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    with file:
        rows = (row for row in enumerate(file, 1) if row[1].strip())
        for count, (number, line) in enumerate(rows):
            if limit is not None and count >= limit:
                return
            yield _span(line, f"{path}:{number}")


def _span(line: bytes, where: str) -> SpanRow:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except ValueError:
        return SpanRow(None, problem=f"{where}: not JSON in UTF-8")
    if not isinstance(row, dict):
        return SpanRow(None, problem=f"{where}: not an object")
    for name in ("prefix", "suffix"):
        if not isinstance(row.get(name), str):
            return SpanRow(row.get("id"), problem=f"{where}: {name!r} is missing or not a string")
    if "id" not in row:
        return SpanRow(None, problem=f"{where}: 'id' is missing")
    return SpanRow(row["id"], row["prefix"], row["suffix"])
