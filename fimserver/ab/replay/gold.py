"""Gold text of a request: what the rest of the trace leaves at its place.

The gold text of a request is the text between two marks 10 s of trace time later, or at the end of the trace.
Both marks are set at the cursor when the request is sent. Text typed there comes between them; edits before
or after them move them. An edit that changes the text right before the cursor ends it sooner, as then nobody
continues that text: the text between the marks just before that edit counts. The closing of the document ends
it in the same way.
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
AFTER_CHARS = 120  # for people


@dataclass(frozen=True)
class GoldText:
    """What the trace leaves at the place of a request. Line ends are newlines.

    ``rest``: the rest of the line after the text. ``inside``: how many characters after the cursors of
    earlier requests this one's is, where it is within what was typed there.
    """

    text: str
    rest: str
    before: str
    after: str
    language: str
    inside: Mapping[int, int]


@dataclass
class _Marks:
    """The place of one request while it is followed, in characters from the start of its document."""

    request: PlannedRequest
    left: int
    right: int
    until_ms: float

    def is_lost(self, start: int, end: int) -> bool:
        """Whether a replacement changes the text right before the place."""
        return start < self.left <= end

    def move(self, start: int, end: int, added: int) -> None:
        """Where the marks are after a replacement of ``start`` to ``end`` that does not lose them."""
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
    """Goes through a trace once.

    Cost: a request reads its document twice, an edit looks at the places of 10 s.
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
