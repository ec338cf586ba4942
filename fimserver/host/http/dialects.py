"""Knows the shapes in which other clients ask for a middle. Knows nothing of engines.

llama.cpp's ``/infill`` (llama.vim, llama.vscode), Mistral's ``fim/completions`` (Continue, Zed, minuet), OpenAI's
``/v1/completions`` with a raw FIM prompt (Zed, cursortab, Continue, llm-ls). None of them says which document is meant:
llama.vim's ``id_slot`` is 0 for everybody. So no request takes another's place; hanging up stops one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from fimserver import __version__
from fimserver.cards import read_cards
from fimserver.errors import InputError, first_problem
from fimserver.host.http.fim_prompts import read_raw
from fimserver.host.http.responses import MISTRAL, OPENAI, Shape, llama_cpp
from fimserver.reasons import EXPLANATIONS
from fimserver.wire import MAX_CHOICES, MAX_STOPS, CompletionBody, EditorHints, Id, SnippetBody, Stop, read_body

if TYPE_CHECKING:
    from fimserver.host.http.app import Host

MAX_FILES = 64
MAX_FILE_CHARS = 64 * 1024
NO_SUFFIX = "<|endoftext|>"  # what Continue's provider for Inception sends where nothing follows
Reader = Callable[[bytes], tuple[CompletionBody, Shape]]
Milliseconds = Annotated[float | None, Field(ge=-1, le=120_000)]


class _DialectBody(BaseModel):
    """Fields that we do not know are ignored."""

    model_config = ConfigDict(frozen=True)


class _Extra(_DialectBody):
    """A part of another file. What else is said of it (llama.vim: a time) is ignored."""

    filename: Annotated[str, Field(max_length=1000)] = ""
    text: Annotated[str, Field(max_length=MAX_FILE_CHARS)]


class InfillBody(_DialectBody):
    """``POST /infill``. The two times together are the deadline, from when the request is there.

    llama.cpp counts ``t_max_predict_ms`` from the first token, ends only after a newline, and leaves ``t_max_prompt_ms``
    alone. -1 means our own default. ``samplers``, ``cache_prompt``, ``id_slot`` and ``lora`` mean nothing here; ``top_k``
    does where it is 1.
    """

    model: Id = "auto"
    input_prefix: str = ""
    prompt: str = ""  # of the cursor's line, behind the prefix
    input_suffix: str = ""
    input_extra: tuple[_Extra, ...] = Field((), max_length=MAX_FILES)
    n_predict: int = Field(-1, ge=-1, le=1024)  # 0 only warms the cache
    n_indent: int = Field(0, ge=0, le=1000)  # of an answer in one piece
    n_cmpl: int = Field(1, ge=1, le=MAX_CHOICES)
    temperature: float | None = Field(None, ge=0, le=2)
    top_k: int = Field(0, ge=-1)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int = Field(-1, ge=-1, lt=2**62)
    stop: Stop | Annotated[tuple[Stop, ...], Field(max_length=MAX_STOPS)] | None = None
    t_max_prompt_ms: Milliseconds = None
    t_max_predict_ms: Milliseconds = None
    stream: bool = False
    response_fields: Annotated[tuple[Id, ...], Field(max_length=64)] | None = None

    @property
    def deadline_ms(self) -> float | None:
        """``None`` where there is none: a warm-up's times are not meant for it, as llama.vim sends 1."""
        if self.n_predict == 0 or (self.t_max_predict_ms or 0) <= 0:
            return None
        return min(120_000.0, (self.t_max_predict_ms or 0) + max(0.0, self.t_max_prompt_ms or 0))


class FimBody(CompletionBody):
    """``POST /v1/fim/completions``: OpenAI's fields, the seed by Mistral's name."""

    random_seed: int | None = Field(None, ge=0, lt=2**62)


def _infill(data: bytes) -> tuple[CompletionBody, Shape]:
    try:
        asked = InfillBody.model_validate_json(data)
    except ValidationError as error:
        raise InputError(first_problem(error, "body")) from None
    known = EditorHints(
        deadline_ms=asked.deadline_ms,
        snippets=tuple(SnippetBody(path=extra.filename, text=extra.text) for extra in asked.input_extra if extra.text),
        idle=asked.n_predict == 0,
    )
    body = CompletionBody(
        model=asked.model,
        prompt=asked.input_prefix + asked.prompt,
        suffix=asked.input_suffix,
        max_tokens=asked.n_predict if asked.n_predict >= 0 else None,
        temperature=0.0 if asked.top_k == 1 else asked.temperature,
        top_p=asked.top_p,
        seed=asked.seed if asked.seed >= 0 else None,
        stop=asked.stop,
        n=asked.n_cmpl,
        stream=asked.stream,
        fimserver=known,
    )
    return body, llama_cpp(asked.response_fields, asked.n_indent)


def _fim(data: bytes) -> tuple[CompletionBody, Shape]:
    try:
        body = FimBody.model_validate_json(data)
    except ValidationError as error:
        raise InputError(first_problem(error, "body")) from None
    return plain(body.model_copy(update={"seed": body.seed if body.random_seed is None else body.random_seed})), MISTRAL


def _completions(data: bytes) -> tuple[CompletionBody, Shape]:
    return plain(read_body(data)), OPENAI


def plain(body: CompletionBody) -> CompletionBody:
    """The same request with prefix and suffix apart, where its prompt is a raw FIM prompt.

    It is never taken for one where a suffix is given; nor where the suffix is empty and the caller is one of ours, who
    sends the text of a file.
    """
    known = body.fimserver
    if body.suffix == NO_SUFFIX:
        body = body.model_copy(update={"suffix": ""})
    if body.suffix or (body.suffix is not None and known != EditorHints()):
        return body
    if (raw := read_raw(body.prompt)) is None:
        return body
    files = tuple(SnippetBody(path=path, text=text[:MAX_FILE_CHARS]) for path, text in raw.files[-MAX_FILES:])
    found = {"path": known.path or raw.path, "repo": known.repo or raw.repo[:200], "snippets": known.snippets or files}
    return body.model_copy(
        update={"prompt": raw.prefix, "suffix": raw.suffix, "fimserver": known.model_copy(update=found)},
    )


READERS: Mapping[str, Reader] = {
    "/v1/completions": _completions,
    "/v1/fim/completions": _fim,
    "/fim/completions": _fim,
    "/infill": _infill,
}


async def props(host: Host, _: HttpRequest) -> Response:
    """What llama.cpp tells of itself, as far as clients ask: how long a prompt may be. 503 as ``/health``."""
    state = host.scheduler.state
    if state is not None:
        message = host.scheduler.problem or EXPLANATIONS[state]
        return JSONResponse({"error": {"message": message, "type": "unavailable_error", "code": 503}}, 503)
    cards, names = read_cards(), list(dict.fromkeys(host.scheduler.served.values()))
    lengths = [cards[name].prompt_tokens + cards[name].max_new_tokens for name in names if name in cards]
    settings = {"default_generation_settings": {"n_ctx": min(lengths)}} if lengths else {}
    return JSONResponse(settings | {"total_slots": 1, "model_alias": names[0], "build_info": f"fimserver {__version__}"})
