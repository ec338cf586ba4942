"""Deployment on Ray Serve: replicas of a host, one device each, with every document on one replica.

Started by ``fimserver serve --ray``, ``serve run fimserver.deploy:app`` or a config file of
``fimserver deploy init`` (docs/deploy.md). Ray routes requests by consistent hashing of the header
``x-session-id``, which windows send; a full replica passes a request on.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import ray
from prometheus_client import CollectorRegistry
from ray import serve
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter
from ray.util.metrics import Gauge
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fimserver.errors import ModelError
from fimserver.host.deployment import FULL, FULL_CLUSTER, Deployment, Scale, deployment_of
from fimserver.host.http.second_try import RAY_VALUE, RAY_VARIABLE
from fimserver.host.replica import Replica
from fimserver.host.sockets import bind_tcp, urls

NAME = "fimserver"
METRICS_S = 5.0  # interval of copying a replica's metrics to Ray's endpoint

_replica: Replica | None = None  # of this process: Serve builds the application and its wrapper separately


def app(args: dict[str, Any]) -> serve.Application:
    """Build the application of a Serve config file.

    ``args``: ``allow_hosts``, ``token_file``, ``settings``. Raises ``InputError`` for a wrong one or if there
    is no token.
    """
    return application(deployment_of(args), Scale())


def application(what: Deployment, scale: Scale) -> serve.Application:
    """Build the application at a scale, which a Serve config file may override."""

    def build() -> ASGIApp:
        global _replica  # noqa: PLW0603 - see above
        name = serve.get_replica_context().replica_id.unique_id
        _replica = Replica(what.settings, what.token, what.allowed_hosts)
        inner = _replica.open()
        threading.Thread(target=_export, args=(_replica.registry, name), daemon=True).start()
        return _named(inner, name)

    full = FULL * scale.queue
    return serve.deployment(
        name=NAME,
        ray_actor_options={"num_cpus": 1, "num_gpus": scale.gpus},
        autoscaling_config=AutoscalingConfig(
            min_replicas=scale.min_replicas,
            max_replicas=scale.max_replicas,
            target_ongoing_requests=scale.queue,
            upscale_delay_s=10,
            downscale_delay_s=300,
        ),
        max_ongoing_requests=full,
        max_queued_requests=FULL_CLUSTER,
        health_check_period_s=2,
        health_check_timeout_s=10,
        graceful_shutdown_wait_loop_s=1,
        graceful_shutdown_timeout_s=130,
        request_router_config=RequestRouterConfig(request_router_class=ConsistentHashRouter),
    )(serve.ingress(build)(Checked)).bind()


def run_ray(
    what: Deployment, scale: Scale, address: str, bound: Callable[[tuple[str, ...]], None] = lambda _: None
) -> int:
    """Serve on the cluster of ``RAY_ADDRESS``, or on this machine only, until SIGINT or SIGTERM.

    ``bound`` receives the URLs when the first replicas are ready. Running answers are finished at the end.
    Raises ``InputError`` if the address is in use, ``ModelError`` if no replica starts.
    """
    listener, name = bind_tcp(address)
    host, port = listener.getsockname()[:2]
    ready = urls(listener, name)
    listener.close()  # Ray's proxies take it
    os.environ.setdefault(RAY_VARIABLE, RAY_VALUE)  # read by the proxies, which Ray starts
    ray.init(address=os.environ.get("RAY_ADDRESS", "local"), log_to_driver=False, logging_level="warning")
    for number in (signal.SIGTERM, signal.SIGINT):  # Ray's own handler ends the process at once
        signal.signal(number, signal.default_int_handler)
    try:
        serve.start(http_options={"host": host, "port": port})
        try:
            serve.run(application(what, scale), name=NAME, route_prefix="/", blocking=False)
            bound(ready)
            threading.Event().wait()
        except RuntimeError:
            raise ModelError(
                "no replica could start: Ray's log (/tmp/ray/session_latest/logs/serve) says why;"
                " try `fimserver doctor` on that machine"
            ) from None
        finally:
            serve.delete(NAME)  # before the proxies stop, so that running answers reach their clients
    except KeyboardInterrupt:
        pass
    finally:
        serve.shutdown()
        ray.shutdown()
    return 0


class Checked:
    """Wrapper of the application with the health check of a replica."""

    def check_health(self) -> None:
        """Raise ``ModelError`` if Serve must replace this replica."""
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


def _export(registry: CollectorRegistry, name: str) -> None:
    """Keep copying the metrics of ``/metrics`` to Ray's Prometheus endpoint, labelled with the replica."""
    gauges: dict[str, Gauge] = {}
    while True:
        for family in registry.collect():
            for sample in family.samples:
                if sample.name.startswith("fimserver_") and not sample.name.endswith("_created"):
                    if sample.name not in gauges:
                        keys = (*sample.labels, "replica")
                        gauges[sample.name] = Gauge(sample.name, family.documentation, keys)
                    gauges[sample.name].set(sample.value, {**sample.labels, "replica": name})
        threading.Event().wait(METRICS_S)
