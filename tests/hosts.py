"""A host with scripted engines, served over TCP from a thread of the test."""

import asyncio
import socket
import threading

import uvicorn

from fimserver.host.app import Host, make_app
from fimserver.host.fake import FakeEngines
from fimserver.host.schedule import Scheduler
from fimserver.settings import Settings


class ScriptedHost:
    """``script(request, route)`` yields text, pauses in seconds, or errors to raise."""

    def __init__(self, load=None, token="", allowed_hosts=frozenset()):
        self.engines = FakeEngines()
        self.scheduler = Scheduler(load or (lambda: self.engines))
        self.host = Host(Settings(), self.scheduler, token, allowed_hosts)
        self._listener = socket.socket(proto=socket.IPPROTO_TCP)  # else asyncio leaves Nagle on: 40 ms an answer
        self._listener.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        config = uvicorn.Config(make_app(self.host), log_config=None, access_log=False, lifespan="off", http="httptools")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def says(self, *steps):
        """Every request gets these steps from now on."""
        self.engines.script = lambda _request, _route: iter(steps)

    def __enter__(self):
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
