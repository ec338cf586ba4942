"""HTTP answers of a host, read: a middle or a reason why there is none, and its health."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pydantic import ValidationError

from fimserver.reasons import Reason
from fimserver.wire import Answer, read_answer

if TYPE_CHECKING:
    import httpx2

OK = 200
SERVER_ERROR = 500
TOO_MANY = {429, 503}  # 503: from a router whose replicas are all full


@dataclass(frozen=True)
class Health:
    """Whether the host can complete."""

    reason: Reason | None  # why not; ``None``: it can
    message: str = ""
    models: Mapping[str, str] = field(default_factory=dict)  # by route
    url: str = ""  # of a remote host


def read_response(response: httpx2.Response) -> Answer:
    """Read an answer. Raises ``InputError`` if it does not come from a fimserver host."""
    if response.status_code in {401, 403}:
        return failure(Reason.REFUSED, message_of(response))
    if response.status_code in TOO_MANY:
        return failure(Reason.OVERLOADED, message_of(response))
    if response.status_code >= SERVER_ERROR:  # from the host or from a router before it
        return failure(Reason.FAILED, message_of(response))
    if response.status_code != OK:
        return failure(Reason.BAD_INPUT, message_of(response))
    return read_answer(response.content)


def well(response: httpx2.Response) -> Health:
    """Read the health of a host that can complete. Refuses an answer of another server."""
    try:
        return Health(
            None, models={str(route): str(name) for route, name in response.json()["models"].items()}
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return Health(Reason.REFUSED, "not a host of fimserver")


def unwell(response: httpx2.Response) -> Health:
    """Read the health of a host that cannot complete."""
    if response.status_code in {401, 403}:
        return Health(Reason.REFUSED, message_of(response))
    try:
        return Health(Reason(response.json()["status"]), message_of(response))
    except (ValueError, KeyError, TypeError, ValidationError):
        return Health(Reason.REFUSED, "not a host of fimserver")


def message_of(response: httpx2.Response) -> str:
    """Return the error message in a response."""
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status_code}"


def failure(reason: Reason, message: str = "") -> Answer:
    """Return an answer without middles."""
    return Answer(reason=reason, message=message)
