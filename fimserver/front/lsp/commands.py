"""Commands and notifications other than completions, for users and plugins."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

from fimserver.front.lsp.lifecycle import pin
from fimserver.front.lsp.server import Server
from fimserver.front.read_ahead import CursorRest
from fimserver.front.session import RejectedText
from fimserver.types import ROUTES

PAUSE_MINUTES = 60.0
MAX_PAUSE_MINUTES = 24 * 60.0
SNOOZE_MINUTES = 10.0
MAX_SNOOZE_MINUTES = 24 * 60.0


def explain(server: Server, _: Any = None) -> dict[str, Any]:
    """Return the outcome of the last request and the reason for it."""
    return server.session.last.explained()


def stats(server: Server, _: Any = None) -> dict[str, Any]:
    """Return the counts of this window."""
    session = server.session
    return {
        "suggestions": session.acceptance.report(),
        "reasons": {str(reason): count for reason, count in sorted(session.reasons.items())},
        "remembered": len(session.memory),
        "documents": len(session.documents),
    }


def accepted(server: Server, suggestion_id: Any = None, *_: Any) -> bool:
    """Note that a suggestion was accepted in full. The editor runs this after inserting the text."""
    return server.session.acceptance.accept(str(suggestion_id))


def rejected(server: Server, suggestion_id: Any = None, *_: Any) -> bool:
    """Note that the user dismissed a suggestion, which is then not shown again at that place."""
    shown = server.session.acceptance.find(str(suggestion_id))
    if shown is not None:
        server.session.reject(RejectedText(shown.uri, shown.before, shown.text))
    return shown is not None


def set_route(server: Server, route: Any = None, uri: Any = None, *_: Any) -> str:
    """Pin the route of the window or of a document; ``auto`` removes the pin. Returns the route in effect."""
    session = server.session
    if uri is None:
        if route in ("auto", *ROUTES):  # a tuple: the argument may be unhashable
            pin(server, model=route)
        return session.config.model
    if route in ROUTES and uri in session.documents:
        session.routes[uri] = route
    elif route == "auto":
        session.routes.pop(uri, None)
    return session.wanted(str(uri))


def toggle(server: Server, on: Any = None, *_: Any) -> bool:
    """Switch completions on or off, or toggle without an argument. Returns whether they are on."""
    pin(server, enabled=on if isinstance(on, bool) else not server.session.config.enabled)
    return server.session.config.enabled


def snooze(server: Server, minutes: Any = None, *_: Any) -> float:
    """Make no automatic suggestions for some minutes; 0 ends that. Returns the minutes in effect."""
    is_number = isinstance(minutes, int | float) and not isinstance(minutes, bool)
    wanted = min(max(float(minutes), 0.0), MAX_SNOOZE_MINUTES) if is_number else SNOOZE_MINUTES
    server.session.snoozed_until_s = time.monotonic() + 60 * wanted
    server.session.running.stop()
    server.status.renew()
    asyncio.get_running_loop().call_later(60 * wanted + 0.01, server.status.renew)
    return wanted


async def pause(server: Server, minutes: Any = None, *_: Any) -> str:
    """Have the host unload its models for some minutes at most; 0 ends that. Returns a line for the user."""
    is_number = isinstance(minutes, int | float) and not isinstance(minutes, bool)
    wanted = min(max(float(minutes), 0.0), MAX_PAUSE_MINUTES) if is_number else PAUSE_MINUTES
    problem = await server.session.host.pause(wanted)
    server.later(server.status.watch())
    return problem or (
        f"paused for {wanted:g} minutes at most, or until you ask explicitly" if wanted else "resumed"
    )


def clear_cache(server: Server, *_: Any) -> int:
    """Forget suggestions and dismissals. Returns how many places were forgotten."""
    count = len(server.session.memory)
    server.session.memory.clear()
    server.session.rejected.clear()
    return count


def restart(server: Server, *_: Any) -> str:
    """Start the host again even after repeated crashes."""
    server.session.host.revive()
    server.later(server.status.watch())
    return "starting"


COMMANDS: Mapping[str, Callable[..., Any]] = {
    "accepted": accepted,
    "rejected": rejected,
    "setRoute": set_route,
    "toggle": toggle,
    "snooze": snooze,
    "pause": pause,
    "stats": lambda server, *_: stats(server),
    "explain": lambda server, *_: explain(server),
    "clearCache": clear_cache,
    "restart": restart,
}


def did_focus(server: Server, params: Any) -> None:
    """Note where the cursor is (Copilot's notification, extended by a ``position``)."""
    uri = _field(_field(params, "textDocument"), "uri")
    position = _field(params, "position")
    line = _field(position, "line")
    character = _field(position, "character")
    if isinstance(uri, str) and isinstance(line, int) and isinstance(character, int):
        server.reading.moved(CursorRest(uri, max(0, line), max(0, character)))


def did_show(server: Server, params: Any) -> None:
    """Note that an item is shown (Copilot's notification). From then on only reported ones count as shown."""
    if (suggestion_id := _suggestion_id(params)) is not None:
        server.session.acceptance.reported_shown(suggestion_id)


def did_accept_partly(server: Server, params: Any) -> None:
    """Note how many UTF-16 units of an item were accepted (Copilot's notification)."""
    suggestion_id = _suggestion_id(params)
    length = _field(params, "acceptedLength")
    if suggestion_id is not None and isinstance(length, int):
        shown = server.session.acceptance.find(suggestion_id)
        text = shown.text if shown else ""
        units = text.encode("utf-16-le", "surrogatepass")[: 2 * max(0, length)]
        server.session.acceptance.accept(suggestion_id, len(units.decode("utf-16-le", "ignore")))


def _suggestion_id(params: Any) -> str | None:
    arguments = _field(_field(_field(params, "item"), "command"), "arguments")
    return str(arguments[0]) if isinstance(arguments, list | tuple) and arguments else None


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else getattr(value, name, None)
