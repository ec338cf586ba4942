"""Faults between language server, host and remote server: nothing stalls, each has its reason, and requests work again afterwards."""

import contextlib
import json
import socket
from urllib.parse import urlsplit

import pytest

from fimserver.host.listen import load_models
from fimserver.settings import Settings
from tests.editor import Editor
from tests.hosts import ScriptedHost, until
from tests.servers_elsewhere import PlayedServer, sse
from tests.wires import OF_ANSWERS, OF_REQUESTS, Wire

URI = "file:///work/main.py"
CODE = "def add(a, b):\n    return \n"
AT_ONCE_MS = 10_000  # the longest there is: a fault that ends an answer is not to be taken for a deadline
SOON_MS = 300  # where nothing ends the answer but the deadline
STALLS = {"silence", "slow reader", "drip"}
WAIT_S = 60.0

# What the editor is told, of the wire between its server and the host.
TO_HOST = {
    "reset": {"no_host"},
    "close": {"no_host"},
    "garbage": {"no_host"},
    "half a head": {"no_host"},
    "half an answer": {"no_host"},
    "page": {"refused"},
    "garbled": {"refused"},
} | {fault: {"deadline"} for fault in STALLS}

# The same of the wire between the host and a server that has the model.
TO_ENGINE = {
    "reset": {"away"},
    "close": {"away"},
    "garbage": {"away", "garbled"},
    "half a head": {"away"},
    "half an answer": {"away"},
    "page": {"away", "garbled"},
    "garbled": {"away", "garbled"},
} | {fault: {"deadline"} for fault in STALLS}

MODELS = (200, {"data": [{"id": "qwen2.5-coder-7b", "owned_by": "vllm"}]})
WORD = sse({"choices": [{"index": 0, "text": "a + b", "finish_reason": None}]})
END = sse({"choices": [{"index": 0, "text": "", "finish_reason": "stop"}]}, "[DONE]")


def wire_to(url):
    return Wire(urlsplit(url).port)


class Window:
    """An editor with one document, and what it is shown there."""

    def __init__(self, kind, url):
        self.editor = Editor(kind, url)

    def __enter__(self):
        self.editor.start()
        self.editor.open(URI, CODE)
        return self

    def __exit__(self, *_):
        self.editor.__exit__()

    def asked(self, deadline_ms):
        """The suggestion at the hole, and the reason where there is none."""
        settings = {"deadlineMs": deadline_ms, "model": "ar"}
        self.editor.notify("workspace/didChangeConfiguration", {"settings": {"fimserver": settings}})
        self.editor.run("clearCache")
        message = self.editor.post("textDocument/inlineCompletion", self.editor.params(URI, 1, 11))
        items = self.editor.answer(message, WAIT_S)["result"]["items"]
        return items[0]["insertText"] if items else "", self.editor.explain()["reason"]

    def suffers(self, wire, fault, reasons):
        """A fault is an empty answer with its reason; when it is over, the next request is answered."""
        wire.fault = fault
        text, reason = self.asked(SOON_MS if fault in STALLS else AT_ONCE_MS)
        wire.fault = ""
        assert text == ""
        assert reason in reasons

    def works(self):
        return self.asked(AT_ONCE_MS)[0] == "a + b"


@pytest.fixture
def elsewhere():
    """A server of the shape of vLLM."""
    with PlayedServer({"/v1/models": MODELS, "/v1/completions": [WORD, END]}) as server:
        yield server


@pytest.fixture
def over_wire(elsewhere):
    """A host whose model is at the other end of a wire, and the wire."""
    with wire_to(elsewhere.url) as wire:
        settings = Settings(model="ar", ar_card=wire.url, dllm_card="nano")
        with ScriptedHost(lambda: load_models(settings)) as host:
            yield host, wire


class TestBetweenEditorAndHost:
    @pytest.mark.parametrize("fault", OF_REQUESTS + OF_ANSWERS)
    def test_a_fault_has_its_reason_and_the_next_request_works(self, fault, host):
        host.says("a + b")
        with wire_to(host.url) as wire, Window("process", wire.url) as window:
            assert window.works()
            window.suffers(wire, fault, TO_HOST[fault])
            assert window.works()

    def test_a_window_lives_through_all_of_them(self, host):
        host.says("a + b")
        with wire_to(host.url) as wire, Window("pipes", wire.url) as window:
            for fault in OF_REQUESTS + OF_ANSWERS:
                window.suffers(wire, fault, TO_HOST[fault])
                assert window.works()
            assert window.editor.link.exit_code is None

    def test_a_window_lives_with_late_answers(self, host):
        host.says("a + b")
        with wire_to(host.url) as wire, Window("process", wire.url) as window:
            wire.fault = "late"
            assert window.works()

    @pytest.mark.parametrize(
        ("status", "body", "reason"),
        [
            (500, {"error": {"message": "no"}}, "failed"),
            (500, "", "failed"),
            (502, "<html>Bad Gateway</html>", "failed"),
            (504, [1], "failed"),
            (599, "", "failed"),
            (503, "no replica is free", "overloaded"),
            (429, {"error": {"message": "no"}}, "overloaded"),
            (401, "", "refused"),
            (403, "<html>", "refused"),
            (400, "", "bad_input"),
            (404, {"detail": "Not Found"}, "bad_input"),
        ],
    )
    def test_a_status_of_a_router_is_a_reason(self, status, body, reason):
        router = PlayedServer({"/v1/completions": (status, body)})
        with router, Window("process", router.url) as window:
            assert window.asked(AT_ONCE_MS) == ("", reason)

    def test_a_client_that_reads_nothing_holds_nobody_up(self, host):
        host.says(*["x = 1\n" * 10_000] * 100)  # more than the buffers of a connection take
        port = urlsplit(host.url).port
        body = json.dumps({"prompt": "a", "suffix": "b", "stream": True, "max_tokens": 1024}).encode()
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
        with contextlib.ExitStack() as stack, Window("process", host.url) as window:
            for _ in range(8):
                deaf = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
                deaf.sendall(head + body)
            until(lambda: len(host.engines.asked) == 8)
            host.says("a + b")
            assert window.works()


class TestBetweenHostAndEngine:
    @pytest.mark.parametrize("fault", OF_REQUESTS + OF_ANSWERS)
    def test_a_fault_has_its_reason_and_requests_work_again(self, fault, over_wire):
        host, wire = over_wire
        with Window("process", host.url) as window:
            until(window.works)  # the model is loaded, and what the server is has been asked
            window.suffers(wire, fault, TO_ENGINE[fault])
            until(window.works)  # a server that was away is tried again a little later

    def test_a_window_lives_through_all_of_them(self, over_wire):
        host, wire = over_wire
        with Window("pipes", host.url) as window:
            until(window.works)
            for fault in OF_REQUESTS + OF_ANSWERS:
                window.suffers(wire, fault, TO_ENGINE[fault])
                until(window.works)
            assert window.editor.link.exit_code is None
