"""An editor for tests: the same calls against a server in this process and against a real one over pipes."""

import asyncio
import contextlib
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from fimserver.front.config import from_settings
from fimserver.front.host_client import open_host_client
from fimserver.front.lsp.methods import make_server
from fimserver.front.lsp.transport import Decoder, encode
from fimserver.settings import Settings

CLIENTS = Path(__file__).parent / "clients"
WAIT_S = 60.0


def recorded(client):
    """The ``initialize`` parameters that a real client sent."""
    return json.loads((CLIENTS / f"{client}.initialize.json").read_text("utf-8"))


class InProcess:
    """A server on a loop of its own; bodies go in and out as Python calls."""

    def __init__(self, url, received):
        self.loop = asyncio.new_event_loop()
        self.exit_code = None
        self.stderr = ""
        self._received = received
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.server = asyncio.run_coroutine_threadsafe(self._make(url), self.loop).result(WAIT_S)

    async def _make(self, url):
        line = open_host_client(url, "", lambda: None)
        return make_server(from_settings(Settings()), line, self._received, self._leave)

    async def _end(self):
        """As the end of a process would: nothing is left to run, and no connection."""
        running = asyncio.all_tasks() - {asyncio.current_task()}
        if running:
            await asyncio.wait(
                running, timeout=0.1
            )  # anyio warns of connections that are cancelled before they begin
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await self.server.session.shut()
        await asyncio.sleep(0)  # transports close in the next round of the loop

    def _leave(self, code):
        self.exit_code = code

    def send(self, *bodies):
        for body in bodies:
            self.loop.call_soon_threadsafe(self.server.protocol.receive, body)

    def close(self):
        asyncio.run_coroutine_threadsafe(self._end(), self.loop).result(WAIT_S)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(WAIT_S)
        self.loop.close()


class OverPipes:
    """``fimserver`` as a child process, as an editor starts it."""

    def __init__(self, url, received, env=None, args=()):
        command = [sys.executable, "-P", "-m", "fimserver.cli", *args]
        connect = {"FIMSERVER_CONNECT": url} if url else {}
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | connect | (env or {}),
        )
        self._received = received
        self._errors = []
        self._readers = [threading.Thread(target=f, daemon=True) for f in (self._read, self._read_errors)]
        for thread in self._readers:
            thread.start()

    def _read(self):
        decoder = Decoder()
        while data := os.read(self.process.stdout.fileno(), 1 << 16):
            for body in decoder.feed(data):
                self._received(body)

    def _read_errors(self):
        self._errors.append(self.process.stderr.read())

    @property
    def stderr(self):
        return b"".join(self._errors).decode("utf-8", "replace")

    @property
    def exit_code(self):
        return self.process.poll()

    def send(self, *bodies):
        self.raw(b"".join(map(encode, bodies)))

    def raw(self, data):
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(WAIT_S)
        for thread in self._readers:
            thread.join(WAIT_S)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


class Editor:
    """Requests and notifications of a client, and the responses."""

    def __init__(self, kind, url="", **options):
        self.kind = kind
        self.notifications = []
        self.requests = []
        self.answers = {}
        self.configuration = None
        self._ids = itertools.count(1)
        self._arrived = threading.Condition()
        self.link = (InProcess if kind == "process" else OverPipes)(url, self._received, **options)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.link.close()

    def _received(self, body):
        message = json.loads(body)
        with self._arrived:
            if "method" in message and "id" in message:
                self.requests.append(message)
            elif "method" in message:
                self.notifications.append(message)
            else:
                self.answers.setdefault(message["id"], []).append(message)
            self._arrived.notify_all()
        if "method" in message and "id" in message:
            result = [self.configuration] if message["method"] == "workspace/configuration" else None
            self.link.send(self._body({"id": message["id"], "result": result}))

    @staticmethod
    def _body(message):
        return json.dumps({"jsonrpc": "2.0", **message}, ensure_ascii=True).encode()

    def start(self, client="neovim", options=None, **changes):
        """The handshake, as ``client`` does it. Returns the server's capabilities.

        Nothing is asked ahead of time, and requests have the longest deadline, which no busy machine exceeds.
        """
        own = {"processId": os.getpid(), "rootUri": None, "workspaceFolders": None}
        params = (
            recorded(client)
            | own
            | {"initializationOptions": {"prefetch": False, "deadlineMs": 10_000, **(options or {})}}
            | changes
        )
        result = self.call("initialize", params)
        self.notify("initialized", {})
        return result["capabilities"]

    def post(self, method, params=None):
        """Send a request; the id to wait for."""
        msg_id = next(self._ids)
        self.link.send(self._body({"id": msg_id, "method": method, "params": params}))
        return msg_id

    def answer(self, msg_id, wait_s=WAIT_S):
        """The one answer to a request."""
        with self._arrived:
            assert self._arrived.wait_for(lambda: msg_id in self.answers, wait_s), f"no answer to {msg_id!a}"
            return self.answers[msg_id][0]

    def call(self, method, params=None):
        answer = self.answer(self.post(method, params))
        assert "error" not in answer, answer
        return answer["result"]

    def notify(self, method, params=None):
        self.link.send(self._body({"method": method, "params": params}))

    def wait_for(self, found, wait_s=WAIT_S):
        """Until ``found`` is true of what arrived."""
        with self._arrived:
            assert self._arrived.wait_for(lambda: found(self), wait_s), "it never came"

    @staticmethod
    def wait_until(found, wait_s=WAIT_S):
        """Until ``found()`` is true, asked again and again."""
        end = time.monotonic() + wait_s
        while not found():
            assert time.monotonic() < end, "it never came true"
            time.sleep(0.01)

    def open(self, uri, text, language="python", version=1):
        document = {"uri": uri, "languageId": language, "version": version, "text": text}
        self.notify("textDocument/didOpen", {"textDocument": document})

    def edit(self, uri, version, start, end, text):
        span = {
            "start": dict(zip(("line", "character"), start, strict=True)),
            "end": dict(zip(("line", "character"), end, strict=True)),
        }
        change = {"range": span, "text": text}
        self.notify(
            "textDocument/didChange",
            {"textDocument": {"uri": uri, "version": version}, "contentChanges": [change]},
        )

    def type(self, uri, version, line, column, text):
        """Insert at a place."""
        self.edit(uri, version, (line, column), (line, column), text)

    def params(self, uri, line, character, *, invoked=False, popup=None):
        context = {"triggerKind": 1 if invoked else 2} | ({"selectedCompletionInfo": popup} if popup else {})
        return {
            "textDocument": {"uri": uri},
            "position": {"line": line, "character": character},
            "context": context,
        }

    def ask(self, uri, line, character, **options):
        """Inline completion: the items; none where the answer says that it is out of date."""
        answer = self.call("textDocument/inlineCompletion", self.params(uri, line, character, **options))
        return answer["items"] if answer else []

    def explain(self):
        return self.call("fimserver/explain")

    def run(self, command, *arguments):
        return self.call(
            "workspace/executeCommand", {"command": f"fimserver.{command}", "arguments": list(arguments)}
        )

    def leave(self):
        """Say goodbye; the exit code."""
        self.call("shutdown")
        self.notify("exit")
        end = time.monotonic() + WAIT_S
        while self.link.exit_code is None and time.monotonic() < end:
            time.sleep(0.005)
        return self.link.exit_code
