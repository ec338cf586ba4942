"""Dialect of llama.cpp's ``/infill``: the server builds the prompt, snippets go into ``input_extra``."""

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
    """Recognise ``/props`` with the settings of a slot."""
    props = found.get("/props")
    if (
        not isinstance(props, dict)
        or "default_generation_settings" not in props
        or "total_slots" not in props
    ):
        return None
    context = int(props["default_generation_settings"].get("n_ctx") or 0)
    names = [str(row["id"]) for row in rows_of(found.get("/v1/models")) or () if "id" in row]
    if not names and (alias := props.get("model_alias") or props.get("model_path")):
        names = [str(alias)]
    return ServerFacts(f"llama.cpp {props.get('build_info', '')}".strip(), tuple(names), context)


def call(question: Question) -> Call | None:
    request = question.request
    context = question.context
    body: dict[str, Any] = {
        "model": question.model,
        "input_prefix": context.prefix,
        "input_suffix": context.suffix,
        "input_extra": [{"filename": each.path, "text": each.text} for each in context.snippets],
        "n_predict": 0 if question.warm else request.sampling.max_tokens,
        "temperature": request.sampling.temperature,
        "top_p": request.sampling.top_p,
        "seed": request.sampling.seed % 2**32,
        "cache_prompt": True,
        "stream": True,
    }
    return Call("/infill", body)


def read(line: str) -> Piece | None:
    event = data_of(line)
    if event is None:
        return None
    if error := event.get("error"):
        return Piece(failed=kind_of(error))
    if "content" not in event and "message" in event:  # of a line `error: {...}`
        return Piece(failed=kind_of(event))
    reason = finish(event.get("stop_type") or "eos") if event["stop"] else None
    return Piece(
        str(event["content"]),
        reason,
        tokens=event.get("tokens_predicted"),
        prompt_tokens=event.get("tokens_evaluated"),
    )


DIALECT = Dialect(
    probes=("/props", "/v1/models"),
    recognise=recognise,
    call=call,
    read=read,
    count=lambda text, _model: Call("/tokenize", {"content": text}),
    counted=lambda answer: len(answer["tokens"]),
)
