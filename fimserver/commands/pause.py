"""Pause and resume of this user's hosts: a paused host frees the memory of its models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx2

from fimserver.front.host_process import is_serving
from fimserver.paths import runtime_folder

TIMEOUT_S = 5.0


def pause_hosts(minutes: float) -> Iterator[str]:
    """Pause every host that listens; yields one line for each.

    Raises ``InputError`` for a limit out of range.
    """
    yield from _tell_all("/v1/pause", {"minutes": minutes}, f"paused for {minutes:g} minutes at most")


def resume_hosts() -> Iterator[str]:
    """End the pause of every host that listens."""
    yield from _tell_all("/v1/resume", {}, "loading its models again")


def _tell_all(address: str, body: dict[str, float], done: str) -> Iterator[str]:
    for path in sorted(runtime_folder().glob("host-*.sock")):
        if is_serving(path):
            yield f"{path.stem}: {_tell(path, address, body) or done}"


def _tell(path: Path, address: str, body: dict[str, float]) -> str:
    """Return an empty string if the host did it, else why it did not."""
    transport = httpx2.HTTPTransport(uds=str(path))
    try:
        with httpx2.Client(
            base_url="http://localhost", transport=transport, timeout=TIMEOUT_S, trust_env=False
        ) as client:
            response = client.post(address, json=body)
    except httpx2.HTTPError as error:
        return f"does not answer ({type(error).__name__})"
    return "" if response.is_success else str(response.json()["error"]["message"])
