"""``fimserver serve --ray``: the host as replicas on Ray Serve, where Ray is installed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fimserver.errors import InputError
from fimserver.host.deployment import Deployment, Scale, allowed, known
from fimserver.host.sockets import own_names, parse_address
from fimserver.settings import Settings


def serve_ray(
    settings: Settings,
    address: str,
    token: str,
    hosts: tuple[str, ...],
    scale: Mapping[str, Any],
    bound: Callable[[tuple[str, ...]], None],
) -> int:
    """Serve until a signal. Raises ``InputError`` where Ray is not installed or an option is wrong."""
    size = Scale(**scale).checked()
    names = allowed(hosts) | own_names(parse_address(address)[0])
    known(settings)
    try:
        from fimserver.deploy import run_ray  # noqa: PLC0415 - Ray is optional
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "ray":
            raise
        raise InputError("--ray needs Ray: `pip install 'fimserver[ray]'`") from None
    return run_ray(Deployment(settings, token, names), size, address, bound)
