"""Dialect of Ollama's ``/api/generate`` with ``suffix``: the model's template builds the FIM prompt."""

from __future__ import annotations

import json
from typing import Any

from fimserver.engine.remote.dialect import (
    Call,
    Dialect,
    Piece,
    Probed,
    Question,
    ServerFacts,
    finish,
    kind_of,
)

CONTEXT_TOKENS = 4096  # Ollama's default; it truncates longer prompts silently


def recognise(found: Probed) -> ServerFacts | None:
    """Recognise ``/api/tags``, the list of pulled models."""
    tags = found.get("/api/tags")
    version = found.get("/api/version")
    if (
        not isinstance(tags, dict)
        or not isinstance(tags.get("models"), list)
        or not isinstance(version, dict)
    ):
        return None
    names = tuple(
        str(model["name"]) for model in tags["models"] if isinstance(model, dict) and "name" in model
    )
    return ServerFacts(f"Ollama {version.get('version', '')}".strip(), names, CONTEXT_TOKENS)


def call(question: Question) -> Call | None:
    if question.warm:
        return None
    request = question.request
    options: dict[str, Any] = {
        "num_predict": request.sampling.max_tokens,
        "temperature": request.sampling.temperature,
        "top_p": request.sampling.top_p,
        "seed": request.sampling.seed % 2**31,
    }
    context = question.context
    # Without a suffix Ollama would use its chat template; at the end of a file an empty line serves as one.
    body = {"model": question.model, "prompt": context.prefix, "suffix": context.suffix or "\n"}
    return Call("/api/generate", body | {"stream": True, "options": options})


def read(line: str) -> Piece | None:
    if not line:
        return None
    event = json.loads(line)
    if error := event.get("error"):
        return Piece(failed=kind_of(error))
    reason = finish(event.get("done_reason") or "stop") if event["done"] else None
    return Piece(
        str(event.get("response", "")),
        reason,
        tokens=event.get("eval_count"),
        prompt_tokens=event.get("prompt_eval_count"),
    )


DIALECT = Dialect(probes=("/api/tags", "/api/version"), recognise=recognise, call=call, read=read)
