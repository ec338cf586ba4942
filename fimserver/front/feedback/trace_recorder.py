r"""Trace recorder: writes the keystrokes of a window to a file, so that they can be replayed.

A trace contains the user's text, so it is written only if the user switched it on, to a file that only the
user can read, and without excluded files. JSON lines: a header, then events with ``t`` in milliseconds since
the start. Positions are lines and code points; of paths only the file's name is written.

    {"fimserver_trace": 1, "version": "0.1.0", "started": "2026-01-31T12:00:00+00:00"}
    {"t": 0.0, "e": "open", "doc": 1, "language": "python", "name": "work.py", "text": "def f():\n"}
    {"t": 130.0, "e": "change", "doc": 1, "edits": [[1, 0, 1, 0, "    r"]]}
    {"t": 170.0, "e": "ask", "doc": 1, "line": 1, "char": 5, "invoked": false}
    {"t": 900.0, "e": "close", "doc": 1}
"""

from __future__ import annotations

import copy
import functools
import itertools
import json
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

from fimserver import __version__
from fimserver.front.documents.mirror import Document, Edit, Encoding, Position
from fimserver.front.documents.uris import path_of
from fimserver.types import valid_unicode

log = logging.getLogger("fimserver.front")
FORMAT = 1
FLUSH_S = 1.0  # longest wait of an event before it is written
MAX_WAITING = 20_000  # events not yet written; with more the disk is too slow
MAX_FILES = 1000
Patch = tuple[int, int, int, int, str]  # start line and character, end line and character, text


Arguments = ParamSpec("Arguments")


def _harmless(
    method: Callable[Concatenate[TraceRecorder, Arguments], None],
) -> Callable[Concatenate[TraceRecorder, Arguments], None]:
    """Wrap a method so that an exception ends the recording and nothing else."""

    @functools.wraps(method)
    def guarded(self: TraceRecorder, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        try:
            method(self, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 - the recorded edit must still be applied
            self.fail(type(error).__name__)

    return guarded


class TraceRecorder:
    """Writes one window's trace on its own thread: a slow disk delays no key, a full one ends the recording.

    ``may`` returns whether a document may be recorded now and is called at every event. ``clock``: seconds.
    """

    def __init__(
        self, path: Path, may: Callable[[Document], bool], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._may = may
        self._clock = clock
        self._start = clock()
        self._numbers: dict[str, int] = {}  # of documents open in the trace, by URI
        self._fresh = itertools.count(1)
        self._last: dict[str, Any] = {}
        self._queue: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._off = False
        self._thread = threading.Thread(target=self._run, args=(path,), name="recorder", daemon=True)
        self._queue.put(
            {"fimserver_trace": FORMAT, "version": __version__, "started": datetime.now(UTC).isoformat()}
        )
        self._thread.start()

    @_harmless
    def open(self, document: Document) -> None:
        """Record that a document was opened, with its text."""
        self._number(document)

    @_harmless
    def change(self, document: Document, edits: Sequence[Edit], encoding: Encoding) -> None:
        """Record edits before they are applied to a document."""
        number = self._number(document)
        if number is None:
            return
        found = patches(document, edits, encoding)
        if any(patch[2:4] < patch[:2] for patch in found):
            self.close(document.uri)  # its text is unknown from now on
        else:
            self._put("change", number, edits=found)

    @_harmless
    def ask(self, document: Document, place: Position, *, invoked: bool) -> None:
        """Record a request for suggestions, once if the menu asks again at the same place."""
        number = self._number(document)
        if number is not None:
            self._put("ask", number, line=place.line, char=place.column, invoked=invoked)

    @_harmless
    def close(self, uri: str) -> None:
        number = self._numbers.pop(uri, None)
        if number is not None:
            self._put("close", number)

    def end(self, timeout_s: float = FLUSH_S) -> None:
        """Write the remaining events, for at most ``timeout_s``."""
        self._queue.put(None)
        self._closing.set()
        self._thread.join(timeout_s)

    def _number(self, document: Document) -> int | None:
        """Return a document's number in the trace, or ``None`` if it must not be recorded.

        Opens or closes the document in the trace when that changes.
        """
        if document.dirty or document.too_large or not self._may(document):
            self.close(document.uri)
            return None
        if document.uri not in self._numbers:
            number = self._numbers[document.uri] = next(self._fresh)
            path = path_of(document.uri)
            name = valid_unicode(path.name) if path else ""
            self._put(
                "open", number, language=document.language, name=name, text=valid_unicode(document.text)
            )
        return self._numbers[document.uri]

    def _put(self, event: str, number: int, **facts: Any) -> None:
        what = {"e": event, "doc": number, **facts}
        if self._off or (event == "ask" and what == self._last):
            return
        self._last = what
        if self._queue.qsize() > MAX_WAITING:
            self.fail("the disk does not keep up")
            return
        self._queue.put({"t": round((self._clock() - self._start) * 1000, 1), **what})

    def fail(self, why: str) -> None:
        """End the recording, with one line in the log."""
        if not self._off:
            self._off = True
            log.error("recording has stopped: %s", why)

    def _run(self, path: Path) -> None:
        try:
            with os.fdopen(_create(path), "wb") as file:
                while not self._off and self._batch(file.write):
                    file.flush()
        except OSError as error:
            self.fail(error.strerror or type(error).__name__)
        except Exception as error:  # noqa: BLE001 - a fault of ours must not go on stderr with text
            self.fail(type(error).__name__)

    def _batch(self, write: Callable[[bytes], Any]) -> bool:
        """Write the events of one second. Returns ``False`` at the end of the recording."""
        event = self._queue.get()
        self._closing.wait(FLUSH_S)
        while event is not None:
            write(json.dumps(event, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
            try:
                event = self._queue.get_nowait()
            except queue.Empty:
                return True
        return False


def patches(document: Document, edits: Sequence[Edit], encoding: Encoding) -> list[Patch]:
    """Convert edits to code points, each relative to the text after the previous ones."""
    scratch = document
    if len(edits) > 1:
        scratch = copy.copy(document)
        scratch.lines = document.lines.copy()
    found: list[Patch] = []
    for edit in edits:
        start = Position(0, 0)
        end = Position(len(scratch.lines) - 1, len(scratch.lines[-1]))
        if edit.start is not None and edit.end is not None:
            start = scratch.place(edit.start, encoding)
            end = scratch.place(edit.end, encoding)
        found.append((*start, *end, valid_unicode(edit.text)))
        if scratch is not document:
            scratch.change(scratch.version, [edit], encoding)
    return found


def _create(path: Path) -> int:
    """Create a new file that only this user can read; never overwrite one.

    Windows may share a name: ``trace.jsonl``, then ``trace-2.jsonl`` and so on, also in a given folder.
    """
    path = path.expanduser()
    first = path / "trace.jsonl" if path.is_dir() else path
    first.parent.mkdir(parents=True, exist_ok=True)
    for number in range(1, MAX_FILES):
        name = first if number == 1 else first.with_name(f"{first.stem}-{number}{first.suffix}")
        try:
            return os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            continue
    raise FileExistsError(0, "too many traces of this name")
