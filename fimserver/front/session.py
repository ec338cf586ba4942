"""Knows the state of one editor window. Knows nothing of LSP messages."""

from __future__ import annotations

import asyncio
import hashlib
import time
import uuid
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fimserver.front.acceptance import Acceptance
from fimserver.front.client import Line
from fimserver.front.config import Config
from fimserver.front.context import ContextSource
from fimserver.front.documents import Document, Edit, Encoding
from fimserver.front.languages import COMMENT_MARKS
from fimserver.front.memory import Memory
from fimserver.front.notebooks import Notebooks
from fimserver.front.privacy import Privacy, path_of
from fimserver.front.rhythm import Rhythm
from fimserver.front.syntax import language_of
from fimserver.reasons import EXPLANATIONS, Reason
from fimserver.wire import Usage

MAX_REJECTED = 64


@dataclass(frozen=True)
class Suggestion:
    """Text for the editor. ``replace``: so many characters right of the cursor make way for it."""

    text: str
    replace: int
    suggestion_id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])


@dataclass(frozen=True)
class Outcome:
    """How a request ended, suggestions or not, and what it took. ``by`` names the filter that dropped everything."""

    suggestions: tuple[Suggestion, ...] = ()
    reason: Reason = Reason.EMPTY
    source: Literal["", "model", "memory"] = ""
    by: str = ""
    message: str = ""
    uri: str = ""
    usage: Usage | None = None
    total_ms: float = 0.0

    def explained(self) -> dict[str, Any]:
        """For a person: what happened and why, without any text of the document."""
        facts = {
            "reason": self.reason,
            "message": self.message or EXPLANATIONS[self.reason],
            "shown": len(self.suggestions),
            "source": self.source,
            "filter": self.by,
            "uri": self.uri,
            "totalMs": round(self.total_ms, 1),
        }
        if self.usage is None:
            return facts
        used = self.usage
        measured = {"ttftMs": round(used.ttft_ms, 1), "engineMs": round(used.total_ms, 1), "queueMs": round(used.queue_ms, 1)}
        chosen = {"route": used.route, "model": used.model, "why": used.why, "tokens": used.tokens, "forwards": used.forwards}
        return facts | chosen | measured


class Session:
    """One editor window: its documents, what it remembers, and its line to the host."""

    def __init__(self, config: Config, line: Line) -> None:
        self.config, self.line = config, line
        self.session_id = uuid.uuid4().hex
        self.encoding: Encoding = "utf-16"
        self.documents: dict[str, Document] = {}
        self.notebooks = Notebooks()
        self.memory = Memory()
        self.acceptance = Acceptance()
        self.rejected: dict[str, None] = {}
        self.last = Outcome(reason=Reason.EMPTY, message="nothing was asked yet")
        self.reasons: dict[Reason, int] = {}
        self._rhythms: dict[str, Rhythm] = {}
        self._running: dict[str, asyncio.Task[Outcome]] = {}
        self._spare: asyncio.Task[None] | None = None
        self.roots: tuple[Path, ...] = ()
        self.look_at(())

    def look_at(self, roots: Sequence[Path]) -> None:
        """The folders of the workspace."""
        self.roots = tuple(roots)
        self.privacy = Privacy(self.roots, self.config.exclude)
        self.context = ContextSource(self.roots, self.privacy)

    def configure(self, config: Config) -> None:
        """What the user wants from now on."""
        changed_files = config.exclude != self.config.exclude
        self.config = config
        self.memory.clear()
        if changed_files:
            self.look_at(self.roots)

    def open(self, document: Document) -> None:
        self.documents[document.uri] = document

    def change(self, uri: str, version: int, edits: Sequence[Edit]) -> None:
        """Edits of a document. One that is not open is left alone."""
        document = self.documents.get(uri)
        if document is None:
            return
        document.change(version, edits, self.encoding)
        self.rhythm(uri).key(time.monotonic())
        self.context.edited(document, max((edit.start[0] for edit in edits if edit.start), default=0))
        self.acceptance.edited(document, sum(len(edit.text) for edit in edits))
        self.stop_spare()

    def close(self, uri: str) -> None:
        self.documents.pop(uri, None)
        self._rhythms.pop(uri, None)
        self.memory.forget(uri)
        self.acceptance.forget(uri)
        self.context.forget(uri)
        if (task := self._running.pop(uri, None)) is not None:
            task.cancel()

    def rhythm(self, uri: str) -> Rhythm:
        return self._rhythms.setdefault(uri, Rhythm())

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
        if path is None:
            return ""
        root = next((root for root in self.roots if path.is_relative_to(root)), None)
        return path.relative_to(root).as_posix() if root else path.name

    def repository(self) -> str:
        return self.roots[0].name if self.roots else ""

    def opaque(self, uri: str) -> str:
        """A name of a document that says nothing of it."""
        return hashlib.sha256(f"{self.session_id} {uri}".encode("utf-8", "replace")).hexdigest()[:16]

    def reject(self, text: str) -> None:
        """The user dismissed this text."""
        self.rejected[text] = None
        while len(self.rejected) > MAX_REJECTED:
            del self.rejected[next(iter(self.rejected))]

    def note(self, outcome: Outcome) -> None:
        """Remember how the last request ended, and count it."""
        self.last = outcome
        self.reasons[outcome.reason] = self.reasons.get(outcome.reason, 0) + 1

    async def newest(self, uri: str, work: Coroutine[Any, Any, Outcome]) -> Outcome:
        """Run ``work``; whatever ran for the document is answered at once as superseded."""
        if (old := self._running.pop(uri, None)) is not None:
            old.cancel()
        self.stop_spare()
        task = self._running[uri] = asyncio.ensure_future(work)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled() and not _cancelling():
                return Outcome(reason=Reason.SUPERSEDED, uri=uri)
            task.cancel()
            raise
        finally:
            if self._running.get(uri) is task:
                del self._running[uri]

    def spare(self, work: Coroutine[Any, Any, None]) -> None:
        """Work for when nothing else is to be done; the next key or request ends it."""
        self.stop_spare()
        self._spare = asyncio.ensure_future(work)

    def stop_spare(self) -> None:
        if self._spare is not None:
            self._spare.cancel()
            self._spare = None

    async def shut(self) -> None:
        """End everything that runs."""
        self.stop_spare()
        for task in self._running.values():
            task.cancel()
        await self.line.close()


def _cancelling() -> bool:
    """Whether the running task itself was cancelled, and not only what it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
