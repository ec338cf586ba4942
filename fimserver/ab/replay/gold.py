"""Gold text of a request: what the user typed at its position in the rest of the trace.

It is the text between two marks after 10 s of trace time, or at the end of the trace. Both marks are set at
the cursor when the request is sent; text typed there comes between them, and edits before or after move them.
An edit of the text right before the cursor ends the observation earlier, as the user no longer continues that
text: then the text between the marks just before that edit counts. So does closing the document.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fimserver.ab.items.client_model import PlannedRequest
from fimserver.ab.items.traces import Change, Close, Texts, Trace
from fimserver.types import unix_lines

HORIZON_MS = 10_000.0
BEFORE_CHARS = 240
AFTER_CHARS = 120  # shown in reports


@dataclass(frozen=True)
class GoldText:
    """Gold text of a request. Line ends are newlines.

    ``rest``: the rest of the line after the text. ``inside``: for each earlier request in whose gold text
    this one's cursor is, the number of characters between the two cursors.
    """

    text: str
    rest: str
    before: str
    after: str
    language: str
    inside: Mapping[int, int]


@dataclass
class _Marks:
    """Marks of a request that is being followed, in characters from the start of its document."""

    request: PlannedRequest
    left: int
    right: int
    until_ms: float

    def is_lost(self, start: int, end: int) -> bool:
        """Whether a replacement changes the text right before the marks."""
        return start < self.left <= end

    def move(self, start: int, end: int, added: int) -> None:
        """Move the marks after a replacement of ``start`` to ``end`` for which ``is_lost`` is false."""
        grown = added - (end - start)
        if end < self.left:
            self.left += grown
            self.right += grown
        elif start <= self.right:
            self.right = self.right + grown if end <= self.right else start + added


def settle(trace: Trace, requests: Sequence[PlannedRequest]) -> tuple[GoldText, ...]:
    """Return the gold text of each request. ``requests`` are numbered from 0, in order."""
    follower = _Follower(trace, requests)
    return tuple(follower.found[request.number] for request in requests)


class _Follower:
    """Follows all requests in one pass over a trace.

    Cost: a request reads its document twice; an edit checks the requests of the last 10 s.
    """

    def __init__(self, trace: Trace, requests: Sequence[PlannedRequest]) -> None:
        self._texts = Texts()
        self._active: list[_Marks] = []
        self.found: dict[int, GoldText] = {}
        asked = defaultdict(list)
        for request in requests:
            asked[request.event].append(request)
        for index, event in enumerate(trace.events):
            self._end(*[marks for marks in self._active if event.t_ms > marks.until_ms])
            if isinstance(event, Change):
                self._change(event)
            else:
                if isinstance(event, Close):
                    self._end(*self._at(event.doc))
                self._texts.play(event)
            for request in asked[index]:
                self._begin(request, event.t_ms)
        self._end(*self._active)

    def _at(self, doc: int) -> list[_Marks]:
        return [marks for marks in self._active if marks.request.doc == doc]

    def _change(self, event: Change) -> None:
        for patch in event.edits:
            start = self._texts.offset(event.doc, patch.line, patch.char)
            end = self._texts.offset(event.doc, patch.end_line, patch.end_char)
            self._end(*[marks for marks in self._at(event.doc) if marks.is_lost(start, end)])
            for marks in self._at(event.doc):
                marks.move(start, end, len(patch.text))
            self._texts.patch(event.doc, patch)

    def _begin(self, request: PlannedRequest, now_ms: float) -> None:
        document = self._texts.documents[request.doc]
        place = self._texts.offset(request.doc, request.line, request.char)
        text = document.text
        around = [marks for marks in self._at(request.doc) if marks.left <= place <= marks.right]
        self.found[request.number] = GoldText(
            text="",
            rest="",
            before=unix_lines(text[:place][-BEFORE_CHARS:]),
            after=unix_lines(text[place : place + AFTER_CHARS]),
            language=document.language,
            inside={marks.request.number: len(unix_lines(text[marks.left : place])) for marks in around},
        )
        self._active.append(_Marks(request, place, place, now_ms + HORIZON_MS))

    def _end(self, *ended: _Marks) -> None:
        for marks in ended:
            text = self._texts.documents[marks.request.doc].text
            old = self.found[marks.request.number]
            rest = unix_lines(text[marks.right :]).split("\n", 1)[0]
            self.found[marks.request.number] = GoldText(
                unix_lines(text[marks.left : marks.right]),
                rest,
                old.before,
                old.after,
                old.language,
                old.inside,
            )
            self._active.remove(marks)
