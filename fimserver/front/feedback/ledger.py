"""Ledger of answers: the outcome of each, and how much of it is in the document after 10 s and 60 s.

Texts stay in this process until the last look; only numbers are sent to the host. Batches are sent beside
the completions and delay none of them; one that cannot be delivered is dropped and its answers are counted.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from functools import partial
from typing import Any, Protocol

from fimserver.events import AnswerRecord, Batch, Persistence, SuggestionEvent
from fimserver.front.documents.mirror import Document, Edit, split_lines
from fimserver.front.feedback.acceptance import ShownSuggestion
from fimserver.lengths import common_prefix, lexemes
from fimserver.types import unix_lines

LOOKS_S = (10, 60)  # after a suggestion was shown
BATCH_S = 2.0
BATCH_ANSWERS = 50
MAX_OPEN = 256  # answers that may still change
SLACK_LINES = 2
SLACK_CHARS = 80  # beyond a suggestion's own size, for what the user inserted
AROUND_LINES = 64
AROUND_CHARS = 4000  # of the document that are compared
ANCHOR_CHARS = 200  # of the text after a suggestion, used to find its end
MOVED_LINES = 20  # how far up and down a place is searched for
_TOKEN = re.compile(r"\w+|\s+|[^\w\s]")


class Post(Protocol):
    """Sends a batch to the host and returns whether it arrived."""

    def __call__(self, batch: bytes, /) -> Coroutine[Any, Any, bool]: ...


Later = Callable[[float, Callable[[], None]], object]


def in_loop(delay_s: float, callback: Callable[[], None]) -> object:
    """Schedule a callback on the running event loop."""
    return asyncio.get_running_loop().call_later(delay_s, callback)


@dataclass(eq=False)
class Entry:
    """An answer that may still change."""

    answer: AnswerRecord
    ids: tuple[str, ...] = ()
    document: Document | None = None
    line: int = 0  # of the cursor; moves with edits above it
    before: str = ""  # the line up to the cursor
    text: str = ""  # the suggestion that was shown
    stood: str = ""  # the document's text at the cursor before the suggestion
    shadow: str | None = None  # the other route's text, once it has answered
    looks: list[int] = field(default_factory=list)  # remaining looks, in seconds


class Ledger:
    """Answers of one window.

    ``session`` is an opaque id, ``later(seconds, callback)`` a timer, ``clock`` Unix seconds.
    """

    def __init__(
        self, session: str, post: Post, later: Later = in_loop, clock: Callable[[], float] = time.time
    ) -> None:
        self.dropped = 0  # answers that never reached the host
        self._session = session
        self._post = post
        self._later = later
        self._clock = clock
        self._number = 0
        self._open: OrderedDict[str, Entry] = OrderedDict()  # by suggestion id
        self._untold: dict[int, AnswerRecord] = {}
        self._keys: dict[str, int] = {}
        self._due = False
        self._posts: set[asyncio.Task[None]] = set()

    def answered(
        self, answer: AnswerRecord, document: Document | None = None, offered: Sequence[ShownSuggestion] = ()
    ) -> Entry:
        """Enter the outcome of a request and its suggestions. The ledger adds number and time."""
        self._number += 1
        entry = Entry(answer.model_copy(update={"number": self._number, "at": self._clock()}))
        if offered and document:
            entry.ids = tuple(shown.suggestion_id for shown in offered)
            entry.document = document
            entry.line = offered[0].place.line
            entry.before = offered[0].before
            entry.stood = around(document, entry.line, entry.before)
            self._open |= dict.fromkeys(entry.ids, entry)
        while len(self._open) > MAX_OPEN:
            self._open.popitem(last=False)
        self._tell(entry)
        for shown in offered:
            if shown.on_screen:
                self.shown(shown)
        return entry

    def shown(self, shown: ShownSuggestion) -> None:
        """Note that a suggestion was shown, and schedule the looks for it in the document."""
        entry = self._open.get(shown.suggestion_id)
        if entry is None:
            return
        entry.text = shown.text
        if not entry.answer.shown:
            entry.looks = list(LOOKS_S)
            for seconds in LOOKS_S:
                self._later(seconds, partial(self._look, entry, seconds))
        self._tell(entry, shown=True, chars=len(shown.text), lexemes=lexemes(shown.text))

    def settled(self, shown: ShownSuggestion) -> None:
        """Note that a suggestion left the screen or was accepted."""
        entry = self._open.get(shown.suggestion_id)
        if entry is not None and entry.answer.shown:
            accepted, typed = shown.kept
            self._tell(entry, fate=shown.fate, accepted_chars=accepted, typed_chars=typed)
            self._let_go(entry)

    def shadowed(self, entry: Entry, told: SuggestionEvent, text: str) -> None:
        """Note the other route's answer; ``text`` is the suggestion that it would have shown."""
        entry.shadow = text
        self._tell(entry, shadow=told.model_copy(update={"chars": len(text), "lexemes": lexemes(text)}))

    def edited(self, document: Document, edits: Sequence[Edit], language: str) -> None:
        """Count keys, and move the places below an edit."""
        if keys := sum(map(is_key, edits)):
            self._keys[language] = self._keys.get(language, 0) + keys
            self._wake()
        for entry in self._entries(document.uri):
            for edit in edits:
                entry.line = moved(entry.line, edit)

    def forget(self, uri: str) -> None:
        """Take the remaining looks of a document that is closed."""
        for entry in self._entries(uri):
            for seconds in tuple(entry.looks):
                self._look(entry, seconds)
            for suggestion_id in entry.ids:
                self._open.pop(suggestion_id, None)

    def flush(self) -> None:
        """Send what has not been sent yet."""
        self._due = False
        if not self._untold and not self._keys:
            return
        batch = Batch(
            session=self._session, answers=tuple(self._untold.values()), keys=self._keys, dropped=self.dropped
        )
        self._untold = {}
        self._keys = {}
        self.dropped = 0
        task = asyncio.ensure_future(self._deliver(batch))
        self._posts.add(task)
        task.add_done_callback(self._posts.discard)

    async def close(self, within_s: float) -> None:
        """Take the remaining looks and send everything within the time limit."""
        for uri in {entry.document.uri for entry in self._open.values() if entry.document}:
            self.forget(uri)
        self.flush()
        if self._posts:
            _, late = await asyncio.wait(self._posts, timeout=within_s)
            for task in late:
                task.cancel()

    async def _deliver(self, batch: Batch) -> None:
        if not await self._post(batch.model_dump_json(exclude_defaults=True).encode()):
            self.dropped += batch.dropped + len(batch.answers)

    def _tell(self, entry: Entry, **known: Any) -> None:
        entry.answer = entry.answer.model_copy(update=known)
        self._untold[entry.answer.number] = entry.answer
        self._wake()

    def _wake(self) -> None:
        """Schedule a batch, or send it at once if it is full."""
        if len(self._untold) >= BATCH_ANSWERS:
            self.flush()
        elif not self._due:
            self._due = True
            self._later(BATCH_S, self.flush)

    def _entries(self, uri: str) -> list[Entry]:
        return list({id(e): e for e in self._open.values() if e.document and e.document.uri == uri}.values())

    def _look(self, entry: Entry, seconds: int) -> None:
        """Measure how much of an answer and of its shadow is in the document now."""
        if seconds not in entry.looks or entry.document is None:
            return
        entry.looks.remove(seconds)
        now = around(entry.document, entry.line, entry.before)
        name = f"after_{seconds}s"
        known: dict[str, Any] = {name: standing(entry.text, entry.stood, now)}
        if entry.shadow is not None and entry.answer.shadow is not None:
            known["shadow"] = entry.answer.shadow.model_copy(
                update={name: standing(entry.shadow, entry.stood, now)}
            )
        self._tell(entry, **known)
        self._let_go(entry)

    def _let_go(self, entry: Entry) -> None:
        """Drop the texts of an answer that cannot change any more."""
        if entry.answer.fate and not entry.looks:
            for suggestion_id in entry.ids:
                self._open.pop(suggestion_id, None)


def around(document: Document, line: int, before: str) -> str:
    """Return the text of a document from a place on, as far as a suggestion may extend."""
    row = _row(document.lines, line, before)
    rows = document.lines[row : row + AROUND_LINES]
    column = common_prefix(rows[0], before) if rows else 0
    return unix_lines("".join(rows)[column : column + AROUND_CHARS])


def _row(lines: Sequence[str], line: int, before: str) -> int:
    """Return the nearest line that begins with ``before``, or ``line`` if there is none."""
    if before.strip():
        for distance in range(MOVED_LINES):
            for row in (line - distance, line + distance):
                if 0 <= row < len(lines) and lines[row].startswith(before):
                    return row
    return line


def standing(text: str, stood: str, now: str) -> Persistence:
    """Return how many characters of ``text`` persist in ``now``: from its start, and in common whole words.

    If ``stood``, the text at that place before the suggestion, is found in ``now``, only the text before it
    is compared; otherwise all of ``now``, less what ``stood`` itself has in common with ``text``.
    """
    end = now.rfind(stood[:ANCHOR_CHARS]) if stood else len(now)
    old_prefix, old_kept = (0, 0) if end >= 0 else _found(text, stood)
    prefix, kept = _found(text, now[:end] if end >= 0 else now)
    prefix = max(0, prefix - old_prefix)
    return Persistence(prefix_chars=prefix, kept_chars=max(prefix, kept - old_kept))


def _found(text: str, there: str) -> tuple[int, int]:
    """Return the length of the common prefix of ``text`` and ``there``, and of common runs (difflib)."""
    lines = there.split("\n")[: text.count("\n") + 1 + SLACK_LINES]
    there = "\n".join(lines)[: 2 * len(text) + SLACK_CHARS]
    words = _TOKEN.findall(text[:AROUND_CHARS])
    theirs = _TOKEN.findall(there)
    blocks = SequenceMatcher(None, words, theirs).get_matching_blocks()
    runs = ("".join(words[block.a : block.a + block.size]) for block in blocks)
    return common_prefix(text, there), sum(len(run) for run in runs if run.strip())


def is_key(edit: Edit) -> bool:
    """Whether an edit is one key: a character, or a line end with automatic indentation."""
    return edit.start is not None and (
        len(edit.text) == 1 or (edit.text[:1] in {"\n", "\r"} and not edit.text.strip())
    )


def moved(line: int, edit: Edit) -> int:
    """Return the number of a line after an edit. An edit that covers the line keeps it roughly in place."""
    if edit.start is None or edit.end is None or edit.start[0] >= line:
        return line
    added = len(split_lines(edit.text)) - 1
    if edit.end[0] > line:
        return min(line, edit.start[0] + added)
    return line + added - (edit.end[0] - edit.start[0])
