"""Long and heavy use: a storm of requests, hours of typing, cancels, requests while the model works.

Sizes: ``STORM_RATE`` requests a second for ``STORM_S`` seconds, ``SOAK_EDITS`` edits with a tenth of them completions and
another tenth cancels.
"""

import os
import threading
import time
from statistics import median

import psutil
import pytest

from tests.editor import Editor

STORM_RATE = int(os.environ.get("STORM_RATE", "200"))
STORM_S = float(os.environ.get("STORM_S", "3"))
SOAK_EDITS = int(os.environ.get("SOAK_EDITS", "3000"))
URI = "file:///work/main.py"
LINES = 40
CODE = "".join(f"value_{i} = {i}\n" for i in range(LINES)) + "total = \n"
GROWTH_BYTES = 5 * 2**20


def percentiles(times_s):
    times = sorted(times_s)
    return {
        f"p{p}": round(1000 * times[min(len(times) - 1, len(times) * p // 100)], 1) for p in (50, 95, 99)
    } | {"max": round(1000 * times[-1], 1)}


def hard_worker(host, seconds=0.1):
    """An engine that takes so long, and stops when told."""

    def script(_request, _route):
        for _ in range(round(seconds / 0.005)):
            yield 0.005
        yield "1"

    host.engines.script = script


@pytest.fixture
def depths(host):
    """Running and waiting jobs of the host, after every job that came."""
    found, submit = [], host.scheduler.submit

    def counted(job):
        submit(job)
        found.append(host.scheduler.depth)

    host.scheduler.submit = counted
    return found


# ---------------------------------------------------------------- storm


def test_a_storm_of_requests_ends_with_the_answer_to_the_last(host, depths, capsys):
    hard_worker(host)
    with Editor("pipes", host.url) as editor:
        editor.start(initializationOptions={"prefetch": False})
        editor.open(URI, CODE)
        for number in range(3):
            ask_after_key(editor, 2 + number)
        count, started, posted = int(STORM_RATE * STORM_S), time.monotonic(), []
        for number in range(count):
            posted.append(ask_after_key(editor, 10 + number, wait=False))
            if (ahead_s := started + number / STORM_RATE - time.monotonic()) > 0:
                time.sleep(ahead_s)
        sent, took_s = time.monotonic(), time.monotonic() - started
        assert editor.answer(posted[-1], 60)["result"]["items"]
        last_s = time.monotonic() - sent
        editor.wait_until(lambda: all(request in editor.answers for request in posted))
        editor.explain()
        assert all(len(editor.answers[request]) == 1 for request in posted)
        assert all("result" in editor.answers[request][0] for request in posted)
    assert editor.link.stderr == ""
    assert max(running for running, _ in depths) <= 1
    assert max(waiting for _, waiting in depths) <= 1
    with capsys.disabled():
        print(f"\nstorm: {count} in {took_s:.1f} s; jobs {len(depths)}; last {last_s:.3f} s")


def ask_after_key(editor, version, *, wait=True):
    """A key and a request, as while typing."""
    name = f"v{version:06d}"
    editor.edit(URI, version, (LINES, 8), (LINES, 8 + len(name)), name)
    request = editor.post("textDocument/inlineCompletion", editor.params(URI, LINES, 8 + len(name)))
    return editor.answer(request) if wait else request


def timed(work):
    started = time.monotonic()
    work()
    return time.monotonic() - started


# ---------------------------------------------------------------- soak


class Typist:
    """Types and deletes, asks now and then, and cancels now and then; the document stays as long as it is."""

    def __init__(self, editor, uri=URI):
        self.editor, self.uri, self.version, self.cancel_s = editor, uri, 1, []
        editor.open(uri, CODE)

    def work(self, edits):
        for number in range(edits):
            self.version += 1
            if number % 2:
                self.editor.edit(self.uri, self.version, (LINES, 8), (LINES, 9), "")
            else:
                self.editor.type(self.uri, self.version, LINES, 8, "abcdefgh"[number // 2 % 8])
            if number % 20 == 0:
                self.editor.ask(self.uri, number % LINES, 4, invoked=True)
            elif number % 20 == 10:
                self.editor.ask(self.uri, LINES, 9)
            elif number % 10 == 5:
                self.cancel()

    def cancel(self):
        request = self.editor.post(
            "textDocument/inlineCompletion", self.editor.params(self.uri, LINES, 8, invoked=True)
        )
        started = time.monotonic()
        self.editor.notify("$/cancelRequest", {"id": request})
        self.editor.answer(request)
        self.cancel_s.append(time.monotonic() - started)


def tables(server):
    """Sizes of everything that a session keeps."""
    session, protocol = server.session, server.protocol
    return {
        "requests": len(protocol._request_futures),
        "asked": len(protocol._asked),
        "result types": len(protocol._result_types),
        "tasks": len(server._tasks),
        "documents": len(session.documents),
        "running": len(session.running),
        "rhythms": len(session._rhythms),
        "states": len(session.context._states),
        "regions": len(session.context._edits._regions),
        "rejected": len(session.rejected),
    }


def settled(found, wait_s=60):
    """Wait for something to become true; the caller asserts it, to see what it is instead."""
    end = time.monotonic() + wait_s
    while not found() and time.monotonic() < end:
        time.sleep(0.01)


def test_tables_are_what_they_were_after_long_use(host):
    host.says("1")
    with Editor("process", host.url) as editor:
        editor.start()
        server = editor.link.server
        typist = Typist(editor)
        everything_once(editor, typist, 0)
        editor.wait_until(lambda: not server._tasks)
        before = tables(server)
        for number in range(max(20, SOAK_EDITS // 100)):
            everything_once(editor, typist, number)
        settled(lambda: tables(server) == before)
        assert tables(server) == before
        assert len(server.session.memory) <= 256
        assert len(server.session.acceptance._by_id) <= 512


def everything_once(editor, typist, number):
    other = Typist(editor, f"file:///work/other{number}.py")
    other.work(6)
    editor.notify("textDocument/didClose", {"textDocument": {"uri": other.uri}})
    editor.notify("$/setTrace", {"value": "off"})
    editor.notify("workspace/didChangeConfiguration", {"settings": None})
    editor.notify("workspace/didChangeWorkspaceFolders", {"event": {"added": [], "removed": []}})
    editor.run("restart")
    typist.work(20)
    editor.explain()


def test_an_editor_that_answers_nothing_costs_nothing(host, monkeypatch):
    with Editor("process", host.url) as editor:
        editor.start()
        monkeypatch.setattr("fimserver.front.lsp.lifecycle.ANSWER_S", 0.05)
        server = editor.link.server
        server.protocol.send = lambda _: None  # it is deaf and dumb from now on
        for _ in range(200):
            editor.notify("workspace/didChangeConfiguration", {"settings": None})
        editor.wait_until(lambda: server._tasks)
        editor.wait_until(lambda: not server._tasks and not server.protocol._asked)
        assert not server.protocol._request_futures
        assert not server.protocol._result_types


def test_memory_and_descriptors_stay_what_they_were(host, capsys):
    host.says("1")
    with Editor("pipes", host.url) as editor:
        editor.start()
        process = psutil.Process(editor.link.process.pid)
        typist = Typist(editor)
        typist.work(max(1000, SOAK_EDITS // 5))
        warm, fds, threads = process.memory_info().rss, process.num_fds(), process.num_threads()
        typist.cancel_s.clear()
        started = time.monotonic()
        typist.work(SOAK_EDITS)
        took_s = time.monotonic() - started
        grown = process.memory_info().rss - warm
        with capsys.disabled():
            print(
                f"\nsoak: {SOAK_EDITS} edits in {took_s:.1f} s; front {warm / 2**20:.1f} MiB, grown {grown / 2**20:+.2f} MiB;"
                f" fds {fds} -> {process.num_fds()}; cancel to answer, ms: {percentiles(typist.cancel_s)}"
            )
        assert len(host.engines.asked) >= SOAK_EDITS // 10
        assert grown <= GROWTH_BYTES
        assert process.num_fds() <= fds + 2  # connections that wait for the next request
        assert process.num_threads() <= threads
        assert median(typist.cancel_s) <= 0.5
        assert all(len(answers) == 1 for answers in editor.answers.values())


# ---------------------------------------------------------------- while the model works


def test_questions_are_answered_while_the_model_works(host, capsys):
    running = threading.Event()

    def script(_request, _route):
        while True:
            running.set()
            yield 0.005

    host.engines.script = script
    with Editor("pipes", host.url) as editor:
        editor.start()
        editor.open(URI, CODE)
        request = editor.post("textDocument/inlineCompletion", editor.params(URI, LINES, 8, invoked=True))
        assert running.wait(60)
        times = [timed(editor.explain) for _ in range(200)]
        assert request not in editor.answers
    with capsys.disabled():
        print(f"\nno-op round trip while the model works, ms: {percentiles(times)}")
    assert median(times) <= 0.5  # a busy machine holds up single ones
