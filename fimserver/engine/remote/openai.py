"""Dialect of OpenAI's completions (vLLM, SGLang, LM Studio), with a raw FIM prompt or with ``suffix``."""

from __future__ import annotations

from typing import Any

from fimserver.engine.remote.dialect import (
    Call,
    Dialect,
    Piece,
    Probed,
    Question,
    ServerFacts,
    data_of,
    finish,
    kind_of,
    rows_of,
)
from fimserver.engine.remote.template import raw_prompt
from fimserver.errors import NoFimError

PATH = "/v1/completions"
# Servers by ``owned_by`` in their list of models.
SOFTWARE = {"vllm": "vLLM", "sglang": "SGLang", "organization_owner": "LM Studio", "llamacpp": "llama.cpp"}
# Servers that omit special tokens from the text, so that stop strings miss them, unless told otherwise.
SHOWS_SPECIALS = frozenset({"vLLM", "SGLang"})


def recognise(found: Probed) -> ServerFacts | None:
    """Recognise OpenAI's list of models."""
    models = rows_of(found.get("/v1/models"))
    if models is None:
        return None
    named = [model for model in models if model.get("id")]
    owner = str(named[0].get("owned_by", "")) if named else ""
    lengths = [int(m.get("max_model_len") or (m.get("meta") or {}).get("n_ctx") or 0) for m in named]
    names = tuple(str(model["id"]) for model in named)
    context = min(lengths, default=0) or _lm_studio_context(found.get("/api/v0/models"))
    return ServerFacts(SOFTWARE.get(owner, "OpenAI's API"), names, context)


def _lm_studio_context(listed: Any) -> int:
    """Return the shortest context of the loaded models; 0 if it is unknown."""
    loaded = [model for model in rows_of(listed) or () if model.get("state") == "loaded"]
    return min((int(model.get("loaded_context_length") or 0) for model in loaded), default=0)


def call(question: Question) -> Call | None:
    request = question.request
    body: dict[str, Any] = {
        "model": question.model,
        "max_tokens": 1 if question.warm else request.sampling.max_tokens,
        "temperature": request.sampling.temperature,
        "top_p": request.sampling.top_p,
        "seed": request.sampling.seed,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if question.remote.suffix:
        return Call(PATH, body | {"prompt": question.context.prefix, "suffix": question.context.suffix})
    if question.fim is None:
        raise NoFimError(
            f"no card has the FIM markers of {question.model or 'its model'}: "
            "set [fim], or suffix = true under [remote], in a card"
        )
    if question.software in SHOWS_SPECIALS:
        body |= {"stop": list(question.fim.stops), "skip_special_tokens": False}
    return Call(PATH, body | {"prompt": raw_prompt(question.context, question.fim)})


def read(line: str) -> Piece | None:
    event = data_of(line)
    if event is None:
        return None
    if error := event.get("error"):
        return Piece(failed=kind_of(error))
    usage = event.get("usage") or {}
    choice = (event["choices"] or [{}])[0]
    return Piece(
        str(choice.get("text") or ""),
        finish(choice.get("finish_reason")),
        tokens=usage.get("completion_tokens"),
        prompt_tokens=usage.get("prompt_tokens"),
    )


def count(text: str, model: str) -> Call:
    """Ask for a token count, with the fields of both vLLM and llama.cpp."""
    return Call("/tokenize", {"model": model, "prompt": text, "content": text, "add_special_tokens": False})


def counted(answer: Any) -> int:
    return int(answer["count"]) if "count" in answer else len(answer["tokens"])


DIALECT = Dialect(
    probes=("/v1/models", "/api/v0/models"),
    recognise=recognise,
    call=call,
    read=read,
    count=count,
    counted=counted,
)
