"""Knows the shape of a request and of an answer between front and host. Knows nothing of sockets.

The OpenAI ``/v1/completions`` shape, with ``suffix``, and one extension object, ``fimserver``, for what an editor knows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fimserver.errors import InputError, first_problem
from fimserver.reasons import Reason
from fimserver.types import Decision, Drafting, Features, Prefill, Slot, Snippet, StopRule

MAX_BODY_BYTES = 8 * 1024 * 1024
MAX_CHOICES = 8
MAX_STOPS = 16
NOT_OURS = "what answered is no host of fimserver: is --connect right?"
Id = Annotated[str, Field(max_length=200)]
Stop = Annotated[str, Field(max_length=200)]


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True)


class SnippetBody(_Body):
    """A piece of another file."""

    path: Annotated[str, Field(max_length=1000)]
    text: Annotated[str, Field(max_length=64 * 1024)]

    def snippet(self) -> Snippet:
        return Snippet(self.path, self.text)


class EditorHints(_Body):
    """What an editor knows. ``document`` and ``session`` are opaque ids: the newest request of a pair wins."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    route: Literal["auto", "dllm", "ar"] = "auto"
    stop: StopRule | None = None
    deadline_ms: float | None = Field(None, gt=0, le=120_000)
    session: Id = ""
    document: Id = ""
    path: Annotated[str, Field(max_length=1000)] = ""
    repo: Id = ""
    snippets: tuple[SnippetBody, ...] = Field((), max_length=64)
    typed_chars: int = Field(0, ge=0, le=64 * 1024)
    features: Features | None = None
    idle: bool = False  # only while nothing else is to be done
    preview: bool = False  # a stream also has the canvas of each denoising step


class CompletionBody(_Body):
    """``POST /v1/completions``. ``max_tokens`` 0 only warms the cache. Fields that we do not know are ignored."""

    model: Id = "auto"
    prompt: str
    suffix: str | None = None
    max_tokens: int | None = Field(None, ge=0, le=1024)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=0, lt=2**62)
    stop: Stop | Annotated[tuple[Stop, ...], Field(max_length=MAX_STOPS)] | None = None
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    stream: bool = False
    fimserver: EditorHints = EditorHints()

    @property
    def stops(self) -> tuple[str, ...]:
        """Strings that end a middle; they are not part of it."""
        stops = (self.stop,) if isinstance(self.stop, str) else self.stop or ()
        return tuple(stop for stop in stops if stop)


def read_body(data: bytes) -> CompletionBody:
    """Raises ``InputError`` that names the field."""
    try:
        return CompletionBody.model_validate_json(data)
    except ValidationError as error:
        raise InputError(first_problem(error, "body")) from None


class Usage(_Body):
    """What a choice took, measured by the host."""

    route: Literal["dllm", "ar"]
    model: str
    reason: Reason
    tokens: int = 0
    forwards: int = 0
    queue_ms: float = 0.0
    ttft_ms: float = 0.0
    total_ms: float = 0.0
    prefill: Prefill = Prefill()
    decision: Decision | None = None  # why this route; ``None`` where it never ran
    drafting: Drafting | None = None  # of the ar route


# Ends of lines to many a reader, httpx among them, that JSON leaves as they are.
LINE_ENDS = str.maketrans({mark: f"\\u{ord(mark):04x}" for mark in "\x85\u2028\u2029"})


def server_sent(event: dict[str, Any]) -> bytes:
    """An event of a stream, which is one line."""
    said = json.dumps(event, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return b"data: " + said.translate(LINE_ENDS).encode("utf-8", "replace") + b"\n\n"


class _Choice(_Body):
    index: int = 0
    text: str = ""


class CompletionChunk(_Body):
    """One event of a stream: text that was added to a choice, a canvas to look at, or how a choice ended."""

    index: int = 0
    text: str = ""
    canvas: tuple[Slot, ...] = ()
    usage: Usage | None = None
    error: str = ""

    def sse(self, request_id: str) -> bytes:
        """As a server-sent event in the OpenAI shape."""
        choice: dict[str, Any] = {"index": self.index, "text": self.text, "finish_reason": finish_reason(self.usage)}
        event: dict[str, Any] = {"id": request_id, "object": "text_completion", "choices": [choice]}
        if self.usage:
            event |= {"model": self.usage.model, "fimserver": self.usage.model_dump()}
        if self.canvas:
            event["canvas"] = [asdict(slot) for slot in self.canvas]
        if self.error:
            event["error"] = {"message": self.error}
        return server_sent(event)


DONE = b"data: [DONE]\n\n"


class _Event(BaseModel):
    choices: tuple[_Choice, ...] = Field(min_length=1)
    fimserver: Usage | None = None
    canvas: tuple[Slot, ...] = ()
    error: dict[str, str] = Field(default_factory=dict)


def read_piece(line: str) -> CompletionChunk | None:
    """What a line of a stream says, ``None`` where it is no event with a choice. Raises ``InputError`` where it is not ours."""
    if not line.startswith("data: {"):
        return None
    try:
        event = _Event.model_validate_json(line.removeprefix("data: "))
    except ValidationError:
        raise InputError(NOT_OURS) from None
    choice = event.choices[0]
    error = event.error.get("message", "")
    return CompletionChunk(index=choice.index, text=choice.text, canvas=event.canvas, usage=event.fimserver, error=error)


class Middle(_Body):
    """One choice of an answer. ``index``: its number among the choices of the request."""

    text: str
    usage: Usage
    index: int = 0


class Answer(_Body):
    """What came back: middles, or the reason why there are none."""

    middles: tuple[Middle, ...] = ()
    reason: Reason | None = None
    message: str = ""


class _Collected(_Body):
    choices: tuple[_Choice, ...]
    fimserver: tuple[Usage, ...]
    error: dict[str, str] = Field(default_factory=dict)


def read_answer(data: bytes) -> Answer:
    """An answer in one piece. Raises ``InputError`` where it is not ours."""
    try:
        got = _Collected.model_validate_json(data)
        middles = tuple(Middle(text=c.text, usage=u, index=c.index) for c, u in zip(got.choices, got.fimserver, strict=True))
    except ValueError:
        raise InputError(NOT_OURS) from None
    return _answer(middles, got.error.get("message", ""))


def gather(chunks: Iterable[CompletionChunk]) -> Answer:
    """Fold a stream of chunks into an answer: the choices that ended, and the first error."""
    texts: dict[int, str] = {}
    usages: dict[int, Usage] = {}
    message = ""
    for chunk in chunks:
        texts[chunk.index] = texts.get(chunk.index, "") + chunk.text
        if chunk.usage:
            usages[chunk.index] = chunk.usage
        message = message or chunk.error
    middles = tuple(Middle(text=texts[index], usage=usage, index=index) for index, usage in sorted(usages.items()))
    return _answer(middles, message)


def _answer(middles: tuple[Middle, ...], message: str) -> Answer:
    return Answer(middles=middles, reason=None if middles else Reason.FAILED, message=message)


def finish_reason(usage: Usage | None) -> str | None:
    """OpenAI's word for it: ``length`` where the limit cut the middle, else ``stop``."""
    if usage is None:
        return None
    return "length" if usage.reason in {Reason.LENGTH, Reason.DEADLINE} else "stop"
