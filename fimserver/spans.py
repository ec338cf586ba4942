"""Rows of a file of spans: prefix, suffix and, if known, the gold middle.

The field names of HumanEval-Infilling (arXiv 2207.14255) are accepted too: ``task_id``, ``prompt``,
``canonical_solution``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fimserver.errors import InputError

ID = ("id", "task_id")
PREFIX = ("prefix", "prompt")
MIDDLE = ("middle", "canonical_solution")


@dataclass(frozen=True)
class SpanRow:
    """A row, or what is wrong with it. ``id_name``: the name of its id field."""

    span_id: Any
    prefix: str = ""
    suffix: str = ""
    middle: str | None = None  # the gold middle
    path: str = ""
    language: str = ""  # LSP language id
    id_name: str = "id"
    problem: str = ""


def read_spans(path: Path, limit: int | None) -> Iterator[SpanRow]:
    """Yield the rows of a JSONL file; a bad row has a ``problem``. Raises ``InputError``."""
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
    id_name = next((name for name in ID if name in row), "")
    prefix = _text(row, PREFIX)
    suffix = _text(row, ("suffix",))
    for name, value in (("prefix", prefix), ("suffix", suffix)):
        if value is None:
            return SpanRow(
                row.get(id_name),
                id_name=id_name or "id",
                problem=f"{where}: {name!r} is missing or not a string",
            )
    if not id_name:
        return SpanRow(None, problem=f"{where}: 'id' is missing")
    return SpanRow(
        row[id_name],
        prefix or "",
        suffix or "",
        _text(row, MIDDLE),
        _text(row, ("path",)) or "",
        _text(row, ("language",)) or "",
        id_name,
    )


def _text(row: dict[str, Any], names: Sequence[str]) -> str | None:
    return next((row[name] for name in names if isinstance(row.get(name), str)), None)
