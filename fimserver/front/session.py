"""Session: the state of one editor window."""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fimserver.front.calm import Calm
from fimserver.front.config import Config, Trigger
from fimserver.front.context.definitions import Definitions, Worker
from fimserver.front.context.privacy import Privacy
from fimserver.front.context.prompt_context import ContextSource
from fimserver.front.debounce import TypingRhythm
from fimserver.front.documents.mirror import Document, Edit, Encoding
from fimserver.front.documents.notebooks import Notebooks
from fimserver.front.documents.uris import path_of
from fimserver.front.energy import Energy
from fimserver.front.feedback.acceptance import Acceptance, ShownSuggestion
from fimserver.front.feedback.ledger import Ledger
from fimserver.front.feedback.live_ab import LiveComparison, RouteTurn, Shadows
from fimserver.front.host_client import HostClient
from fimserver.front.memory import Memory
from fimserver.front.outcome import Outcome
from fimserver.front.running import Running
from fimserver.front.syntax.languages import COMMENT_MARKS
from fimserver.front.syntax.parser import language_of
from fimserver.reasons import Reason
from fimserver.types import Route, RoutePin
from fimserver.wire import Answer, CompletionBody

if TYPE_CHECKING:
    from fimserver.front.feedback.trace_recorder import TraceRecorder

MAX_REJECTED = 64
CLOSE_S = 0.5  # time to send the last events when a window closes


class RejectedText(NamedTuple):
    """A text that the user dismissed, and the line before it."""

    uri: str
    before: str
    text: str


class Session:
    """One editor window: its settings, documents, memory, feedback, and its client to the host."""

    def __init__(self, config: Config, host: HostClient) -> None:
        self.host = host
        self.config = config
        self.start = config  # defaults for what the editor does not set
        self.pins: dict[str, Any] = {}  # set by commands; override the editor's settings
        self.sent: dict[str, Any] = {}  # the editor's settings
        self.setting_problems: tuple[str, ...] = ()  # unknown names and unusable values among them
        self.routes: dict[str, Route] = {}  # pinned by the user, by document
        self.session_id = uuid.uuid4().hex
        self.encoding: Encoding = "utf-16"
        self.documents: dict[str, Document] = {}
        self.notebooks = Notebooks()
        self.memory = Memory()
        self.running = Running()
        self.ledger = Ledger(self.opaque(""), self.send_events)
        self.acceptance = Acceptance(self._shown, self._settled)
        self.calm = Calm()
        self.energy = Energy()
        self._read_power()
        self.snoozed_until_s = 0.0  # monotonic clock
        self.trial = LiveComparison(config.ab, config.seed)
        self.shadows = Shadows(self._ask_shadow, self.running.quiet_s)
        self.recorder: TraceRecorder | None = None  # while keystrokes are recorded
        self.rejected: dict[RejectedText, None] = {}
        self.last = Outcome(reason=Reason.EMPTY, message="nothing was asked yet")
        self.reasons: dict[Reason, int] = {}
        self._rhythms: dict[str, TypingRhythm] = {}
        self._worker = Worker()
        self.roots: tuple[Path, ...] = ()
        self.set_roots(())

    async def send_events(self, batch: bytes) -> bool:
        """Send events to the host unless ``stats`` is off. Returns whether the batch is done with."""
        return await self.host.send_events(batch) if self.config.stats else True

    async def _ask_shadow(self, body: CompletionBody, deadline_ms: float) -> Answer:
        return await self.host.complete(body, deadline_s=time.monotonic() + deadline_ms / 1000, asked=False)

    def _shown(self, shown: ShownSuggestion) -> None:
        self.calm.shown(time.monotonic())
        self.ledger.shown(shown)

    def _settled(self, shown: ShownSuggestion) -> None:
        self.calm.settled(was_used=any(shown.kept))
        self.ledger.settled(shown)

    @property
    def is_snoozed(self) -> bool:
        """Whether automatic suggestions are snoozed."""
        return time.monotonic() < self.snoozed_until_s

    @property
    def saves_power(self) -> bool:
        """Whether the machine runs on battery or saves power and ``battery`` is not ``ignore``."""
        return self.config.battery != "ignore" and self.energy.power != "mains"

    def _read_power(self) -> None:
        """Read the power state unless it is ignored, so that it is known before the next key."""
        if self.config.battery != "ignore":
            self.energy.refresh()

    def set_roots(self, roots: Sequence[Path]) -> None:
        """Set the folders of the workspace."""
        self.roots = tuple(roots)
        self.privacy = Privacy(self.roots, self.config.exclude)
        definitions = Definitions(self.roots, self.privacy, self._worker)
        self.context = ContextSource(self.roots, self.privacy, definitions=definitions)

    def configure(self, config: Config) -> None:
        """Apply settings, and end requests that were made under other settings."""
        changed_files = config.exclude != self.config.exclude
        changed_power = config.battery != self.config.battery
        if (config.ab, config.seed) != (self.config.ab, self.config.seed):
            self.trial = LiveComparison(config.ab, config.seed)
        self.config = config
        self.shadows.stop()
        self.running.stop()
        self.running.stop_prefetch()
        self.memory.clear()
        if changed_power:
            self._read_power()
        if changed_files:
            self.set_roots(self.roots)

    def open(self, document: Document) -> None:
        """Add a document, and forget an earlier one with the same URI."""
        self.close(document.uri)
        self.documents[document.uri] = document
        if self.recorder:
            self.recorder.open(document)

    def change(self, uri: str, version: int, edits: Sequence[Edit]) -> None:
        """Apply edits to a document. Ignores a document that is not open."""
        document = self.documents.get(uri)
        if document is None:
            return
        if self.recorder:
            self.recorder.change(document, edits, self.encoding)
        document.change(version, edits, self.encoding)
        self.calm.edited(uri, only_deleted=all(edit.start is not None and not edit.text for edit in edits))
        self.running.used()
        self.rhythm(uri).key(self.running.last_used_s)
        self.context.edited(document, max((edit.start[0] for edit in edits if edit.start), default=0))
        self.ledger.edited(document, edits, self.language(document) or "")
        self.acceptance.edited(document, sum(len(edit.text) for edit in edits))

    def close(self, uri: str) -> None:
        """Forget a document and end its requests."""
        if self.recorder:
            self.recorder.close(uri)
        self.documents.pop(uri, None)
        self._rhythms.pop(uri, None)
        self.calm.forget(uri)
        self.memory.forget(uri)
        self.acceptance.forget(uri)
        self.ledger.forget(uri)
        self.trial.forget(self.opaque(uri))
        self.routes.pop(uri, None)
        self.context.forget(uri)
        self.running.stop(uri)
        self.running.stop_prefetch()

    def record(self, path: Path) -> TraceRecorder:
        """Record keystrokes in documents that are not excluded. The caller ends the recorder."""
        from fimserver.front.feedback.trace_recorder import TraceRecorder  # noqa: PLC0415

        self.recorder = TraceRecorder(
            path, lambda document: self.privacy.verdict(path_of(document.uri), document.lines) is None
        )
        return self.recorder

    def wanted(self, uri: str) -> RoutePin:
        """Return the route that the user wants for a document: its own, its language's, or the window's."""
        document = self.documents.get(uri)
        by_language = self.config.routes.get(document.language) if document else None
        return self.routes.get(uri) or by_language or self.config.model

    def trigger(self, document: Document) -> Trigger:
        """Return when suggestions are made in a document: its language's setting, or the window's."""
        return self.config.triggers.get(document.language) or self.config.trigger

    def turn(self, uri: str) -> RouteTurn | None:
        """Return a document's turn in the comparison; ``None`` if none runs or the user pinned a route."""
        return self.trial.turn(self.opaque(uri)) if self.wanted(uri) == "auto" else None

    def rhythm(self, uri: str) -> TypingRhythm:
        """Return the typing rhythm of a document."""
        return self._rhythms.setdefault(uri, TypingRhythm())

    def language(self, document: Document) -> str | None:
        """Return the parser's name of a document's language; ``None`` for plain text."""
        path = path_of(document.uri)
        return language_of(document.language, path.name if path else "")

    def cells_around(self, document: Document) -> tuple[str, str]:
        """Return the text of a notebook's other cells, before and after."""
        comment = COMMENT_MARKS.get(self.language(document) or "", "")
        return self.notebooks.around(document.uri, self.documents, comment)

    def file_name(self, uri: str) -> str:
        """Return the path of a document as shown to the model: relative to the workspace, or its name."""
        path = path_of(uri)
        return "" if path is None else self.privacy.shown(path)

    def repository(self, uri: str) -> str:
        """Return the name of the workspace folder that contains a document, or an empty string."""
        path = path_of(uri)
        root = None if path is None else self.privacy.root_of(path)
        return "" if root is None else root.name

    def opaque(self, uri: str) -> str:
        """Return an id of a document that does not reveal its name."""
        return hashlib.sha256(f"{self.session_id} {uri}".encode("utf-8", "replace")).hexdigest()[:16]

    def reject(self, rejected: RejectedText) -> None:
        """Note a dismissal: the text, or its rest after part of it is typed, is not shown there again."""
        self.calm.dismissed(time.monotonic())
        self.rejected[rejected] = None
        while len(self.rejected) > MAX_REJECTED:
            del self.rejected[next(iter(self.rejected))]

    def rejected_at(self, uri: str, line_before: str) -> frozenset[str]:
        """Return the texts that the user dismissed at a place."""
        here = (r for r in self.rejected if r.uri == uri and line_before.startswith(r.before))
        left = ((r.text, line_before[len(r.before) :]) for r in here)
        return frozenset(text[len(typed) :] for text, typed in left if text.startswith(typed))

    def note(self, outcome: Outcome) -> None:
        """Keep the outcome of the last request, and count its reason."""
        self.last = replace(outcome, body=None)
        self.reasons[outcome.reason] = self.reasons.get(outcome.reason, 0) + 1

    async def shut(self) -> None:
        """End everything that runs, and send the last events."""
        self.running.stop_all()
        self.shadows.stop()
        for uri in self.documents:
            self.acceptance.forget(uri)
        await self.ledger.close(CLOSE_S)
        await self.host.close()
