"""What came of a replayed trace: requests, their suggestions and their times."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from fimserver.ab.items.client_model import Editor, PlannedRequest
from fimserver.ab.items.traces import Trace

Ending = Literal["shown", "late", "cancelled", "superseded", "empty", "failed"]


class ReplayedText(NamedTuple):
    """A suggestion. ``replace``: so many characters right of the cursor make way for it."""

    text: str
    replace: int


@dataclass(frozen=True)
class RequestOutcome:
    """Outcome of a request. Times are measured, in milliseconds since the start of the replay.

    ``shown``: there was text before the next key; ``late``: only after it, with nothing cancelled. ``facts``
    is what ``fimserver/explain`` gave right after the answer; empty where there was no answer, or it was
    about another one.
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
    """A trace as one arm went through it.

    ``lag_ms``: by so much a key came too late at worst, on a busy machine.
    """

    trace: Trace
    shots: tuple[RequestOutcome, ...]  # one for each request of the plan, in order
    keys: tuple[tuple[float, int], ...]  # when each change was sent, and how many characters it inserted
    seconds: float  # from the first event to the last answer
    lag_ms: float
    speed: float | None
    client: Editor
    route: str  # that is pinned, or "auto"
