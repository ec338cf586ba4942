"""Model of an editor: when it sends requests while a trace is replayed.

As measured, VS Code 1.139 asks 32 to 46 ms after a change and cancels with the next key; Neovim 0.12 asks
200 ms after the last key and cancels nothing. If the trace contains requests, those are replayed instead.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from fimserver.ab.items.traces import Change, Close, Event, Open, Patch, SuggestionRequested, Trace
from fimserver.front.documents.mirror import split_lines

Editor = Literal["vscode", "neovim"]
ASK_AFTER_MS: Mapping[Editor, float] = {"vscode": 40.0, "neovim": 200.0}
LONGEST_PAUSE_MS = 2000.0  # longer pauses are shortened to this


@dataclass(frozen=True)
class PlannedRequest:
    """A request to send. The same for every arm, so that ``number`` pairs them."""

    number: int
    event: int  # index in the trace of the event that it follows
    doc: int
    line: int
    char: int
    invoked: bool = False


class Step(NamedTuple):
    """An action at ``due_ms`` since the start, at speed 1."""

    due_ms: float
    what: Open | Change | Close | PlannedRequest


def plan(trace: Trace, client: Editor) -> tuple[Step, ...]:
    """Return all steps, in order.

    For a trace without requests, each change that inserts text is followed by a request at the end of that
    text, unless the next event comes first.
    """
    dues = list(itertools.accumulate(min(LONGEST_PAUSE_MS, gap) for gap in _gaps(trace.events)))
    has_requests = any(isinstance(event, SuggestionRequested) for event in trace.events)
    numbers = itertools.count()
    steps = []
    for index, (event, due) in enumerate(zip(trace.events, dues, strict=True)):
        if isinstance(event, SuggestionRequested):
            request = PlannedRequest(next(numbers), index, event.doc, event.line, event.char, event.invoked)
            steps.append(Step(due, request))
            continue
        steps.append(Step(due, event))
        asks = not has_requests and isinstance(event, Change) and event.edits[-1].text
        at = due + ASK_AFTER_MS[client]
        if asks and isinstance(event, Change) and (index + 1 == len(dues) or at < dues[index + 1]):
            steps.append(Step(at, PlannedRequest(next(numbers), index, event.doc, *_end_of(event.edits[-1]))))
    return tuple(steps)


def _gaps(events: Sequence[Event]) -> Iterator[float]:
    yield 0.0
    for before, after in itertools.pairwise(events):
        yield after.t_ms - before.t_ms


def _end_of(patch: Patch) -> tuple[int, int]:
    """Return the position where the inserted text ends."""
    lines = split_lines(patch.text)
    return patch.line + len(lines) - 1, len(lines[-1]) + (patch.char if len(lines) == 1 else 0)
