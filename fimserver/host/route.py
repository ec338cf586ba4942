"""Knows which route serves a request, and says why. Knows nothing of engines."""

from __future__ import annotations

from typing import Literal, NamedTuple

from fimserver.types import Request, Route


class Choice(NamedTuple):
    """A route and the reason in one line."""

    route: Route
    why: str


def choose_route(request: Request, pin: Literal["auto", "dllm", "ar"]) -> Choice:
    """The route that was asked for. ``auto``: ar inside a line, where a middle is short; dllm for the rest."""
    if pin != "auto":
        return Choice(pin, "asked for")
    if request.suffix.split("\n", 1)[0].strip():
        return Choice("ar", "code stands right of the cursor, so the middle is short")
    return Choice("dllm", "nothing stands right of the cursor, so the middle may be long")


def other(route: Route) -> Route:
    """The route that was not chosen."""
    return "ar" if route == "dllm" else "dllm"
