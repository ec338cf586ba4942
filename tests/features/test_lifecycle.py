"""From initialize to exit: what is served when, and every way to end, in time and with the right exit code."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from fimserver.front.lsp.status import POLL_S
from fimserver.front.lsp.stdio import WATCH_S, EditorProcess
from fimserver.front.lsp.transport import encode
from tests.editor import Editor

URI = "file:///work/main.py"
CODE = "def add(a, b):\n    return \n"
STATES = ("new", "running", "generating", "shut down")
WAIT_S = 60.0


def forever(host):
    """An engine that works until it is stopped; an event that says that it does."""
    running = threading.Event()

    def script(_request, _route):
        running.set()
        while True:
            yield 0.005

    host.engines.script = script
    return running


def bring(editor, host, state, **hello):
    """Into a state. Returns the id of the request that runs, if one does."""
    if state == "new":
        assert error(editor, "fimserver/explain") == -32002
        return None
    editor.start(**hello)
    if state == "shut down":
        editor.call("shutdown")
    if state != "generating":
        return None
    running = forever(host)
    editor.open(URI, CODE)
    request = editor.post("textDocument/inlineCompletion", editor.params(URI, 1, 11))
    assert running.wait(WAIT_S)
    return request


def error(editor, method, params=None):
    """The code that a request is refused with."""
    return editor.answer(editor.post(method, params)).get("error", {}).get("code")


# ---------------------------------------------------------------- what is served


@pytest.mark.parametrize(
    ("state", "code"), [("new", -32002), ("running", None), ("generating", None), ("shut down", -32600)]
)
def test_requests_are_served_between_hello_and_goodbye_only(state, code, connected, host):
    bring(connected, host, state)
    assert error(connected, "fimserver/explain") == code


@pytest.mark.parametrize("state", STATES)
def test_unknown_notifications_change_nothing(state, connected, host):
    request = bring(connected, host, state)
    connected.notify("no/suchNotification", {"text": CODE})
    connected.notify("$/unknown")
    error(connected, "fimserver/explain")  # is answered, so they have been read
    assert connected.link.exit_code is None
    assert set(connected.answers) == set(range(1, connected.post("x"))) - {request}


def test_documents_that_come_before_hello_are_not_there(connected, host):
    connected.open(URI, CODE)
    connected.start()
    assert connected.ask(URI, 1, 11) == []
    assert connected.explain()["reason"] == "not_open"


@pytest.mark.parametrize("state", STATES[1:])
def test_a_second_hello_is_refused_and_documents_stay(state, connected, host):
    request = bring(connected, host, state)
    if state == "running":
        connected.open(URI, CODE)
    assert error(connected, "initialize", {"capabilities": {}}) == -32600
    if state == "running":
        host.says("a + b")
        assert connected.ask(URI, 1, 11)
    elif state == "generating":
        assert request not in connected.answers
        assert connected.run("stats")["documents"] == 1


def test_a_hello_that_fails_may_be_said_again(connected):
    assert error(connected, "initialize", {"capabilities": 7}) == -32602
    assert (
        error(connected, "initialize", {"capabilities": {}, "processId": None, "rootUri": "http://["})
        == -32603
    )
    assert error(connected, "fimserver/explain") == -32002
    connected.start()
    assert connected.explain()


def test_goodbye_answers_what_still_runs_and_stops_the_engine(connected, host):
    request = bring(connected, host, "generating")
    connected.call("shutdown")
    assert connected.answer(request)["error"]["code"] == -32800
    connected.wait_until(lambda: host.engines.stopped)


def test_goodbye_while_the_host_cannot_be_reached_is_quiet():
    with Editor("pipes", "http://127.0.0.1:9") as editor:
        editor.start(initializationOptions={"status": True})
        editor.wait_for(lambda e: [n for n in e.notifications if n["method"] == "fimserver/status"])
        editor.call("shutdown")
        time.sleep(2.5 * POLL_S)  # two rounds of asking for the host, were it still asked for
        editor.notify("exit")
        assert editor.link.process.wait(WAIT_S) == 0
    assert editor.link.stderr == ""


# ---------------------------------------------------------------- ways to go


def exits(editor):
    editor.notify("exit")


def closes_the_pipe(editor):
    editor.link.process.stdin.close()


def terminates(editor):
    editor.link.process.send_signal(signal.SIGTERM)


def interrupts(editor):
    editor.link.process.send_signal(signal.SIGINT)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize(
    ("goes", "code", "code_after_shutdown"),
    [
        pytest.param(exits, 1, 0, id="exit"),
        pytest.param(closes_the_pipe, 1, 0, id="end of the pipe"),
        pytest.param(terminates, 143, 143, id="SIGTERM"),
        pytest.param(interrupts, 130, 130, id="SIGINT"),
    ],
)
def test_it_leaves_and_says_how(state, goes, code, code_after_shutdown, host):
    with Editor("pipes", host.url) as editor:
        bring(
            editor, host, state, capabilities={}
        )  # it asks this editor nothing, which could not answer any more
        children = psutil.Process(editor.link.process.pid).children(recursive=True)
        goes(editor)
        assert editor.link.process.wait(WAIT_S) == (code_after_shutdown if state == "shut down" else code)
        assert not [child for child in children if child.is_running()]
        if state == "generating":
            editor.wait_until(lambda: host.engines.stopped)
    assert "Traceback" not in editor.link.stderr


@pytest.mark.parametrize("state", STATES[1:])
def test_it_does_not_outlive_its_editor(state, host):
    with subprocess.Popen(["sleep", "600"]) as parent, Editor("pipes", host.url) as editor:  # noqa: S607
        bring(editor, host, state, processId=parent.pid)
        parent.kill()
        parent.wait()
        assert editor.link.process.wait(WAIT_S) == (0 if state == "shut down" else 1)


def test_goodbye_and_the_end_of_the_pipe_in_one_breath(host):
    with Editor("pipes", host.url) as editor:
        editor.start(capabilities={})
        editor.link.send(b'{"jsonrpc":"2.0","id":"bye","method":"shutdown"}')
        editor.link.process.stdin.close()
        assert editor.link.process.wait(WAIT_S) == 0
        assert editor.answer("bye")["result"] is None


# ---------------------------------------------------------------- pipes that misbehave


@contextlib.contextmanager
def bare(host, **pipes):
    """A server whose pipes nobody looks after."""
    command = [sys.executable, "-P", "-m", "fimserver.cli"]
    env = os.environ | {"FIMSERVER_CONNECT": host.url}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, env=env, **pipes)
    try:
        yield process
    finally:
        process.kill()
        process.wait(WAIT_S)
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def say(process, *bodies):
    process.stdin.write(b"".join(map(encode, bodies)))
    process.stdin.flush()


def test_an_editor_that_stops_reading_is_left(host):
    with bare(host, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        for number in range(3000):  # their answers are more than a pipe holds
            say(process, b'{"jsonrpc":"2.0","id":%d,"method":"no/suchRequest"}' % number)
        assert process.wait(WAIT_S) == 1


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_an_editor_that_closes_a_pipe_is_left(closed, host):
    with bare(host, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        say(process, b'{"jsonrpc":"2.0","id":1,"method":"no/suchRequest"}')
        assert process.stdout.read(10)
        getattr(process, closed).close()
        say(process, b'{"jsonrpc":"2.0","id":2,"method":"no/suchRequest"}')
        if closed == "stderr":
            process.stdin.write(b"\n\nout of step")  # is said on stderr, where nobody listens
            process.stdin.flush()
        assert process.wait(WAIT_S) == 1


def test_prints_of_libraries_do_not_reach_the_stream(tmp_path, host):
    (tmp_path / "sitecustomize.py").write_text(
        "import os, threading, time\n"
        "def chatter():\n"
        "    while not os.path.samestat(os.fstat(1), os.fstat(2)):\n"
        "        time.sleep(0.001)\n"
        "    while True:\n"
        "        print('a library prints', flush=True)\n"
        "        os.write(1, b'its C code does too\\n')\n"
        "        time.sleep(0.005)\n"
        "threading.Thread(target=chatter, daemon=True).start()\n"
    )
    host.says("a + b")
    with Editor("pipes", host.url, env={"PYTHONPATH": str(tmp_path)}) as editor:
        editor.start()
        editor.open(URI, CODE)
        for _ in range(20):
            assert editor.ask(URI, 1, 11)
            editor.run("clearCache")
        assert editor.leave() == 0
    assert "a library prints" in editor.link.stderr
    assert "its C code does too" in editor.link.stderr


def test_it_reads_nothing_but_the_editors_pipe_and_keeps_no_descriptor_of_it_for_others(host):
    with Editor("pipes", host.url) as editor:
        editor.start()
        fds = Path(f"/proc/{editor.link.process.pid}/fd")
        assert (fds / "0").readlink() == Path(os.devnull)
        assert (fds / "1").readlink() == (fds / "2").readlink()


# ---------------------------------------------------------------- clients of other versions


@pytest.mark.parametrize(
    "hello",
    [
        pytest.param({"trace": "compact"}, id="an unknown trace"),
        pytest.param(
            {"capabilities": {"workspace": {"symbol": {"symbolKind": {"valueSet": [200]}}}}},
            id="an unknown kind",
        ),
        pytest.param({"clientInfo": {"version": "1"}}, id="a client without a name"),
    ],
)
def test_a_hello_with_unknown_values_is_taken(hello, connected, host):
    connected.start(**hello)
    host.says("a + b")
    connected.open(URI, CODE)
    assert connected.ask(URI, 1, 11)


@pytest.mark.parametrize("context", [{"triggerKind": 0}, {"triggerKind": 9}, {}, None, "typing"])
def test_a_request_with_an_unknown_trigger_is_answered(context, editor, host):
    host.says("a + b")
    editor.open(URI, CODE)
    params = editor.params(URI, 1, 11) | {"context": context}
    assert editor.call("textDocument/inlineCompletion", params)["items"]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(
            {"textDocument": {"uri": URI, "version": None}, "contentChanges": [{"text": CODE}]}, id="null"
        ),
        pytest.param({"textDocument": {"uri": URI}, "contentChanges": [{"text": CODE}]}, id="absent"),
        pytest.param(
            {"textDocument": {"uri": URI, "version": 2}, "contentChanges": [{"text": CODE, "range": None}]},
            id="no range",
        ),
        pytest.param(
            {"textDocument": {"uri": URI, "version": 0}, "contentChanges": [{"text": CODE}]}, id="older"
        ),
    ],
)
def test_a_whole_text_is_a_known_text(change, editor, host):
    host.says("a + b")
    editor.open(URI, "x = 1\n")
    editor.notify("textDocument/didChange", change)
    assert editor.ask(URI, 1, 11)


def test_an_edit_of_a_document_without_versions_is_applied(editor, host):
    host.says("a + b")
    editor.open(URI, "def add(a, b):\n    retur \n", version=5)
    at = {"line": 1, "character": 9}
    change = {"range": {"start": at, "end": at}, "rangeLength": None, "text": "n"}
    editor.notify(
        "textDocument/didChange", {"textDocument": {"uri": URI, "version": None}, "contentChanges": [change]}
    )
    assert editor.ask(URI, 1, 11)


@pytest.mark.parametrize("pid", [2**22 + 1, 4194303, 2**40])
def test_an_editor_in_another_namespace_is_served(pid, host):
    host.says("a + b")
    with Editor("pipes", host.url) as editor:
        editor.start(processId=pid)
        time.sleep(1.5 * WATCH_S)  # a round of looking for the process
        editor.open(URI, CODE)
        assert editor.ask(URI, 1, 11)
        closes_the_pipe(editor)
        assert editor.link.process.wait(WAIT_S) == 1


def test_a_process_is_gone_only_after_it_was_seen():
    alive = [False, True, True, False]
    process = EditorProcess(lambda _pid: alive.pop(0))
    assert [process.is_gone(7) for _ in range(4)] == [False, False, False, True]
    assert not process.is_gone(None)
