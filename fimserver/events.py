"""Events that a window sends to its host: numbers, flags and hashes of suggestions, never text.

An answer is sent again whenever more is known about it; the newest record replaces the older ones, so sending
one twice has no effect.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fimserver.errors import InputError, first_problem
from fimserver.reasons import Reason

MAX_ANSWERS = 512
PROPENSITY = 0.5  # of either route in a block of a comparison
MAX_BATCH_BYTES = 1 << 20
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{0,64}$")]
Language = Annotated[str, Field(pattern=r"^[a-z0-9_+#-]{0,32}$")]  # our name of it; empty: not supported
Count = Annotated[int, Field(ge=0, lt=2**48)]
Ms = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
Fate = Literal["", "full", "partly", "left"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Persistence(_Record):
    """Characters of a suggestion in the document some time later, without those that were there before."""

    prefix_chars: Count  # common prefix
    kept_chars: Count  # anywhere, in whole words


class SuggestionEvent(_Record):
    """Fields shared by a shown suggestion and a shadow one, which is never shown."""

    route: Literal["", "dllm", "ar"] = ""
    model: Annotated[str, Field(max_length=200)] = ""
    reason: Reason  # why it ended, or why there is nothing
    chars: Count = 0
    lexemes: Count = 0
    total_ms: Ms = 0.0
    ttft_ms: Ms = 0.0
    after_10s: Persistence | None = None
    after_60s: Persistence | None = None  # both are taken earlier if the document is closed before


class AnswerRecord(SuggestionEvent):
    """One request and its outcome so far."""

    number: Count  # within the session
    at: Annotated[float, Field(ge=0, le=1e11, allow_inf_nan=False)]  # Unix seconds
    document: Hash = ""
    language: Language = ""
    source: Literal["", "model", "memory"] = ""
    policy: Annotated[str, Field(max_length=40)] = ""  # "blocks" and "shadow" are live comparisons
    propensity: float = Field(1.0, gt=0, le=1)
    bucket: Annotated[int, Field(ge=0, le=4)] | None = None  # of ``lengths.LABELS``
    block: Count = 0  # of a live comparison: five-minute blocks since 1970
    first: bool = False  # the first request of this document in its block
    confidence: Annotated[float, Field(ge=0, le=1)] | None = None  # of the model
    shown: bool = False
    fate: Fate = ""  # empty: unknown yet, or never shown
    accepted_chars: Count = 0
    typed_chars: Count = 0
    shadow: SuggestionEvent | None = None  # of the other route, never shown


class Batch(_Record):
    """``POST /v1/events``. ``keys``: typed characters by language; ``dropped``: answers never sent."""

    session: Hash
    answers: Annotated[tuple[AnswerRecord, ...], Field(max_length=MAX_ANSWERS)] = ()
    keys: Annotated[dict[Language, Count], Field(max_length=64)] = Field(default_factory=dict)
    dropped: Count = 0


def read_batch(data: bytes) -> Batch:
    """Parse a batch. Raises ``InputError`` with the field."""
    try:
        return Batch.model_validate_json(data)
    except ValidationError as error:
        raise InputError(first_problem(error, "body")) from None
