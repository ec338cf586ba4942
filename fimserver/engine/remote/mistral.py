"""Dialect of Mistral's ``/v1/fim/completions``, which streams the deltas of a message."""

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


def recognise(found: Probed) -> ServerFacts | None:
    """Recognise a list of models with the capability ``completion_fim``."""
    rows = rows_of(found.get("/v1/models")) or []
    if not any("completion_fim" in (model.get("capabilities") or {}) for model in rows):
        return None
    able = [model for model in rows if (model.get("capabilities") or {}).get("completion_fim")]
    lengths = [int(model.get("max_context_length") or 0) for model in able]
    return ServerFacts("Mistral", tuple(str(model["id"]) for model in able), min(lengths, default=0))


def call(question: Question) -> Call | None:
    if question.warm:  # the user would pay for it
        return None
    request = question.request
    body: dict[str, Any] = {
        "model": question.model,
        "prompt": question.context.prefix,
        "suffix": question.context.suffix,
        "max_tokens": request.sampling.max_tokens,
        "temperature": request.sampling.temperature,
        "top_p": request.sampling.top_p,
        "random_seed": request.sampling.seed % 2**31,
        "stream": True,
    }
    return Call("/v1/fim/completions", body)


def read(line: str) -> Piece | None:
    event = data_of(line)
    if event is None:
        return None
    if event.get("object") == "error" or event.get("error"):
        return Piece(failed=kind_of(event.get("error") or event))
    choice = event["choices"][0]
    usage = event.get("usage") or {}
    return Piece(
        str(choice["delta"].get("content") or ""),
        finish(choice.get("finish_reason")),
        tokens=usage.get("completion_tokens"),
        prompt_tokens=usage.get("prompt_tokens"),
    )


DIALECT = Dialect(probes=("/v1/models",), recognise=recognise, call=call, read=read)
