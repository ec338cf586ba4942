"""Knows the state of one editor window. Knows nothing of LSP messages."""

from __future__ import annotations

import asyncio
import hashlib
import time
import uuid
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from fimserver.front.config import Config
from fimserver.front.context.definitions import Definitions, Worker
from fimserver.front.context.privacy import Privacy, path_of
from fimserver.front.context.prompt_context import ContextSource
from fimserver.front.debounce import TypingRhythm
from fimserver.front.documents.mirror import Document, Edit, Encoding
from fimserver.front.documents.notebooks import Notebooks
from fimserver.front.feedback.acceptance import Acceptance
from fimserver.front.feedback.ledger import Ledger
from fimserver.front.feedback.live_ab import LiveComparison, RouteTurn, Shadows
from fimserver.front.host_client import HostClient
from fimserver.front.memory import Memory
from fimserver.front.outcome import Outcome
from fimserver.front.syntax.languages import COMMENT_MARKS
from fimserver.front.syntax.parser import language_of
from fimserver.reasons import Reason
from fimserver.types import Route
from fimserver.wire import Usage

if TYPE_CHECKING:
    from fimserver.front.feedback.trace_recorder import TraceRecorder

MAX_REJECTED = 64
TELL_S = 0.5  # what the end of a window may wait for its last events


class RunningTask(NamedTuple):
    """Work for a place, and the sign that something newer took its place."""

    task: asyncio.Task[Outcome]
    superseded: asyncio.Future[None]


class RejectedText(NamedTuple):
    """A text that the user dismissed, and the line before it."""

    uri: str
    before: str
    text: str


class Session:
    """One editor window: its documents, what it remembers, and its line to the host."""

    def __init__(self, config: Config, line: HostClient) -> None:
        self.config, self.line = config, line
        self.start = config  # what holds where the editor's settings say nothing
        self.pins: dict[str, Any] = {}  # what commands have set on top of settings
        self.sent: dict[str, Any] = {}  # the editor's settings
        self.routes: dict[str, Route] = {}  # that the user wants for single documents
        self.session_id = uuid.uuid4().hex
        self.encoding: Encoding = "utf-16"
        self.documents: dict[str, Document] = {}
        self.notebooks = Notebooks()
        self.memory = Memory()
        self.ledger = Ledger(self.opaque(""), self.tell)
        self.acceptance = Acceptance(self.ledger.shown, self.ledger.settled)
        self.trial = LiveComparison(config.ab, config.seed)
        self.shadows = Shadows(lambda body: self.line.complete(body, asked=False), self.quiet_s)
        self._last_s = 0.0  # of the monotonic clock: the last key or request
        self.recorder: TraceRecorder | None = None  # where keystrokes are written down
        self.rejected: dict[RejectedText, None] = {}
        self.last = Outcome(reason=Reason.EMPTY, message="nothing was asked yet")
        self.reasons: dict[Reason, int] = {}
        self._rhythms: dict[str, TypingRhythm] = {}
        self._running: dict[str, RunningTask] = {}
        self._worker = Worker()
        self._spare: asyncio.Task[None] | None = None
        self._aside: set[asyncio.Task[Any]] = set()
        self.roots: tuple[Path, ...] = ()
        self.look_at(())

    async def tell(self, batch: bytes) -> bool:
        """Take events to the host, where the user lets us. Whether that is done with."""
        return await self.line.tell(batch) if self.config.stats else True

    def look_at(self, roots: Sequence[Path]) -> None:
        """The folders of the workspace."""
        self.roots = tuple(roots)
        self.privacy = Privacy(self.roots, self.config.exclude)
        definitions = Definitions(self.roots, self.privacy, self._worker)
        self.context = ContextSource(self.roots, self.privacy, definitions=definitions)

    def configure(self, config: Config) -> None:
        """What the user wants from now on."""
        changed_files = config.exclude != self.config.exclude
        if (config.ab, config.seed) != (self.config.ab, self.config.seed):
            self.trial = LiveComparison(config.ab, config.seed)
        self.config = config
        self.shadows.stop()
        self.stop()  # what runs was asked under other settings
        self.stop_spare()
        self.memory.clear()
        if changed_files:
            self.look_at(self.roots)

    def open(self, document: Document) -> None:
        """A document, of which nothing is known any more if it was open before."""
        self.close(document.uri)
        self.documents[document.uri] = document
        if self.recorder:
            self.recorder.open(document)

    def change(self, uri: str, version: int, edits: Sequence[Edit]) -> None:
        """Edits of a document. One that is not open is left alone."""
        document = self.documents.get(uri)
        if document is None:
            return
        if self.recorder:
            self.recorder.change(document, edits, self.encoding)
        document.change(version, edits, self.encoding)
        self._last_s = time.monotonic()
        self.rhythm(uri).key(self._last_s)
        self.context.edited(document, max((edit.start[0] for edit in edits if edit.start), default=0))
        self.ledger.edited(document, edits, self.language(document) or "")
        self.acceptance.edited(document, sum(len(edit.text) for edit in edits))

    def close(self, uri: str) -> None:
        if self.recorder:
            self.recorder.close(uri)
        self.documents.pop(uri, None)
        self._rhythms.pop(uri, None)
        self.memory.forget(uri)
        self.acceptance.forget(uri)
        self.ledger.forget(uri)
        self.trial.forget(self.opaque(uri))
        self.routes.pop(uri, None)
        self.context.forget(uri)
        self.stop(uri)
        self.stop_spare()

    def record(self, path: Path) -> TraceRecorder:
        """Write down keystrokes from now on, of documents that privacy lets out. Whoever ends the window ends it."""
        from fimserver.front.feedback.trace_recorder import TraceRecorder  # noqa: PLC0415 - a window that records nothing need not hold it

        self.recorder = TraceRecorder(
            path, lambda document: self.privacy.verdict(path_of(document.uri), document.lines) is None
        )
        return self.recorder

    def wanted(self, uri: str) -> Literal["auto", "dllm", "ar"]:
        """The route that the user wants for a document: it may have one of its own, or its language."""
        document = self.documents.get(uri)
        by_language = self.config.routes.get(document.language) if document else None
        return self.routes.get(uri) or by_language or self.config.model

    def turn(self, uri: str) -> RouteTurn | None:
        """Whose turn a document has in the comparison; ``None`` where none runs, or the user wants one route."""
        return self.trial.turn(self.opaque(uri)) if self.wanted(uri) == "auto" else None

    def route(self, uri: str) -> Literal["auto", "dllm", "ar"]:
        """The route to ask for: what the user wants, else whose turn it is."""
        return turn.route if (turn := self.turn(uri)) else self.wanted(uri)

    def explained(self, uri: str, usage: Usage) -> Usage:
        """What a request took, with the comparison as the reason where that picked the route."""
        return self.trial.explained(usage, turn) if (turn := self.turn(uri)) else usage

    def quiet_s(self) -> float:
        """For how long nobody has typed or asked for anything."""
        busy = self._running or (self._spare is not None and not self._spare.done())
        return 0.0 if busy else time.monotonic() - self._last_s

    def rhythm(self, uri: str) -> TypingRhythm:
        return self._rhythms.setdefault(uri, TypingRhythm())

    def language(self, document: Document) -> str | None:
        """Our name of a document's language, ``None`` for plain text."""
        path = path_of(document.uri)
        return language_of(document.language, path.name if path else "")

    def cells_around(self, document: Document) -> tuple[str, str]:
        """Text of a notebook's other cells, before and behind."""
        return self.notebooks.around(document.uri, self.documents, COMMENT_MARKS.get(self.language(document) or "", ""))

    def file_name(self, uri: str) -> str:
        """What the model may know of where a document is: its path in the workspace."""
        path = path_of(uri)
        return "" if path is None else self.privacy.shown(path)

    def repository(self, uri: str) -> str:
        """The name of the workspace folder that a document is in."""
        path = path_of(uri)
        root = None if path is None else self.privacy.root_of(path)
        return "" if root is None else root.name

    def opaque(self, uri: str) -> str:
        """A name of a document that says nothing of it."""
        return hashlib.sha256(f"{self.session_id} {uri}".encode("utf-8", "replace")).hexdigest()[:16]

    def reject(self, rejected: RejectedText) -> None:
        """The user dismissed a text: it, and the rest of it once its start is typed, is not shown there again."""
        self.rejected[rejected] = None
        while len(self.rejected) > MAX_REJECTED:
            del self.rejected[next(iter(self.rejected))]

    def rejected_at(self, uri: str, line_before: str) -> frozenset[str]:
        """Texts that the user dismissed at a place."""
        left = (
            (r.text, line_before[len(r.before) :]) for r in self.rejected if r.uri == uri and line_before.startswith(r.before)
        )
        return frozenset(text[len(typed) :] for text, typed in left if text.startswith(typed))

    def note(self, outcome: Outcome) -> None:
        """Remember how the last request ended, and count it."""
        self.last = replace(outcome, body=None)
        self.reasons[outcome.reason] = self.reasons.get(outcome.reason, 0) + 1

    async def newest(self, slot: str, work: Coroutine[Any, Any, Outcome]) -> Outcome:
        """Run ``work``; what ran in its slot is answered at once as superseded, whatever it has yet to clean up."""
        self.stop(slot)
        self._last_s = time.monotonic()
        running = RunningTask(asyncio.ensure_future(work), asyncio.get_running_loop().create_future())
        self._running[slot] = running
        try:
            await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            return Outcome(reason=Reason.SUPERSEDED) if running.superseded.done() else running.task.result()
        finally:
            if not running.task.done():
                running.task.cancel()
            if self._running.get(slot) is running:
                del self._running[slot]

    def stop(self, uri: str = "") -> None:
        """End what runs in a slot, for a document, or for all of them."""
        for slot in [slot for slot in self._running if not uri or slot == uri or slot.startswith(f"{uri}\0")]:
            running = self._running.pop(slot)
            if not running.superseded.done():
                running.superseded.set_result(None)
            running.task.cancel()

    def aside(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run something whose result nobody waits for."""
        task = asyncio.ensure_future(work)
        self._aside.add(task)
        task.add_done_callback(self._aside.discard)

    def spare(self, work: Coroutine[Any, Any, None]) -> None:
        """Work for when nothing else is to be done. Keys do not end it: the host ends it for any other request."""
        self.stop_spare()
        self._spare = asyncio.ensure_future(work)

    def stop_spare(self) -> None:
        if self._spare is not None:
            self._spare.cancel()
            self._spare = None

    async def shut(self) -> None:
        """End everything that runs."""
        self.stop()
        self.stop_spare()
        self.shadows.stop()
        for task in self._aside:
            task.cancel()
        for uri in self.documents:
            self.acceptance.forget(uri)
        await self.ledger.close(TELL_S)
        await self.line.close()
