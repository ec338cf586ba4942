"""Outcome of a replayed trace: requests, their suggestions and their times."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from fimserver.ab.items.client_model import Editor, PlannedRequest
from fimserver.ab.items.traces import Trace

Ending = Literal["shown", "late", "cancelled", "superseded", "empty", "failed"]


class ReplayedText(NamedTuple):
    """A suggestion. ``replace``: number of characters after the cursor that it replaces."""

    text: str
    replace: int


@dataclass(frozen=True)
class RequestOutcome:
    """Outcome of a request. Times are milliseconds since the start of the replay.

    ``shown``: there was text before the next key; ``late``: only after it, without cancellation. ``facts``:
    result of ``fimserver/explain`` right after the answer; empty without an answer or if it describes another
    request.
    """

    request: PlannedRequest
    key_ms: float  # the key before it
    asked_ms: float
    answered_ms: float
    ending: Ending
    texts: tuple[ReplayedText, ...]
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Replayed:
    """Replay of a trace with one arm. ``lag_ms``: the largest delay of a key, on a busy machine."""

    trace: Trace
    shots: tuple[RequestOutcome, ...]  # one for each request of the plan, in order
    keys: tuple[tuple[float, int], ...]  # time of each change in ms, and number of inserted characters
    seconds: float  # from the first event to the last answer
    lag_ms: float
    speed: float | None
    client: Editor
    route: str  # the pinned one, or "auto"
