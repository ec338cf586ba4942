"""Knows the sockets of a host, its single instance, and when it goes. Knows nothing of requests."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn

from fimserver.errors import InputError
from fimserver.host.calibrate import Background
from fimserver.host.http.app import Host, make_app
from fimserver.host.jobs import EngineSource
from fimserver.host.routing.latency import LatencyModel
from fimserver.host.routing.router import Router
from fimserver.host.scheduler import Scheduler
from fimserver.host.stats.store import Stats, stats_path
from fimserver.paths import latency_path, socket_path
from fimserver.settings import Settings
from fimserver.types import ROUTES, Route

log = logging.getLogger("fimserver.host")
DEVICE_LOST = 3  # exit code, also where a device does not answer any more
BACKLOG = 128
POLL_S = 0.05
SAVE_EVERY = 20  # answers
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


def load_models(settings: Settings) -> EngineSource:
    """Models with the engines of the wanted routes; others follow when they are asked for. Raises ``FimError``."""
    from fimserver.engine.engines import ModelPool  # noqa: PLC0415 - the host listens before torch is there

    models = ModelPool(settings)
    for route in routes(settings):
        models.engine(route)
    return models


def routes(settings: Settings) -> tuple[Route, ...]:
    """Those that are wanted from the start."""
    return ROUTES if settings.model == "auto" else (settings.model,)


def run_host(settings: Settings, path: Path | None = None) -> int:
    """Serve a Unix socket that only this user may use, until idle for long. 0 at once if another host does.

    ``settings.model`` says what to load first; which route a request takes is the asking window's business.
    Raises ``InputError`` where there cannot be one.
    """
    path = path or socket_path(settings)
    lock = os.open(path.with_suffix(".lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        log.warning("another host serves this socket")
        return 0
    path.unlink(missing_ok=True)
    try:
        anyone = settings.model_copy(update={"model": "auto"})
        return _serve(anyone, _bind(path), load=settings, idle_exit_s=settings.idle_exit_minutes * 60)
    finally:
        path.unlink(missing_ok=True)
        os.close(lock)


def _bind(path: Path) -> socket.socket:
    mask = os.umask(0o177)
    try:
        return _bound(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), str(path))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}: set XDG_RUNTIME_DIR to a folder of yours") from None
    finally:
        os.umask(mask)


def _bound(listener: socket.socket, address: Any) -> socket.socket:
    try:
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


def run_tcp(
    settings: Settings, address: str, token: str, allowed_hosts: frozenset[str], bound: Callable[[], None] = lambda: None
) -> int:
    """Serve TCP to whoever has the token. ``bound`` is called when the address is ours. Raises ``InputError``."""
    name, _, port = address.rpartition(":")
    name = name.strip("[]") or "127.0.0.1"
    if not port.isdecimal() or int(port) > 65535:
        raise InputError(f"--listen {address!r}: give HOST:PORT, for example 127.0.0.1:8765")
    try:
        family, kind, proto, _, where = socket.getaddrinfo(name, int(port), type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, proto)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _bound(listener, where)
    except (OSError, UnicodeError) as error:
        raise InputError(f"--listen {address}: {getattr(error, 'strerror', None) or 'not the name of a machine'}") from None
    bound()
    names = frozenset(map(str.lower, allowed_hosts | {name}))
    return _serve(settings, listener, token=token, allowed_hosts=names | LOOPBACK)


def make_token() -> str:
    """A token for one run."""
    return secrets.token_urlsafe(24)


def _serve(
    settings: Settings,
    listener: socket.socket,
    *,
    load: Settings | None = None,
    token: str = "",
    allowed_hosts: frozenset[str] = frozenset(),
    idle_exit_s: float = 0.0,
) -> int:
    lost = False

    def device_lost() -> None:
        nonlocal lost
        lost = server.should_exit = True

    stats = Stats(stats_path())
    router = Router(settings.policy, LatencyModel(latency_path(settings)), stats.kept, settings.seed)
    scheduler = Scheduler(lambda: load_models(load or settings), device_lost, router)
    background = Background(scheduler, routes(load or settings))
    host = Host(settings, scheduler, token, allowed_hosts, stats)
    server = uvicorn.Server(
        uvicorn.Config(
            make_app(host), log_config=None, access_log=False, lifespan="off", http="httptools", timeout_graceful_shutdown=1
        )
    )
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises them again when it is done: let us clean up then
            signal.signal(number, lambda *_: setattr(server, "should_exit", True))
    listener.listen(BACKLOG)  # before anything imports torch: who connects now waits for the loop, not for a start
    scheduler.start()
    asyncio.run(_until_told(server, listener, host, background, idle_exit_s))
    scheduler.close(0.5)
    router.costs.save()
    return DEVICE_LOST if lost else 0


async def _until_told(
    server: uvicorn.Server, listener: socket.socket, host: Host, background: Background, idle_exit_s: float
) -> None:
    watch = asyncio.ensure_future(_watch(server, host, background, idle_exit_s))
    await server.serve(sockets=[listener])
    watch.cancel()


async def _watch(server: uvicorn.Server, host: Host, background: Background, idle_exit_s: float) -> None:
    """End an idle host, and one that hangs. Whatever ends it, end its jobs too, so that it need not wait for them."""
    costs = host.scheduler.router.costs
    while not server.should_exit:
        background.step(time.monotonic() - host.last_used)
        if costs.unsaved >= SAVE_EVERY:
            await asyncio.to_thread(costs.save)
        if host.scheduler.hangs:
            log.error("the device does not answer")
            os._exit(DEVICE_LOST)
        if idle_exit_s and not any(host.scheduler.depth) and time.monotonic() >= host.last_used + idle_exit_s:
            server.should_exit = True
        await asyncio.sleep(POLL_S)
    host.scheduler.close(0)
