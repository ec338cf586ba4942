"""Remote servers: one that replays recorded exchanges and faults, and a real llama.cpp."""

import contextlib
import json
import os
import socket
import socketserver
import struct
import subprocess
import sys
import threading
from pathlib import Path

LLAMA = """
import sys
import xllamacpp
params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.n_ctx = 512
params.n_parallel = 1
params.hostnames = ["127.0.0.1"]
params.port = int(sys.argv[2])
params.warmup = False
params.endpoint_slots = True
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
params.api_keys = [sys.argv[3]]
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


class PlayedServer:
    """Answers each path with what ``answers`` has for it.

    ``(status, body)`` is a whole answer; a list of steps is a stream: text to send, seconds to wait (at most
    until the test ends), ``"cut"`` to end without an end, ``"reset"`` to break the connection.
    """

    def __init__(self, answers, first=()):
        self.answers = dict(answers)
        self.first = list(
            first
        )  # steps of the first requests to other paths than those that are asked of GET
        self.asked = []
        self.connections = 0
        self.requests = 0
        self.closed = threading.Event()  # set when a client hangs up in a stream
        self._ends = threading.Event()
        outer = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self):
                outer.connections += 1
                with contextlib.suppress(OSError):
                    while outer._answer(self):
                        pass

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            allow_reuse_address = True

            def handle_error(self, request, client_address):
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self):
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        ).start()
        return self

    def __exit__(self, *_):
        self._ends.set()
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, handler):
        request = handler.rfile.readline().decode().split()
        if len(request) < 2:
            return False
        self.requests += 1
        headers = {}
        while line := handler.rfile.readline().decode().strip():
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        data = handler.rfile.read(int(headers.get("content-length", 0)))
        method, path = request[:2]
        if method == "POST":
            self.asked.append((path, json.loads(data), headers))
        found = self.first.pop(0) if method == "POST" and self.first else self.answers.get(path, (404, {}))
        if isinstance(found, list):
            self._stream(handler, found)
            return False
        status, body = found
        text = body if isinstance(body, str) else json.dumps(body)
        head = f"HTTP/1.1 {status} x\r\nContent-Length: {len(text.encode())}\r\n\r\n"
        handler.wfile.write((head + text).encode())
        return True

    def _stream(self, handler, steps):
        linger = struct.pack("ii", 1, 0)
        for step in [None, *steps]:
            if step is None:
                if steps[0] not in {"reset", "cut"} and not (steps[0] and isinstance(steps[0], float)):
                    self._send(handler, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            elif step == "reset":
                handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                handler.connection.close()
                return
            elif step == "cut":
                return
            elif isinstance(step, float):
                self._wait(handler, step)
            else:
                data = step if isinstance(step, bytes) else step.encode()
                self._send(handler, f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self._send(handler, b"0\r\n\r\n")

    def _send(self, handler, data):
        try:
            handler.wfile.write(data)
        except OSError:
            self.closed.set()
            raise

    def _wait(self, handler, seconds):
        """Wait, but see at once that the client hung up."""
        handler.connection.settimeout(seconds)
        try:
            if handler.connection.recv(1) == b"":
                self.closed.set()
                raise ConnectionError
        except TimeoutError:
            return
        except OSError:
            self.closed.set()
            raise


def sse(*events):
    """Events of a stream, as one text."""
    return "".join(f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n" for event in events)


class LlamaServer:
    """llama.cpp's server of ``xllamacpp`` in a process of its own, with a key."""

    KEY = "sesame"

    def __init__(self, model: Path, port: int):
        self.url = f"http://127.0.0.1:{port}"
        self._command = [sys.executable, "-c", LLAMA, str(model), str(port), self.KEY]
        self._process = None

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.kill()

    def start(self):
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert self._process.stdout.readline().startswith("http"), "llama.cpp did not start"

    def kill(self):
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()
