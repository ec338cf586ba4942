"""Lifetime of a host: it listens, loads its models, serves, and ends when nobody uses it."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import uvicorn

from fimserver.cards import get_card, is_place
from fimserver.host.calibrate import Background
from fimserver.host.http.app import make_app
from fimserver.host.http.auth import allowed_name
from fimserver.host.http.connections import BACKLOG, Connection, HttpServer, accepted_at_once, quiet_loop
from fimserver.host.http.state import Host
from fimserver.host.http.token_file import TokenFile
from fimserver.host.job import EngineSource
from fimserver.host.routing.chances import Chances
from fimserver.host.routing.latency import LatencyModel
from fimserver.host.routing.router import Router
from fimserver.host.routing.stand_in import needed_routes
from fimserver.host.scheduler import Scheduler
from fimserver.host.sockets import UnixSocket, bind_tcp, own_names, urls
from fimserver.host.stats.store import Stats, stats_path
from fimserver.paths import latency_path, models_stamp, socket_path
from fimserver.reasons import Reason
from fimserver.settings import Settings
from fimserver.types import ROUTES, Route

log = logging.getLogger("fimserver.host")
DEVICE_LOST = 3  # exit code, also where a device does not answer any more
# Idle seconds after models were added or removed: the next request starts a host that chooses among them.
CHANGED_EXIT_S = 2.0
POLL_S = 0.05
SOCKET_CHECK_S = 1.0
USELESS_EXIT_S = 60.0  # of a host without a model, which only reports why it has none
SAVE_EVERY = 20  # answers


def load_models(settings: Settings) -> EngineSource:
    """Load the engines that requests need; others are loaded on demand.

    Raises ``FimError``.
    """
    for route in routes(settings):
        if (name := settings.card(route)) and not is_place(name):
            get_card(name)  # before torch takes its memory for a name that no card has
    # The host listens before torch is imported.
    from fimserver.engine.engines import ModelPool  # noqa: PLC0415

    models = ModelPool(settings)
    for route in needed_routes(settings.model, settings.policy, models.served()):
        models.engine(route)
    return models


def routes(settings: Settings) -> tuple[Route, ...]:
    """Routes that requests may take."""
    return ROUTES if settings.model == "auto" else (settings.model,)


def run_host(settings: Settings, path: Path | None = None) -> int:
    """Serve a Unix socket that only this user may use, until idle for long. 0 at once if another host has it.

    ``settings.model`` says what to load first; each window says which route a request takes.
    Raises ``InputError`` where there cannot be a socket.
    """
    own = UnixSocket(path or socket_path(settings))
    if not own.acquire():
        log.warning("another host serves this socket")
        return 0
    try:
        anyone = settings.model_copy(update={"model": "auto"})
        idle_exit_s = settings.idle_exit_minutes * 60
        return _serve(anyone, own.bind(), load=settings, own=own, idle_exit_s=idle_exit_s)
    finally:
        own.close()


def run_tcp(
    settings: Settings,
    address: str,
    token: str,
    allowed_hosts: frozenset[str],
    bound: Callable[[tuple[str, ...]], None] = lambda _: None,
    token_file: TokenFile | None = None,
) -> int:
    """Serve TCP to clients that have the token.

    ``bound`` gets the URLs when the address is ours. Raises ``InputError``.
    """
    names = frozenset(map(allowed_name, allowed_hosts))
    listener, name = bind_tcp(address)
    listener.listen()  # clients may connect as soon as they have the URL; uvicorn accepts when it is ready
    bound(urls(listener, name))
    names |= own_names(name)
    return _serve(settings, listener, token=token, allowed_hosts=names, token_file=token_file)


def make_token() -> str:
    """Make a token for one run."""
    return secrets.token_urlsafe(24)


def make_router(settings: Settings) -> tuple[Stats, Router]:
    """The statistics of a host, and its router, which learns from them."""
    stats = Stats(stats_path())
    latency = LatencyModel(latency_path(settings))
    chances = Chances(stats.settled)
    return stats, Router(settings.policy, latency, stats.kept, settings.seed, chances=chances)


def _serve(
    settings: Settings,
    listener: socket.socket,
    *,
    load: Settings | None = None,
    token: str = "",
    allowed_hosts: frozenset[str] = frozenset(),
    token_file: TokenFile | None = None,
    own: UnixSocket | None = None,
    idle_exit_s: float = 0.0,
) -> int:
    lost = False

    def device_lost() -> None:
        nonlocal lost
        lost = server.should_exit = True

    stats, router = make_router(settings)
    scheduler = Scheduler(lambda: load_models(load or settings), device_lost, router)
    background = Background(scheduler, routes(load or settings))
    host = Host(settings, scheduler, token, allowed_hosts, stats, token_file)
    server = HttpServer(
        uvicorn.Config(
            make_app(host),
            log_config=None,
            access_log=False,
            lifespan="off",
            http=Connection,
            backlog=accepted_at_once(),
            timeout_graceful_shutdown=1,
        )
    )
    if threading.current_thread() is threading.main_thread():
        # uvicorn raises them again when it is done; the host has to clean up then.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: setattr(server, "should_exit", True))
    # Before anything imports torch: clients that connect now wait for the event loop.
    listener.listen(BACKLOG)
    scheduler.start()
    asyncio.run(_until_told(server, listener, HostWatch(server, host, background, own, idle_exit_s)))
    scheduler.close(0.5)
    router.costs.save()
    return DEVICE_LOST if lost else 0


async def _until_told(server: uvicorn.Server, listener: socket.socket, watch: HostWatch) -> None:
    quiet_loop(asyncio.get_running_loop())
    watching = asyncio.ensure_future(watch.run())
    await server.serve(sockets=[listener])
    watching.cancel()


class HostWatch:
    """Watcher of a running host: starts idle work, keeps its socket, and ends it."""

    def __init__(
        self,
        server: uvicorn.Server,
        host: Host,
        background: Background,
        own: UnixSocket | None,
        idle_exit_s: float,
    ) -> None:
        self._server = server
        self._host = host
        self._background = background
        self._own = own
        self._idle_exit_s = idle_exit_s
        self._next_look = 0.0
        self._models = models_stamp()

    async def run(self) -> None:
        """Run until the host ends. Its jobs end first, so that nothing waits for them."""
        scheduler = self._host.scheduler
        costs = scheduler.router.costs
        while not self._server.should_exit:
            self._background.step(self._host.clock() - self._host.last_used)
            if costs.unsaved >= SAVE_EVERY:
                await asyncio.to_thread(costs.save)
            if scheduler.hangs:
                log.error("the device does not answer")
                os._exit(DEVICE_LOST)
            await self._keep_socket()
            if self._is_idle():
                self._server.should_exit = True
            await asyncio.sleep(POLL_S)
        scheduler.close(0)

    def _is_idle(self) -> bool:
        if not self._idle_exit_s or any(self._host.scheduler.depth):
            return False
        useless = self._host.scheduler.state is Reason.NO_MODEL
        limit_s = min(self._idle_exit_s, USELESS_EXIT_S) if useless else self._idle_exit_s
        if models_stamp() != self._models:
            limit_s = min(limit_s, CHANGED_EXIT_S)
        return self._host.clock() >= self._host.last_used + limit_s

    async def _keep_socket(self) -> None:
        """Listen again where the socket was removed, or end where another host took its place."""
        if self._own is None or time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + SOCKET_CHECK_S
        if self._own.is_intact or not self._server.started:
            return
        listener = self._own.recovered()
        if listener is None:
            log.warning("the socket was removed and another host serves: this one ends")
            self._server.should_exit = True
            return
        old = self._server.servers
        await self._server.startup([listener])
        for server in old:
            server.close()
