"""Deployment on Ray Serve: replicas of a host, one device each, and a document always on the same replica.

``serve run fimserver.deploy:app``, or a YAML file that names it (docs/deploy.md). Routing is Ray's own
consistent hashing of the header ``x-session-id``, which windows send; a full replica passes a request on.
"""

from __future__ import annotations

import os
from typing import Any

from ray import serve
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fimserver.errors import InputError
from fimserver.host.replica import Replica
from fimserver.settings import Settings

_replica: Replica | None = None  # of this process: Serve builds the application and its wrapper apart


def app(args: dict[str, Any]) -> serve.Application:
    """The application. ``args``: ``allow_hosts``, a list of names, and ``settings`` as in settings.toml.

    Raises ``InputError`` without ``FIMSERVER_TOKEN``.
    """
    token = os.environ.get("FIMSERVER_TOKEN", "")
    if not token:
        raise InputError("set FIMSERVER_TOKEN: a deployment is reached over TCP")
    settings = Settings(**args.get("settings", {}))
    hosts = frozenset(args.get("allow_hosts", ()))

    def build() -> ASGIApp:
        global _replica  # noqa: PLW0603 - see above
        _replica = Replica(settings, token, hosts)
        return _named(_replica.open(), serve.get_replica_context().replica_id.unique_id)

    return serve.deployment(
        name="fimserver",
        autoscaling_config=AutoscalingConfig(min_replicas=1, max_replicas=4, target_ongoing_requests=4),
        max_ongoing_requests=16,
        health_check_period_s=2,
        health_check_timeout_s=10,
        graceful_shutdown_wait_loop_s=1,
        graceful_shutdown_timeout_s=130,
        request_router_config=RequestRouterConfig(request_router_class=ConsistentHashRouter),
    )(serve.ingress(build)(Checked)).bind()


class Checked:
    """What Serve asks of a replica besides its application."""

    def check_health(self) -> None:
        """Raise ``ModelError`` where Serve has to replace this replica."""
        if _replica is not None:
            _replica.check()


def _named(inner: ASGIApp, name: str) -> ASGIApp:
    """Add the header ``x-replica`` to every answer."""

    async def outer(scope: Scope, receive: Receive, send: Send) -> None:
        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-replica", name.encode())]
            await send(message)

        await inner(scope, receive, named)

    return outer
