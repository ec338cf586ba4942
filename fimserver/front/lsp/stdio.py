"""Process of one editor window: its pipes, its event loop and its exit.

It never outlives the editor: it exits when the pipe is closed, the editor dies, or the editor stops reading.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

from fimserver.front.config import from_settings
from fimserver.front.host_client import open_host_client
from fimserver.front.host_process import own_hosting
from fimserver.front.lsp.methods import make_server
from fimserver.front.lsp.rpc_codes import Life
from fimserver.front.lsp.server import Server
from fimserver.front.lsp.transport import PipeReader, PipeWriter, claim_pipes
from fimserver.settings import Settings

log = logging.getLogger("fimserver.front")
WATCH_S = 1.0
FLUSH_S = 1.0


def run_stdio(settings: Settings) -> int:
    """Serve one editor over stdin and stdout.

    Returns the exit code. Raises ``InputError`` for a bad ``--connect``.
    """
    logging.basicConfig(
        level=logging.WARNING, stream=sys.stderr, format="%(asctime)s %(name)s %(levelname)s %(message)s"
    )
    for name in ("pygls", "httpx2", "httpcore2"):  # at lower levels they log the user's text
        logging.getLogger(name).setLevel(logging.CRITICAL)
    host = open_host_client(settings.connect, settings.token, lambda: own_hosting(settings))
    pipe_in, pipe_out = claim_pipes()
    writer = PipeWriter(pipe_out)
    writer.start()
    endings: list[Callable[[], None]] = []
    leave = _leaver(writer, endings)

    def make() -> Server:
        server = make_server(from_settings(settings), host, writer.send, leave)
        if settings.record:
            endings.append(server.session.record(settings.record).end)
        return server

    asyncio.run(_serve(make, writer, pipe_in, leave))
    return 1


def _leaver(writer: PipeWriter, endings: Sequence[Callable[[], None]]) -> Callable[[int], None]:
    """Return a function that exits the process at once, whatever its threads do.

    It calls ``endings`` and writes pending answers first.
    """
    gone = threading.Event()

    def leave(code: int) -> None:
        if not gone.is_set():
            gone.set()
            for end in endings:
                end()
            writer.close(FLUSH_S)
            with contextlib.suppress(OSError, ValueError):  # the editor may have closed it
                sys.stderr.flush()
            os._exit(code)

    return leave


async def _serve(
    make: Callable[[], Server], writer: PipeWriter, pipe_in: int, leave: Callable[[int], None]
) -> None:
    loop = asyncio.get_running_loop()
    server = make()

    editor = EditorProcess()

    def received(bodies: list[bytes]) -> None:
        loop.call_soon_threadsafe(receive, bodies)

    def receive(bodies: list[bytes]) -> None:
        _receive(server, bodies)
        editor.is_gone(server.process_id)  # notes that the editor's process exists

    def ended(problem: str | None) -> None:
        if problem:
            log.error("the editor's stream is out of step: %s", problem)
        # Scheduled, so that messages before the end are handled first.
        loop.call_soon_threadsafe(lambda: leave(_code_at_end(server, problem)))

    loop.set_exception_handler(_note)
    loop.add_signal_handler(2, leave, 130)
    loop.add_signal_handler(15, leave, 143)
    PipeReader(pipe_in, received, ended).start()
    while True:
        await asyncio.sleep(WATCH_S)
        if writer.stuck:
            leave(1)
        if editor.is_gone(server.process_id):
            leave(_code_at_end(server, None))


def _note(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log the failure of a background task, without its message, which may quote text."""
    log.error("a task failed: %s", type(context.get("exception")).__name__)


def _receive(server: Server, bodies: list[bytes]) -> None:
    for body in bodies:
        server.protocol.receive(body)


def _code_at_end(server: Server, problem: str | None) -> int:
    """Return the exit code: 0 only if the editor sent ``shutdown`` first."""
    return 0 if problem is None and server.protocol.life is Life.SHUT_DOWN else 1


class EditorProcess:
    """The editor's process, watched by the id that it sent.

    In a container or a sandbox the id may belong to another namespace, so a process that was never seen is
    not watched; the end of the pipe still ends the server.
    """

    def __init__(self, exists: Callable[[int], bool] | None = None) -> None:
        self._exists = exists or process_exists
        self._seen = False

    def is_gone(self, pid: int | None) -> bool:
        """Whether the process was seen before and no longer exists. Notes whether it exists now."""
        if pid is None or pid <= 0:
            return False
        exists = self._exists(pid)
        self._seen = self._seen or exists
        return self._seen and not exists


def process_exists(pid: int) -> bool:
    """Whether a process with this id exists in this namespace."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
