"""Wire format between front and host: a completion request, its answer, and the events of a stream.

The format is OpenAI's ``/v1/completions`` with ``suffix`` and one extension object, ``fimserver``, for what
an editor adds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from fimserver.errors import InputError
from fimserver.json_body import RequestBody, read_json
from fimserver.reasons import Reason
from fimserver.sse import server_sent
from fimserver.types import (
    MAX_DEADLINE_MS,
    MAX_TOKENS,
    SEEDS,
    Decision,
    Drafting,
    Features,
    Prefill,
    PromptUse,
    RoutePin,
    Slot,
    Snippet,
    StopRule,
)

MAX_BODY_BYTES = 8 * 1024 * 1024
MAX_CHOICES = 8
MAX_STOPS = 256
MAX_STOP_CHARS = 4000
MAX_FILES = 64
MAX_FILE_CHARS = 64 * 1024
MAX_PATH_CHARS = 1000
NOT_OURS = "the server that answered is not a fimserver host: check --connect"

Id = Annotated[str, Field(max_length=200)]


def _only_entry(value: Any) -> Any:
    """Unwrap a list with one prompt: OpenAI's API accepts lists."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _stop_list(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _seed(value: int | None) -> int | None:
    """Map any integer to a valid seed; -1 (llama.cpp) means none."""
    return None if value is None or value == -1 else value % SEEDS


def _token_limit(value: int | None) -> int | None:
    """Clamp to our limit, as other servers do; -1 (llama.cpp, LM Studio) means none."""
    return None if value is None or value == -1 else min(value, MAX_TOKENS)


def _deadline_ms(value: float | None) -> float | None:
    return None if value is None else min(value, MAX_DEADLINE_MS)


Text = Annotated[str, BeforeValidator(_only_entry)]
Stops = Annotated[
    tuple[Annotated[str, Field(max_length=MAX_STOP_CHARS)], ...],
    Field(max_length=MAX_STOPS),
    BeforeValidator(_stop_list),
]
Seed = Annotated[int | None, AfterValidator(_seed)]
TokenLimit = Annotated[int | None, Field(ge=-1), AfterValidator(_token_limit)]
DeadlineMs = Annotated[float | None, Field(gt=0, allow_inf_nan=False), AfterValidator(_deadline_ms)]
Temperature = Annotated[float | None, Field(ge=0, le=2)]
TopP = Annotated[float | None, Field(ge=0, le=1)]


class SnippetBody(RequestBody):
    """A part of another file."""

    path: Annotated[str, Field(max_length=MAX_PATH_CHARS)]
    text: Annotated[str, Field(max_length=MAX_FILE_CHARS)]

    def snippet(self) -> Snippet:
        return Snippet(self.path, self.text)


class EditorHints(RequestBody):
    """Fields that an editor adds.

    ``document`` and ``session`` are opaque ids: the newest request of a pair supersedes the older one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    route: RoutePin = "auto"
    stop: StopRule | None = None
    deadline_ms: DeadlineMs = None
    session: Id = ""
    document: Id = ""
    path: Annotated[str, Field(max_length=MAX_PATH_CHARS)] = ""
    repo: Id = ""
    snippets: tuple[SnippetBody, ...] = Field((), max_length=MAX_FILES)
    lookup: tuple[SnippetBody, ...] = Field((), max_length=MAX_FILES)  # for drafts only, not in the prompt
    typed_chars: int = Field(0, ge=0, le=64 * 1024)
    features: Features | None = None
    idle: bool = False  # run it only while nothing else waits
    explicit: bool = False  # requested by the user; ends a pause of the host
    preview: bool = False  # a stream also carries the canvas of each denoising step


class StreamOptions(RequestBody):
    """OpenAI's options of a stream."""

    include_usage: bool = False


class CompletionBody(RequestBody):
    """``POST /v1/completions``. ``max_tokens`` 0 only fills the prefix cache. Unknown fields are ignored."""

    model: Id = "auto"
    prompt: Text
    suffix: Text | None = None
    max_tokens: TokenLimit = None
    temperature: Temperature = None
    top_p: TopP = None
    seed: Seed = None
    stop: Stops = ()
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    echo: Literal[False] = False
    fimserver: EditorHints = EditorHints()

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop strings: they end a middle and are not part of it."""
        return tuple(stop for stop in self.stop if stop)

    def with_hints(self, **changes: Any) -> CompletionBody:
        """Return the same request with some of the editor's hints changed."""
        return self.model_copy(update={"fimserver": self.fimserver.model_copy(update=changes)})


def read_body(data: bytes) -> CompletionBody:
    """Parse a completion request. Raises ``InputError`` with the field."""
    return read_json(CompletionBody, data)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class Usage(_Frozen):
    """Measurements of a choice by the host. ``route`` is empty if the request never ran."""

    route: Literal["", "dllm", "ar"] = ""
    model: str = ""
    reason: Reason
    tokens: int = 0
    forwards: int = 0
    queue_ms: float = 0.0
    ttft_ms: float = 0.0
    total_ms: float = 0.0
    prefill: Prefill = Prefill()
    prompt: PromptUse | None = None
    decision: Decision | None = None  # ``None`` if the request never ran
    drafting: Drafting | None = None  # of the ar route
    confidence: float | None = None  # geometric mean probability of the tokens under the model
    chance: float | None = None  # probability of acceptance; ``None`` without calibration


class _Choice(_Frozen):
    index: int = 0
    text: str = ""


class CompletionChunk(_Frozen):
    """One event of a stream: text added to a choice, a canvas for display, or the end of a choice."""

    index: int = 0
    text: str = ""
    canvas: tuple[Slot, ...] = ()
    usage: Usage | None = None
    error: str = ""
    model: str = ""  # that wrote the text

    def sse(self, request_id: str, created: int = 0) -> bytes:
        """Encode as a server-sent event in OpenAI's format. ``created``: Unix seconds; 0 omits the field."""
        choice: dict[str, Any] = {
            "index": self.index,
            "text": self.text,
            "finish_reason": finish_reason(self.usage),
        }
        event: dict[str, Any] = {"id": request_id, "object": "text_completion", "choices": [choice]}
        if created:
            event["created"] = created
        if model := self.usage.model if self.usage else self.model:
            event["model"] = model
        if self.usage:
            event["fimserver"] = self.usage.model_dump()
        if self.canvas:
            event["canvas"] = [asdict(slot) for slot in self.canvas]
        if self.error:
            event["error"] = {"message": self.error}
        return server_sent(event)


class _Event(BaseModel):
    choices: tuple[_Choice, ...] = Field(min_length=1)
    fimserver: Usage | None = None
    canvas: tuple[Slot, ...] = ()
    error: dict[str, str] = Field(default_factory=dict)


def read_piece(line: str) -> CompletionChunk | None:
    """Parse a line of a stream; ``None`` unless it has a choice.

    Raises ``InputError`` for another server's event.
    """
    if not line.startswith("data: {"):
        return None
    try:
        event = _Event.model_validate_json(line.removeprefix("data: "))
    except ValidationError:
        raise InputError(NOT_OURS) from None
    choice = event.choices[0]
    error = event.error.get("message", "")
    return CompletionChunk(
        index=choice.index, text=choice.text, canvas=event.canvas, usage=event.fimserver, error=error
    )


class Middle(_Frozen):
    """One choice of an answer. ``index``: its number among the requested choices."""

    text: str
    usage: Usage
    index: int = 0


class Answer(_Frozen):
    """Middles, or the reason why there are none."""

    middles: tuple[Middle, ...] = ()
    reason: Reason | None = None
    message: str = ""


class _Collected(_Frozen):
    choices: tuple[_Choice, ...]
    fimserver: tuple[Usage, ...]
    error: dict[str, str] = Field(default_factory=dict)


def read_answer(data: bytes) -> Answer:
    """Parse a whole answer. Raises ``InputError`` for an answer of another server."""
    try:
        got = _Collected.model_validate_json(data)
        middles = tuple(
            Middle(text=c.text, usage=u, index=c.index)
            for c, u in zip(got.choices, got.fimserver, strict=True)
        )
    except ValueError:
        raise InputError(NOT_OURS) from None
    return _answer(middles, got.error.get("message", ""))


def gather(chunks: Iterable[CompletionChunk]) -> Answer:
    """Fold a stream of chunks into an answer: the finished choices, and the first error message."""
    texts: dict[int, str] = {}
    usages: dict[int, Usage] = {}
    message = ""
    for chunk in chunks:
        texts[chunk.index] = texts.get(chunk.index, "") + chunk.text
        if chunk.usage:
            usages[chunk.index] = chunk.usage
        message = message or chunk.error
    middles = tuple(
        Middle(text=texts[index], usage=usage, index=index) for index, usage in sorted(usages.items())
    )
    return _answer(middles, message)


def _answer(middles: tuple[Middle, ...], message: str) -> Answer:
    return Answer(middles=middles, reason=None if middles else Reason.FAILED, message=message)


def finish_reason(usage: Usage | None) -> str | None:
    """Return OpenAI's ``finish_reason``: ``length`` if a limit cut the middle, else ``stop``."""
    if usage is None:
        return None
    return "length" if usage.reason in {Reason.LENGTH, Reason.DEADLINE} else "stop"
