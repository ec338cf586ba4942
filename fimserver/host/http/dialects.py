"""Request bodies of other clients, converted to a completion request.

llama.cpp's ``/infill`` (llama.vim, llama.vscode), Mistral's ``fim/completions`` (Continue, Zed, minuet),
OpenAI's ``/v1/completions`` with a raw FIM prompt (Zed, cursortab, Continue, llm-ls). None of them names the
document: llama.vim's ``id_slot`` is 0 for everybody. So no request supersedes another; disconnecting stops
one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated

from pydantic import AfterValidator, Field
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from fimserver import __version__
from fimserver.cards import read_cards
from fimserver.host.http.errors import error_response
from fimserver.host.http.fim_prompts import read_raw
from fimserver.host.http.responses import Shape, llama_cpp, mistral, openai
from fimserver.host.http.state import Host
from fimserver.json_body import RequestBody, read_json
from fimserver.reasons import EXPLANATIONS
from fimserver.types import MAX_DEADLINE_MS
from fimserver.wire import (
    MAX_CHOICES,
    MAX_FILE_CHARS,
    MAX_FILES,
    MAX_PATH_CHARS,
    CompletionBody,
    EditorHints,
    Id,
    Seed,
    SnippetBody,
    Stops,
    Temperature,
    Text,
    TokenLimit,
    TopP,
    read_body,
)

MAX_INDENT = 1000
NO_SUFFIX = "<|endoftext|>"  # sent by Continue's provider for Inception instead of an empty suffix
Reader = Callable[[bytes], tuple[CompletionBody, Shape]]
Milliseconds = Annotated[float, Field(ge=-1, allow_inf_nan=False)]  # -1: our own default


class _Extra(RequestBody):
    """A part of another file. Other fields (llama.vim: a time) are ignored."""

    filename: str = ""
    text: str


class InfillBody(RequestBody):
    """``POST /infill``. The deadline is the sum of the two times, counted from the arrival of the request.

    llama.cpp counts ``t_max_predict_ms`` from the first token, ends only after a newline, and ignores
    ``t_max_prompt_ms``. ``samplers``, ``cache_prompt``, ``id_slot`` and ``lora`` are ignored; ``top_k`` is
    used only if it is 1.
    """

    model: Id = "auto"
    input_prefix: Text = ""
    prompt: Text = ""  # the cursor's line up to the cursor; follows the prefix
    input_suffix: Text = ""
    input_extra: tuple[_Extra, ...] = ()
    n_predict: TokenLimit = None  # 0 only fills the prefix cache
    n_indent: Annotated[int, Field(ge=0), AfterValidator(lambda value: min(value, MAX_INDENT))] = 0
    n_cmpl: int = Field(1, ge=1, le=MAX_CHOICES)
    temperature: Temperature = None
    top_k: int = Field(0, ge=-1)
    top_p: TopP = None
    seed: Seed = None
    stop: Stops = ()
    t_max_prompt_ms: Milliseconds = 0.0
    t_max_predict_ms: Milliseconds = 0.0
    stream: bool = False
    response_fields: Annotated[tuple[Id, ...], Field(max_length=64)] | None = None

    @property
    def deadline_ms(self) -> float | None:
        """Deadline, or ``None``. A cache warm-up has none, although llama.vim sends 1 ms."""
        if self.n_predict == 0 or self.t_max_predict_ms <= 0:
            return None
        return min(MAX_DEADLINE_MS, self.t_max_predict_ms + max(0.0, self.t_max_prompt_ms))

    @property
    def snippets(self) -> tuple[SnippetBody, ...]:
        """The last files (llama.vim puts the newest last), without empty and very large ones."""
        files = [extra for extra in self.input_extra if 0 < len(extra.text) <= MAX_FILE_CHARS]
        return tuple(
            SnippetBody(path=file.filename[-MAX_PATH_CHARS:], text=file.text) for file in files[-MAX_FILES:]
        )


class FimBody(CompletionBody):
    """``POST /v1/fim/completions``: OpenAI's fields, and the seed under Mistral's name."""

    random_seed: Seed = None


def _infill(data: bytes) -> tuple[CompletionBody, Shape]:
    asked = read_json(InfillBody, data)
    hints = EditorHints(deadline_ms=asked.deadline_ms, snippets=asked.snippets, idle=asked.n_predict == 0)
    body = CompletionBody(
        model=asked.model,
        prompt=asked.input_prefix + asked.prompt,
        suffix=asked.input_suffix,
        max_tokens=asked.n_predict,
        temperature=0.0 if asked.top_k == 1 else asked.temperature,
        top_p=asked.top_p,
        seed=asked.seed,
        stop=asked.stop,
        n=asked.n_cmpl,
        stream=asked.stream,
        fimserver=hints,
    )
    return body, llama_cpp(asked.response_fields, asked.n_indent)


def _fim(data: bytes) -> tuple[CompletionBody, Shape]:
    body = read_json(FimBody, data)
    body = body.model_copy(update={"seed": body.seed if body.random_seed is None else body.random_seed})
    return plain(body), mistral(include_usage=body.stream_options.include_usage)


def _completions(data: bytes) -> tuple[CompletionBody, Shape]:
    body = read_body(data)
    return plain(body), openai(include_usage=body.stream_options.include_usage)


def plain(body: CompletionBody) -> CompletionBody:
    """Split a raw FIM prompt into prefix and suffix.

    A prompt with a suffix is not a raw one; nor is one with an empty suffix from our own front, which sends
    the text of a file.
    """
    hints = body.fimserver
    if body.suffix == NO_SUFFIX:
        body = body.model_copy(update={"suffix": ""})
    if body.suffix or (body.suffix is not None and hints != EditorHints()):
        return body
    if (raw := read_raw(body.prompt)) is None:
        return body
    files = tuple(SnippetBody(path=path, text=text[:MAX_FILE_CHARS]) for path, text in raw.files[-MAX_FILES:])
    found = {
        "path": hints.path or raw.path,
        "repo": hints.repo or raw.repo[:200],
        "snippets": hints.snippets or files,
    }
    hints = hints.model_copy(update=found)
    return body.model_copy(update={"prompt": raw.prefix, "suffix": raw.suffix, "fimserver": hints})


READERS: Mapping[str, Reader] = {
    "/v1/completions": _completions,
    "/v1/fim/completions": _fim,
    "/fim/completions": _fim,
    "/infill": _infill,
}


async def props(host: Host, _: HttpRequest) -> Response:
    """Return the llama.cpp properties that clients read: the context length. 503 as in ``/health``."""
    state = host.scheduler.state
    if state is not None:
        return error_response(503, host.scheduler.problem or EXPLANATIONS[state])
    cards = read_cards()
    names = list(dict.fromkeys(host.scheduler.served.values()))
    lengths = [cards[name].prompt_tokens + cards[name].max_new_tokens for name in names if name in cards]
    settings = {"default_generation_settings": {"n_ctx": min(lengths)}} if lengths else {}
    return JSONResponse(
        settings | {"total_slots": 1, "model_alias": names[0], "build_info": f"fimserver {__version__}"}
    )
