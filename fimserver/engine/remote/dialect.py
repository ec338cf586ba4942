"""Dialect: what a kind of server is asked, how it is recognised, and how its stream is read."""

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
    """What one line of a stream adds. ``reason`` is set where the server says that it is the end."""

    text: str = ""
    reason: Reason | None = None
    tokens: int | None = None  # of the middle so far
    prompt_tokens: int | None = None  # of the whole prompt, cached or not
    forwards: int | None = None
    failed: str = ""  # what kind of error the server tells in its stream


class ServerFacts(NamedTuple):
    """What a server says about itself."""

    software: str
    models: tuple[str, ...] = ()
    context_tokens: int = 0  # prompt and middle together; 0: it does not say
    routes: Mapping[Route, str] | None = None  # of another fimserver: its models


@dataclass(frozen=True)
class Question:
    """One middle to ask for. ``context`` is cut to what the server takes; ``left_ms``: until the deadline."""

    request: Request
    context: TextContext
    remote: Remote
    model: str
    fim: Fim | None
    software: str
    route: Route
    left_ms: float | None = None
    warm: bool = False  # read the prompt only


Probed = Mapping[str, Any]  # JSON that a server answered, by path; a path that it does not have is missing


@dataclass(frozen=True)
class Dialect:
    """One way to ask for middles.

    ``call`` raises ``RemoteError`` where the server cannot be asked so, and returns ``None`` for a warm-up
    that it has no way for. ``read`` raises ``ValueError``, ``KeyError`` or ``TypeError`` for a line that is
    not of this dialect. ``count``: asks for the number of tokens of a text.
    """

    probes: tuple[str, ...]
    recognise: Callable[[Probed], ServerFacts | None]
    call: Callable[[Question], Call | None]
    read: Callable[[str], Piece | None]
    count: Callable[[str, str], Call] | None = None  # of a text and a model
    counted: Callable[[Any], int] = len  # reads the answer to ``count``


def data_of(line: str) -> Any:
    """The JSON of a line of server-sent events; ``None`` for a line without, and for the end mark."""
    if not line.startswith(DATA):
        return json.loads(line.partition(":")[2]) if line.startswith("error:") else None
    text = line.removeprefix(DATA).strip()
    return None if not text or text == "[DONE]" else json.loads(text)


def rows_of(answer: Any, key: str = "data") -> list[dict[str, Any]] | None:
    """The objects of a list in a server's answer; ``None`` where it has no such list."""
    rows = answer.get(key) if isinstance(answer, dict) else None
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else None


def finish(word: str | None) -> Reason | None:
    """Our reason for a server's ``finish_reason``."""
    return None if not word else Reason.LENGTH if word in {"length", "limit"} else Reason.END


def kind_of(error: Any) -> str:
    """The kind of an error in a server's JSON: its type or code, or the error itself where it is text."""
    if isinstance(error, dict):
        return str(error.get("type") or error.get("code") or "error")
    return str(error)
