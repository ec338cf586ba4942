"""Keystroke traces: their format, and checks that a trace is consistent.

``front.feedback.trace_recorder`` writes them and shows an example: the first line is a header, each other
line an event. Positions are line and code points, from 0, in the text after the previous edits.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from fimserver import __version__
from fimserver.errors import InputError
from fimserver.front.documents.mirror import Document, Edit
from fimserver.front.feedback.trace_recorder import FORMAT

Count = Annotated[int, Field(ge=0, lt=2**31)]
Ms = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Patch(NamedTuple):
    """A replacement of the text between two positions."""

    line: Count
    char: Count
    end_line: Count
    end_char: Count
    text: str

    def edit(self) -> Edit:
        """Convert to an edit of the document mirror, with UTF-32 positions."""
        return Edit(self[:2], self[2:4], self.text)


class _TraceEvent(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    t_ms: Ms = Field(alias="t")  # since the start of the recording
    doc: Count


class Open(_TraceEvent):
    """A document is opened with its text. ``name``: file name without folder, empty if untitled."""

    e: Literal["open"] = "open"
    language: str  # LSP language id
    name: str = Field("", pattern=r"^[^/\\]*$")
    text: str


class Change(_TraceEvent):
    """One message of edits, usually a key."""

    e: Literal["change"] = "change"
    edits: tuple[Patch, ...] = Field(min_length=1)


class SuggestionRequested(_TraceEvent):
    """The editor requested a suggestion; ``invoked``: explicitly by the user."""

    e: Literal["ask"] = "ask"
    line: Count
    char: Count
    invoked: bool = False


class Close(_TraceEvent):
    e: Literal["close"] = "close"


Event = Open | Change | SuggestionRequested | Close
_EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="e")])


class _Header(BaseModel):
    fimserver_trace: Literal[1]
    version: str = ""
    started: str = ""
    made: str = ""


@dataclass(frozen=True)
class Trace:
    """A consistent trace. ``made``: how it was generated, if nobody typed it."""

    name: str
    events: tuple[Event, ...]
    started: str = ""  # ISO 8601
    version: str = ""  # of the fimserver that recorded it
    made: str = ""


class Texts:
    """Documents of a trace while its events are applied one by one."""

    def __init__(self) -> None:
        self.documents: dict[int, Document] = {}

    def play(self, event: Event) -> None:
        """Apply an event. Raises ``ValueError`` for an impossible one."""
        if isinstance(event, Open):
            if event.doc in self.documents:
                raise ValueError(f"document {event.doc} is open already")
            self.documents[event.doc] = Document(str(event.doc), event.language, 0, event.text)
            return
        if event.doc not in self.documents:
            raise ValueError(f"document {event.doc} is not open")
        if isinstance(event, Change):
            for patch in event.edits:
                self.patch(event.doc, patch)
        elif isinstance(event, SuggestionRequested):
            self._inside(event.doc, event.line, event.char)
        else:
            del self.documents[event.doc]

    def patch(self, doc: int, patch: Patch) -> None:
        """Apply one edit to an open document. Raises ``ValueError``."""
        self._inside(doc, patch.line, patch.char)
        self._inside(doc, patch.end_line, patch.end_char)
        if patch[2:4] < patch[:2]:
            raise ValueError(f"impossible positions: {patch[2:4]} is before {patch[:2]}")
        self.documents[doc].change(0, [patch.edit()], "utf-32")

    def offset(self, doc: int, line: int, char: int) -> int:
        """Number of characters of an open document before a position."""
        return sum(map(len, self.documents[doc].lines[:line])) + char

    def _inside(self, doc: int, line: int, char: int) -> None:
        lines = self.documents[doc].lines
        if line >= len(lines):
            raise ValueError(
                f"impossible positions: line {line} of document {doc}, which has {len(lines)} lines"
            )
        width = len(lines[line].rstrip("\r\n"))
        if char > width:
            raise ValueError(
                f"impossible positions: character {char} of line {line} in document {doc}, which has {width}"
            )


def read_trace(path: Path) -> Trace:
    """Read a trace from disk. Raises ``InputError`` with file and line.

    A last line that is truncated (the recording was interrupted) is ignored.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    header = _header(path, lines[0])
    events = tuple(_events(path, lines))
    if not any(isinstance(event, Change) for event in events):
        raise InputError(f"{path} has no key in it: record a trace while you type")
    return Trace(path.stem, events, header.started, header.version, header.made)


def _header(path: Path, line: bytes) -> _Header:
    try:
        return _Header.model_validate_json(line)
    except ValidationError:
        raise InputError(
            f"{path}:1: not the header of a trace of format {FORMAT}: give a file that was recorded"
        ) from None


def _events(path: Path, lines: Sequence[bytes]) -> Iterator[Event]:
    texts = Texts()
    before_ms = 0.0
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        try:
            event = _EVENT.validate_json(line)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            if number == len(lines) and first["type"] == "json_invalid":
                return
            where = ".".join(map(str, first["loc"]))
            raise InputError(f"{path}:{number}: {where}{': ' if where else ''}{first['msg']}") from None
        if event.t_ms < before_ms:
            raise InputError(
                f"{path}:{number}: time runs backwards: {event.t_ms:g} ms after {before_ms:g} ms"
            )
        before_ms = event.t_ms
        try:
            texts.play(event)
        except ValueError as error:
            raise InputError(f"{path}:{number}: {error}") from None
        yield event


def write_trace(path: Path, trace: Trace) -> None:
    """Write a trace that only this user can read, as it contains their text."""
    header = {"fimserver_trace": FORMAT, "version": trace.version or __version__, "started": trace.started}
    if trace.made:
        header["made"] = trace.made
    lines = [json.dumps(header), *(event.model_dump_json(by_alias=True) for event in trace.events)]
    path.touch(mode=0o600)
    path.write_text("\n".join(lines) + "\n", "utf-8")
