"""Answers in the shapes that clients read: OpenAI's, Mistral's, llama.cpp's.

A number that was not measured is left out, never guessed. ``prompt_tokens`` and ``prompt_n`` count the tokens
that had to be computed, without those in the prefix cache.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from fimserver.reasons import ENDED, Reason
from fimserver.sse import DONE, server_sent
from fimserver.wire import CompletionChunk, Usage, finish_reason, gather

JsonObject = dict[str, Any]
STOP_TYPES = dict.fromkeys(ENDED, "word") | {
    Reason.END: "eos",
    Reason.EMPTY: "eos",
    Reason.LENGTH: "limit",
    Reason.DEADLINE: "limit",
}


class Stamp(NamedTuple):
    """Fields that all events of one answer share. ``created`` is in Unix seconds."""

    request_id: str
    created: int


class Shape(NamedTuple):
    """How an answer is written.

    ``event``: one chunk of a stream; ``whole``: all chunks in one piece, given the number of requested
    choices; ``end``: what follows the last event, given the usage of each choice.
    """

    event: Callable[[CompletionChunk, Stamp], bytes]
    whole: Callable[[Sequence[CompletionChunk], Stamp, int], Any]
    end: Callable[[Sequence[Usage], Stamp], bytes]


def _error(message: str) -> JsonObject:
    """Return the ``error`` field. The status stays 200, so that an editor shows no dialog."""
    return {"error": {"message": message}} if message else {}


def _openai(chunks: Sequence[CompletionChunk], stamp: Stamp, _choices: int) -> JsonObject:
    answer = gather(chunks)
    usages = [middle.usage for middle in answer.middles]
    return {
        "id": stamp.request_id,
        "object": "text_completion",
        "created": stamp.created,
        "model": usages[0].model if usages else "",
        "choices": [
            {"index": middle.index, "text": middle.text, "finish_reason": finish_reason(middle.usage)}
            for middle in answer.middles
        ],
        "usage": _counted(usages),
        "fimserver": [usage.model_dump() for usage in usages],
    } | _error(answer.message)


def _openai_event(chunk: CompletionChunk, stamp: Stamp) -> bytes:
    return chunk.sse(stamp.request_id, stamp.created)


def _openai_end(usages: Sequence[Usage], stamp: Stamp, kind: str, *, include_usage: bool) -> bytes:
    """Return ``[DONE]``, after an event with the token counts if the client asked for them."""
    if not include_usage:
        return DONE
    model = usages[0].model if usages else ""
    event = {"id": stamp.request_id, "object": kind, "created": stamp.created, "model": model, "choices": []}
    return server_sent(event | {"usage": _counted(usages)}) + DONE


def openai(*, include_usage: bool = False) -> Shape:
    """Shape of ``/v1/completions``."""
    end = partial(_openai_end, kind="text_completion", include_usage=include_usage)
    return Shape(_openai_event, _openai, end)


def _read_tokens(usage: Usage) -> int:
    """Number of prompt tokens computed. A pass may have more rows, as its shapes are fixed."""
    return min(usage.prefill.rows, usage.prompt.tokens) if usage.prompt else usage.prefill.rows


def _counted(usages: Sequence[Usage]) -> JsonObject:
    read = sum(map(_read_tokens, usages))
    written = sum(usage.tokens for usage in usages)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _mistral(chunks: Sequence[CompletionChunk], stamp: Stamp, choices: int) -> JsonObject:
    """Return OpenAI's answer with each text also as a message: clients read the one or the other."""
    answer = _openai(chunks, stamp, choices) | {"object": "chat.completion"}
    for choice in answer["choices"]:
        choice["message"] = {"role": "assistant", "content": choice["text"]}
    return answer


def _mistral_event(chunk: CompletionChunk, stamp: Stamp) -> bytes:
    event = json.loads(_openai_event(chunk, stamp).removeprefix(b"data: "))
    event["object"] = "chat.completion.chunk"
    event["choices"][0]["delta"] = {"role": "assistant", "content": chunk.text}
    return server_sent(event)


def mistral(*, include_usage: bool = False) -> Shape:
    """Shape of ``/v1/fim/completions``."""
    end = partial(_openai_end, kind="chat.completion.chunk", include_usage=include_usage)
    return Shape(_mistral_event, _mistral, end)


def llama_cpp(fields: tuple[str, ...] | None = None, indent: int = 0) -> Shape:
    """Shape of ``/infill``.

    ``fields`` selects the fields to return; a path such as ``timings/prompt_n`` becomes one flat key.
    ``indent``: see ``indented``.
    """
    return Shape(
        partial(_infill_event, fields=fields), partial(_infill, fields=fields, indent=indent), lambda *_: b""
    )


def _infill(
    chunks: Sequence[CompletionChunk],
    _stamp: Stamp,
    choices: int,
    *,
    fields: tuple[str, ...] | None,
    indent: int,
) -> JsonObject | list[JsonObject]:
    """Return one object, or a list if several choices were requested."""
    answer = gather(chunks)
    error = _error(answer.message)
    found = [
        _picked(
            {
                "index": middle.index,
                "content": indented(middle.text, indent),
                **_facts(middle.usage),
                **error,
            },
            fields,
        )
        for middle in answer.middles
    ]
    return found if choices > 1 else found[0]


def _infill_event(chunk: CompletionChunk, _stamp: Stamp, *, fields: tuple[str, ...] | None) -> bytes:
    facts = _facts(chunk.usage) if chunk.usage else {"stop": False}
    return server_sent(
        _picked({"index": chunk.index, "content": chunk.text, **facts, **_error(chunk.error)}, fields)
    )


def _facts(usage: Usage) -> JsonObject:
    """Return how a middle ended, and its measurements."""
    read = _read_tokens(usage)
    written = usage.tokens
    read_ms = usage.prefill.ms
    write_ms = max(0.0, usage.total_ms - usage.prefill.ms)
    return {
        "model": usage.model,
        "stop": True,
        "stop_type": STOP_TYPES.get(usage.reason, "none"),
        "tokens_predicted": written,
        "timings": {**_timings("prompt", read, read_ms), **_timings("predicted", written, write_ms)},
        "fimserver": usage.model_dump(),
    }


def _timings(name: str, tokens: int, ms: float) -> dict[str, float]:
    """Return llama.cpp's timings; rates are 0 instead of a division by 0."""
    return {
        f"{name}_n": tokens,
        f"{name}_ms": ms,
        f"{name}_per_token_ms": ms / tokens if tokens else 0.0,
        f"{name}_per_second": tokens / ms * 1000 if ms else 0.0,
    }


def _picked(answer: JsonObject, fields: tuple[str, ...] | None) -> JsonObject:
    if fields is None:
        return answer
    found = {field: _at(answer, field) for field in fields}
    return {field: value for field, value in found.items() if value is not None}


def _at(answer: JsonObject, path: str) -> Any:
    value: Any = answer
    for key in path.split("/"):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def indented(text: str, least: int) -> str:
    """Cut ``text`` before the first line, after line one, that is indented by fewer than ``least`` blanks."""
    kept, *lines = text.split("\n")
    for line in lines:
        if line.strip() and len(line) - len(line.lstrip(" \t")) < least:
            break
        kept += "\n" + line
    return kept
