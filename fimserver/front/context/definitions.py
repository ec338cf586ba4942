"""Definitions of imported names: outlines read from files of the workspace, on one background thread.

Nothing else in the front reads source files of the workspace. A file is read only if it is inside the roots
after links are resolved, is not excluded by ``Privacy``, and is small.
"""

from __future__ import annotations

import logging
import os
import queue
import re
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from fimserver.front.context.import_paths import CANDIDATES
from fimserver.front.context.privacy import Privacy, by_content
from fimserver.front.context.similar_windows import COMMON
from fimserver.front.documents.mirror import Snapshot
from fimserver.front.syntax import parser
from fimserver.types import Snippet

MAX_BYTES = 256 * 1024  # of a file; more takes too long to parse while the user types
HEAD_LINES = 300  # searched for imports
BODY_LINES = 2000  # searched for names used of an imported module
MAX_IMPORTS = 40
MAX_NAMES = 16  # outlines of one document
MAX_TRIES = 24  # names looked up in one module, found or not
MAX_CHARS = 6000
LOOK_AGAIN_S = 5.0
REEXPORTS = 2  # files that a name is followed through
_MAX_DOCUMENTS = 64

log = logging.getLogger("fimserver.front")
Job = Callable[[], None]


class Worker:
    """Runs jobs in order on one daemon thread, which starts with the first job."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def __call__(self, job: Job) -> None:
        self._jobs.put(job)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="definitions", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        while True:
            job = self._jobs.get()
            try:
                job()
            except Exception as error:  # noqa: BLE001 - one bad file must not end the thread
                log.warning("definitions: %s", type(error).__name__)


@dataclass(frozen=True)
class _Question:
    """A document whose imports are looked up. ``lines`` must not change."""

    uri: str
    path: Path
    root: Path
    language: str
    lines: Sequence[str]


@dataclass(frozen=True)
class _Known:
    """Snippets found for a document, and the first lines that they were found for."""

    head: Sequence[str]
    until_s: float
    snippets: tuple[Snippet, ...] = ()


class Definitions:
    """Outlines of what documents import. ``run`` runs jobs one at a time, now or on another thread."""

    def __init__(
        self,
        roots: Sequence[Path],
        privacy: Privacy,
        run: Callable[[Job], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._roots = tuple(os.path.realpath(root) for root in roots)
        self._privacy = privacy
        self._run = run or Worker()
        self._clock = clock
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._waiting: dict[str, _Question] = {}
        # The arguments include the time of the file's last change, so the caches never go stale.
        self._text = lru_cache(maxsize=16)(self._read)
        self._outline = lru_cache(maxsize=2048)(self._define)
        self._names = lru_cache(maxsize=256)(self._list_names)
        self._imports = lru_cache(maxsize=256)(self._list_imports)

    def lookup(self, snapshot: Snapshot, path: Path) -> tuple[Snippet, ...]:
        """Return the snippets that are ready, one per file, in the order of the imports.

        Queues a new look-up if the imports changed or ``LOOK_AGAIN_S`` have passed.
        """
        language = parser.language_of(snapshot.language, path.name)
        root = self._privacy.root_of(path)
        if root is None or language is None or language not in CANDIDATES:
            return ()
        head = snapshot.lines[:HEAD_LINES]
        now = self._clock()
        known = self._known.get(snapshot.uri, _Known((), now))
        if known.head != head or known.until_s <= now:
            self._keep(snapshot.uri, replace(known, head=head, until_s=now + LOOK_AGAIN_S))
            is_queued = snapshot.uri in self._waiting
            self._waiting[snapshot.uri] = _Question(
                snapshot.uri, path, root, language, snapshot.lines[:BODY_LINES]
            )
            if not is_queued:
                self._run(lambda: self._answer(snapshot.uri))
        return self._known[snapshot.uri].snippets

    def forget(self, uri: str) -> None:
        """Forget a document that was closed."""
        self._waiting.pop(uri, None)
        self._known.pop(uri, None)

    def _keep(self, uri: str, known: _Known) -> None:
        self._known[uri] = known
        self._known.move_to_end(uri)
        while len(self._known) > _MAX_DOCUMENTS:
            self._known.popitem(last=False)

    def _answer(self, uri: str) -> None:
        """Answer the newest question about a document, on the background thread."""
        question = self._waiting.pop(uri, None)
        if question is None:
            return
        snippets = self._find(question)
        known = self._known.get(uri)
        if known is not None:  # else it was closed meanwhile
            self._known[uri] = replace(known, snippets=snippets)

    def _find(self, question: _Question) -> tuple[Snippet, ...]:
        outlines: dict[Path, list[str]] = {}
        count = size = 0
        head = "".join(question.lines[:HEAD_LINES])
        for wanted in parser.imports(question.language, head)[:MAX_IMPORTS]:
            for path, outline in self._resolve(question, wanted, question.path, REEXPORTS):
                known = outlines.setdefault(path, [])
                if outline not in known and path != question.path:
                    known.append(outline)
                    count = count + 1
                    size = size + len(outline)
                if count >= MAX_NAMES or size >= MAX_CHARS:
                    return self._snippets(outlines)
        return self._snippets(outlines)

    def _snippets(self, outlines: dict[Path, list[str]]) -> tuple[Snippet, ...]:
        return tuple(
            Snippet(self._privacy.shown(path), "\n\n".join(known) + "\n")
            for path, known in outlines.items()
            if known
        )

    def _resolve(
        self, question: _Question, wanted: parser.Import, file: Path, depth: int
    ) -> Iterator[tuple[Path, str]]:
        """Find files and outlines of the names that an import binds, or of those used of a whole module."""
        named = CANDIDATES[question.language](wanted.module, wanted.names, file, question.root)
        candidates = dict.fromkeys(Path(os.path.normpath(path)) for path in named)
        files = [(path, mtime) for path in candidates if (mtime := self._state(path)) is not None][:8]
        if not wanted.names or wanted.names == ("*",):
            yield from self._used(question, files)
            return
        for name in wanted.names:
            found = [
                (path, outline)
                for path, mtime in files
                if (outline := self._outline(path, mtime, question.language, name))
            ]
            if found:
                yield found[0]
            elif depth:
                yield from self._elsewhere(question, wanted.module, name, files, file, depth - 1)

    def _elsewhere(
        self,
        question: _Question,
        module: str,
        name: str,
        files: Sequence[tuple[Path, int]],
        file: Path,
        depth: int,
    ) -> Iterator[tuple[Path, str]]:
        """Find a name that a module re-exports, or that is itself a module."""
        for path, mtime in files:
            for passed in self._imports(path, mtime, question.language):
                if name in passed.names:
                    yield from self._resolve(question, parser.Import(passed.module, (name,)), path, depth)
                    return
        if question.language == "python":
            submodule = parser.Import(module + ("" if module.endswith(".") else ".") + name, ())
            yield from self._resolve(question, submodule, file, 0)

    def _used(self, question: _Question, files: Sequence[tuple[Path, int]]) -> Iterator[tuple[Path, str]]:
        """Find definitions of whole modules whose names occur in the document, in the document's order."""
        words = dict.fromkeys(re.findall(r"[^\W\d]\w{2,63}", "".join(line[:400] for line in question.lines)))
        for path, mtime in files:
            defined = self._names(path, mtime)
            for name in [word for word in words if word in defined][:MAX_TRIES]:
                if outline := self._outline(path, mtime, question.language, name):
                    yield path, outline

    def _list_names(self, path: Path, mtime_ns: int) -> frozenset[str]:
        """Return the words of a module that may be names defined there."""
        return frozenset(re.findall(r"[^\W\d]\w{2,63}", self._text(path, mtime_ns) or "")) - COMMON

    def _define(self, path: Path, mtime_ns: int, language: str, name: str) -> str | None:
        text = self._text(path, mtime_ns)
        is_passed_on = any(name in passed.names for passed in self._imports(path, mtime_ns, language))
        return (
            None if text is None or is_passed_on else parser.definition(_language(path, language), text, name)
        )

    def _list_imports(self, path: Path, mtime_ns: int, language: str) -> tuple[parser.Import, ...]:
        text = self._text(path, mtime_ns)
        return () if text is None else parser.imports(_language(path, language), text)

    def _state(self, path: Path) -> int | None:
        """Return the time of the last change in ns, or ``None`` if the file must not be read."""
        try:
            status = path.stat()
            real = Path(os.path.realpath(path))
        except (OSError, ValueError):
            return None
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:
            return None
        is_inside = any(real.is_relative_to(root) for root in self._roots)
        return status.st_mtime_ns if is_inside and self._privacy.by_name(path) is None else None

    def _read(self, path: Path, mtime_ns: int) -> str | None:  # noqa: ARG002 - part of the key of the cache
        """Return the text of a checked file. What has since become a link or a pipe is not opened."""
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        try:
            with os.fdopen(os.open(os.path.realpath(path), flags), "rb") as stream:
                if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                    return None
                text = stream.read(MAX_BYTES + 1).decode("utf-8", "replace")
        except (OSError, ValueError):
            return None
        return text if by_content(text.splitlines(keepends=True)) is None else None


def _language(path: Path, importer: str) -> str:
    """Return the language of an imported file: by its extension, but a header has its includer's."""
    return importer if importer in {"c", "cpp"} else parser.language_of("", path.name) or importer
