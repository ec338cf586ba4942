"""Dialect of a kind of server: how to recognise it, ask it for a middle, and read its stream."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from fimserver.cards import Fim, Remote
from fimserver.engine.remote.context import TextContext
from fimserver.reasons import Reason
from fimserver.types import Request, Route

DATA = "data:"


class Call(NamedTuple):
    """One HTTP request: ``POST`` of a JSON body."""

    path: str
    body: Mapping[str, Any]


class Piece(NamedTuple):
    """Content of one line of a stream. ``reason``: set in the line that ends the middle."""

    text: str = ""
    reason: Reason | None = None
    tokens: int | None = None  # of the middle so far
    prompt_tokens: int | None = None  # of the whole prompt, cached or not
    forwards: int | None = None
    failed: str = ""  # kind of an error in the stream


class ServerFacts(NamedTuple):
    """Facts that a server reports about itself."""

    software: str
    models: tuple[str, ...] = ()
    context_tokens: int = 0  # of prompt and middle together; 0: unknown
    routes: Mapping[Route, str] | None = None  # model of each route, of another fimserver


@dataclass(frozen=True)
class Question:
    """A request for one middle. ``context``: cut to the server's limit. ``left_ms``: until the deadline."""

    request: Request
    context: TextContext
    remote: Remote
    model: str
    fim: Fim | None
    software: str
    route: Route
    left_ms: float | None = None
    warm: bool = False  # prefill only


Probed = Mapping[str, Any]  # JSON answers of a server by path, without the paths that it does not have


@dataclass(frozen=True)
class Dialect:
    """One protocol for middles.

    ``call`` raises ``RemoteError`` if the server cannot answer such a request, and returns ``None`` for a
    prefill that the protocol does not support. ``read`` raises ``ValueError``, ``KeyError`` or ``TypeError``
    for a line that is not of this dialect. ``count``: asks for the number of tokens of a text.
    """

    probes: tuple[str, ...]
    recognise: Callable[[Probed], ServerFacts | None]
    call: Callable[[Question], Call | None]
    read: Callable[[str], Piece | None]
    count: Callable[[str, str], Call] | None = None  # (text, model) -> call
    counted: Callable[[Any], int] = len  # reads the answer to ``count``


def data_of(line: str) -> Any:
    """Return the JSON of a line of server-sent events; ``None`` for the end mark and lines without data."""
    if not line.startswith(DATA):
        return json.loads(line.partition(":")[2]) if line.startswith("error:") else None
    text = line.removeprefix(DATA).strip()
    return None if not text or text == "[DONE]" else json.loads(text)


def rows_of(answer: Any, key: str = "data") -> list[dict[str, Any]] | None:
    """Return the objects in the list ``key`` of a server's answer; ``None`` if it has no such list."""
    rows = answer.get(key) if isinstance(answer, dict) else None
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else None


def finish(word: str | None) -> Reason | None:
    """Translate a server's ``finish_reason``."""
    return None if not word else Reason.LENGTH if word in {"length", "limit"} else Reason.END


def kind_of(error: Any) -> str:
    """Return the kind of an error in a server's JSON: its type or code, or the error if it is a string."""
    if isinstance(error, dict):
        return str(error.get("type") or error.get("code") or "error")
    return str(error)
