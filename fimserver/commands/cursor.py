"""Cursor on the command line: ``FILE:LINE:COL`` as the request of an editor, and the text an editor shows."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from fimserver.commands.complete import TimedMiddle
from fimserver.errors import InputError
from fimserver.front.context.privacy import Privacy
from fimserver.front.context.prompt_context import ContextSource
from fimserver.front.documents.mirror import Document, Position
from fimserver.front.request import CompletionRequest, Limits, completion_body
from fimserver.front.shown import filtered, fitted
from fimserver.front.syntax.languages import language_of
from fimserver.reasons import Reason
from fimserver.settings import Settings
from fimserver.wire import Answer, CompletionBody, Middle

MAX_DEADLINE_MS = 120_000.0  # of a request without a deadline
MAX_BYTES = 64 << 20
_PLACE = re.compile(r"^(?P<file>.+?):(?P<line>\d+)(?::(?P<column>\d+))?$", re.DOTALL)


@dataclass(frozen=True)
class CursorPosition:
    """A cursor in a file. Lines and columns count from 1; a column counts characters."""

    path: Path
    line: int
    column: int
    prefix: str
    suffix: str


def read_place(spec: str) -> CursorPosition:
    """Open the file and cut it at the cursor. Raises ``InputError``."""
    match = _PLACE.match(spec)
    if not match:
        raise InputError(f"{spec!r} is not FILE:LINE:COL; lines and columns count from 1")
    path = Path(match["file"])
    line = int(match["line"])
    text = read_text(path)
    start, column = _start(text, line, int(match["column"]) if match["column"] else None, path)
    offset = start + column - 1
    return CursorPosition(path, line, column, text[:offset], text[offset:])


def read_text(path: Path) -> str:
    """Return the text of a file with its own line ends, without a byte order mark. Raises ``InputError``."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path} is larger than {MAX_BYTES >> 20} MiB: complete a smaller file")
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text: convert it, or choose another file") from None
    if "\0" in text:
        raise InputError(f"{path} is a binary file: choose a text file")
    return text


def _start(text: str, line: int, column: int | None, path: Path) -> tuple[int, int]:
    """Return the offset of a line and the column in it, by default the end of the line.

    LF, CRLF and CR end a line.
    """
    starts = [0, *(m.end() for m in re.finditer(r"\r\n|\r|\n", text))]
    if not 1 <= line <= len(starts):
        raise InputError(f"{path} has lines 1 to {len(starts)}; line {line} is outside")
    start = starts[line - 1]
    end = starts[line] if line < len(starts) else len(text)
    width = len(text[start:end].rstrip("\r\n"))
    column = width + 1 if column is None else column
    if not 1 <= column <= width + 1:
        raise InputError(f"{path}: line {line} has columns 1 to {width + 1}; column {column} is outside")
    return start, column


def editor_request(place: CursorPosition, settings: Settings) -> CompletionRequest:
    """Return the request of an editor with this file alone open, in the current folder as workspace."""
    path = place.path.resolve()
    privacy = Privacy([Path.cwd()])
    root = privacy.root_of(path)
    document = Document(path.as_uri(), "", 0, place.prefix + place.suffix)
    limits = Limits(
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        stop=settings.stop,
        candidates=1,
        deadline_ms=settings.deadline_ms or MAX_DEADLINE_MS,
    )
    return CompletionRequest(
        document=document,
        snapshot=document.snapshot(Position(place.line - 1, place.column - 1)),
        surface="inline",
        invoked=True,
        received_s=time.monotonic(),
        limits=limits,
        language=language_of("", path.name),
        path=privacy.shown(path),
        repo=root.name if root else "",
        route=settings.model,
    )


def editor_body(request: CompletionRequest, settings: Settings) -> CompletionBody:
    """Return what the editor sends to a host.

    Snippets of other open files are left out: none is open here.
    """
    body = completion_body(request, ContextSource((), Privacy(())).text(request.snapshot))
    sampling = {"top_p": settings.top_p, "seed": settings.seed, "stream": True}
    return body.with_hints(deadline_ms=settings.deadline_ms).model_copy(update=sampling)


class Shown(NamedTuple):
    """What the editor shows of a middle: ``text`` instead of ``replaced`` characters right of the cursor.

    Without text, ``hidden`` is the reason why nothing is shown.
    """

    text: str
    replaced: int
    hidden: Reason | None


def shown_of(request: CompletionRequest, middle: TimedMiddle) -> Shown:
    """Pass a middle through the filters of the editor."""
    answer = Answer(middles=(Middle(text=middle.text, usage=middle.usage),))
    middles, dropped = filtered(request, answer)
    suggestions = fitted(request, middles)
    if not suggestions:
        return Shown("", 0, Reason.NO_OP if middles else dropped.reason)
    edit = suggestions[0]
    return Shown(edit.text, edit.end.column - edit.start.column, None)


def line_end(text: str) -> str:
    """Return the line end that most lines of a text have."""
    return "\r\n" if 2 * text.count("\r\n") > text.count("\n") else "\n"
