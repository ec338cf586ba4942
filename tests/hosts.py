"""A host with scripted engines, served over TCP from a thread of the test; and hosts started by a window."""

import asyncio
import contextlib
import shutil
import socket
import tempfile
import threading
import time
from pathlib import Path

import psutil
import uvicorn

from fimserver.front.host_process import is_serving
from fimserver.host.fake import FakeEngines
from fimserver.host.http.app import make_app
from fimserver.host.http.connections import Connection
from fimserver.host.http.state import Host
from fimserver.host.routing.chances import Chances, Curve
from fimserver.host.routing.router import Router
from fimserver.host.scheduler import Scheduler
from fimserver.settings import Settings

PATIENCE_S = 60.0


def until(true):
    """Wait for something that happens soon. Fails after a minute."""
    end = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


# The chance of a suggestion is the model's confidence.
EVEN = Chances(curves={"ar": {"fake": Curve(confidence=(0, 1), share=(0, 1))}})


class ScriptedHost:
    """``script(request, route)`` yields text, pauses in seconds, or errors to raise."""

    def __init__(self, load=None, token="", allowed_hosts=frozenset()):
        self.engines = FakeEngines()
        self.scheduler = Scheduler(
            load or (lambda: self.engines), router=Router("always_ar", chances=EVEN)
        )  # no test depends on a clock
        self.host = Host(Settings(), self.scheduler, token, allowed_hosts)
        self._listener = socket.socket(
            proto=socket.IPPROTO_TCP
        )  # else asyncio leaves Nagle on: 40 ms an answer
        self._listener.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        config = uvicorn.Config(
            make_app(self.host), log_config=None, access_log=False, lifespan="off", http=Connection
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def says(self, *steps):
        """Every request gets these steps from now on."""
        self.engines.script = lambda _request, _route: iter(steps)

    def __enter__(self):
        import fimserver.engine.faults  # noqa: F401 - else the first request waits for torch

        self.scheduler.start()
        self._listener.listen(64)  # a request that comes early waits in the backlog
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.should_exit = True
        self.scheduler.close()
        self._thread.join(10)
        self._listener.close()

    def _run(self):
        asyncio.run(self._server.serve(sockets=[self._listener]))


class OwnHosts:
    """Folders of a user of their own, and the hosts that this user's windows start; they end with the test."""

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="fim"))  # short, as sockets want it
        kinds = ("CACHE", "CONFIG", "DATA", "STATE")
        self.env = {f"XDG_{kind}_HOME": str(self.folder / kind.lower()) for kind in kinds}
        self.env |= {"XDG_RUNTIME_DIR": str(self.folder / "run"), "HOME": str(self.folder)}
        (self.folder / "run").mkdir(mode=0o700)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes():
            self.kill(process)
        shutil.rmtree(self.folder, ignore_errors=True)

    def processes(self):
        """The hosts that run."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                is_own = process.environ().get("XDG_RUNTIME_DIR") == self.env["XDG_RUNTIME_DIR"]
                if is_own and "host" in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def kill(self, process):
        """At once, until nothing listens: its window is its parent, and a zombie's threads may hold its socket a little."""
        process.kill()
        end = time.monotonic() + PATIENCE_S
        while process in (alive := self.processes()) or (not alive and any(map(is_serving, self.sockets))):
            assert time.monotonic() < end, "it lives"
            time.sleep(0.005)

    @property
    def log(self):
        """What the hosts wrote into their log."""
        return "".join(path.read_text("utf-8") for path in self.folder.rglob("host.log"))

    @property
    def sockets(self):
        return list((self.folder / "run").rglob("*.sock"))


def free_port():
    """A free port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
