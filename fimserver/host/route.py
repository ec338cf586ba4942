"""Knows which route serves a request, and says why. Knows nothing of engines."""

from __future__ import annotations

from typing import Literal

from fimserver.types import Decision, Request, Route


def choose_route(request: Request, pin: Literal["auto", "dllm", "ar"]) -> Decision:
    """The route that was asked for. ``auto``: ar inside a line, where a middle is short; dllm for the rest."""
    if pin != "auto":
        return Decision(pin, "asked for")
    if request.suffix.split("\n", 1)[0].strip():
        return Decision("ar", "code stands right of the cursor, so the middle is short")
    return Decision("dllm", "nothing stands right of the cursor, so the middle may be long")


def other(route: Route) -> Route:
    """The route that was not chosen."""
    return "ar" if route == "dllm" else "dllm"
