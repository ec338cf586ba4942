"""Any input over the wire: the server lives, answers every request once, and repeats nothing of the input.

``WIRE_MESSAGES`` is how many messages are sent, ``WIRE_SEED`` which ones.
"""

import asyncio
import copy
import itertools
import json
import logging
import os
import random
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from fimserver.front.config import Config
from fimserver.front.host_answers import Health, failure
from fimserver.front.lsp import stdio
from fimserver.front.lsp.methods import make_server
from fimserver.front.lsp.rpc_codes import Life
from fimserver.front.lsp.transport import encode
from fimserver.reasons import Reason
from fimserver.wire import Answer, Middle, Usage
from tests.editor import OverPipes, recorded

MESSAGES = int(os.environ.get("WIRE_MESSAGES", "10000"))
SEED = int(os.environ.get("WIRE_SEED", "0"))
CLIENTS = ("neovim", "vscode", "lsp-mode", "eglot")
PIPED = max(1, min(20, MESSAGES // 5000))  # sessions over real pipes
SECRET, FOLDER = "watermark_4711", "hidden-folder"
INSIDES = ("Traceback", "site-packages", str(Path(stdio.__file__).parent.parent), 'File "')
WAIT_S = 60.0


# ---------------------------------------------------------------- what clients say


class Client:
    """Messages of a session, in order. Ids count up."""

    def __init__(self, name):
        self.name, self._ids = name, itertools.count(1)

    def request(self, method, params=None):
        return {"jsonrpc": "2.0", "id": next(self._ids), "method": method, "params": params}

    @staticmethod
    def notification(method, params=None):
        return {"jsonrpc": "2.0", "method": method, "params": params}

    def command(self, name, *arguments):
        return self.request(
            "workspace/executeCommand", {"command": f"fimserver.{name}", "arguments": list(arguments)}
        )

    def hello(self):
        params = recorded(self.name) | {"processId": os.getpid(), "rootUri": None, "workspaceFolders": None}
        return [
            self.request(
                "initialize",
                params | {"initializationOptions": {"delayMs": 20, "status": True, "model": "ar"}},
            ),
            self.notification("initialized", {}),
        ]

    def file(self, number):
        """A document's life: opened, asked about, edited, cancelled, closed."""
        named = {"uri": f"file:///srv/{FOLDER}/file{number}.py"}
        text = f"def add(a, b):\n    return \n# {SECRET} 🎉\n"
        ask = {"textDocument": named, "position": at(1, 11), "context": {"triggerKind": 2}}
        edits = [{"range": {"start": at(1, 11), "end": at(1, 11)}, "text": c} for c in "ab"]
        popup = {"range": {"start": at(1, 4), "end": at(1, 11)}, "text": "return x"}
        first, second = (
            self.request("textDocument/inlineCompletion", ask),
            self.request("textDocument/inlineCompletion", ask),
        )
        chosen = ask | {"context": {"triggerKind": 1, "selectedCompletionInfo": popup}}
        return [
            self.notification(
                "textDocument/didOpen",
                {"textDocument": {**named, "languageId": "python", "version": 1, "text": text}},
            ),
            first,
            *(
                self.notification(
                    "textDocument/didChange",
                    {"textDocument": {**named, "version": v}, "contentChanges": [edit]},
                )
                for v, edit in enumerate(edits, 2)
            ),
            second,
            self.notification("$/cancelRequest", {"id": second["id"]}),
            self.request("textDocument/inlineCompletion", chosen),
            self.request(
                "textDocument/completion",
                {"textDocument": named, "position": at(1, 12), "context": {"triggerKind": 1}},
            ),
            self.request("fimserver/explain"),
            self.request("fimserver/stats", {}),
            self.command(
                random.Random(number).choice(("accepted", "rejected", "setRoute", "stats", "explain")), "ar"
            ),
            self.notification("textDocument/didFocus", {"textDocument": named}),
            self.notification(
                "textDocument/didPartiallyAcceptCompletion",
                {"item": {"command": {"arguments": ["x"]}}, "acceptedLength": 3},
            ),
            self.notification("textDocument/didClose", {"textDocument": named}),
        ]

    def notebook(self, number):
        named = {"uri": f"file:///srv/{FOLDER}/n{number}.ipynb", "version": 1}
        cells = [{"kind": 2, "document": f"cell:{number}:{i}"} for i in range(2)]
        texts = [
            {"uri": c["document"], "languageId": "python", "version": 1, "text": f"{SECRET} = \n"}
            for c in cells
        ]
        edit = {"range": {"start": at(0, 1), "end": at(0, 2)}, "text": "x"}
        change = {"textContent": [{"document": {"uri": texts[0]["uri"], "version": 2}, "changes": [edit]}]}
        moved = {
            "structure": {"array": {"start": 0, "deleteCount": 1, "cells": cells[:1]}, "didOpen": texts[:1]}
        }
        ask = {"textDocument": {"uri": texts[0]["uri"]}, "position": at(0, 3), "context": {"triggerKind": 2}}
        opened = {
            "notebookDocument": {**named, "notebookType": "j", "cells": cells},
            "cellTextDocuments": texts,
        }
        return [
            self.notification("notebookDocument/didOpen", opened),
            self.notification(
                "notebookDocument/didChange", {"notebookDocument": named, "change": {"cells": change}}
            ),
            self.request("textDocument/inlineCompletion", ask),
            self.notification(
                "notebookDocument/didChange", {"notebookDocument": named, "change": {"cells": moved}}
            ),
            self.notification(
                "notebookDocument/didClose", {"notebookDocument": named, "cellTextDocuments": texts}
            ),
        ]

    def window(self):
        folders = {"added": [{"uri": f"file:///srv/{FOLDER}", "name": "x"}], "removed": []}
        return [
            self.notification(
                "workspace/didChangeConfiguration",
                {"settings": {"fimserver": {"model": "dllm", "exclude": ["*.x"]}}},
            ),
            self.notification("workspace/didChangeConfiguration", {"settings": None}),
            self.notification("workspace/didChangeWorkspaceFolders", {"event": folders}),
            self.notification(
                "workspace/didChangeWorkspaceFolders", {"event": {"added": [], "removed": folders["added"]}}
            ),
            self.notification("$/setTrace", {"value": "verbose"}),
            self.notification("$/unknown", [1]),
            self.notification("window/workDoneProgress/cancel", {"token": "x"}),
            self.request("no/suchMethod", {"text": SECRET}),
            self.request("textDocument/hover", {"textDocument": {"uri": "x"}, "position": at(0, 0)}),
            self.command("toggle", True),
            self.command("clearCache"),
            self.command("restart"),
            self.command(SECRET),
        ]

    def goodbye(self):
        return [self.request("shutdown"), self.request("fimserver/explain"), self.notification("exit")]


def at(line, character):
    return {"line": line, "character": character}


# ---------------------------------------------------------------- what becomes of it


DEEP = {f"nested {depth}": "[" * depth + '{"jsonrpc":"2.0"}' + "]" * depth for depth in (3, 600, 5000)}
ODD = (
    None, True, False, -1, 0, 1.5, 2**31, 2**31 - 1, 2**63, 10**400, float("nan"), float("inf"), "", "x" * 2000, "\ud800", "\0",
    "file:///srv/\ud800.py", "no uri", [], {}, [None], {"jsonrpc": "2.0"}, {"jsonrpc": "2.0", "id": 1, "method": "exit"},
    *DEEP,
)  # fmt: skip
IDS = (None, True, 1.5, float("nan"), [1], {"a": 1}, -1, 2**70, "text", "", "1", "nested 3")


def places(tree):
    """Every container of a tree with every key of it."""
    todo = [tree]
    while todo:
        here = todo.pop()
        keys = list(here) if isinstance(here, dict) else range(len(here))
        for key in keys:
            yield here, key
            if isinstance(here[key], dict | list):
                todo.append(here[key])


def grow(rng, message, pool):
    """One change somewhere in the tree."""
    here, key = rng.choice([*places(message)])
    kind = rng.randrange(6)
    if kind == 0:
        del here[key]
    elif kind == 1 and isinstance(here, dict):
        here[rng.choice(("jsonrpc", "id", "method", "result", "x" * 300))] = here[key]
    elif kind == 2:
        other, name = rng.choice([*places(rng.choice(pool))])
        here[key] = copy.deepcopy(other[name])
    elif kind == 3 and isinstance(here[key], int):
        here[key] = rng.choice((here[key] + 1, -here[key], here[key] * 10**6, str(here[key])))
    elif kind == 4 and isinstance(here, list):
        here.append(copy.deepcopy(here[key]))
    else:
        here[key] = copy.deepcopy(rng.choice(ODD))


def spoil(rng, body):
    """One change of bytes."""
    at_, junk = rng.randrange(len(body) + 1), rng.randbytes(rng.randrange(1, 9))
    return rng.choice(
        (
            body[:at_],
            body[:at_] + junk + body[at_:],
            body[:at_] + junk + body[at_ + len(junk) :],
            b"[" + body + b"]",
            b"",
            b"7",
            junk,
        )
    )


def mutated(rng, message, pool, share):
    """A share of the messages is changed."""
    if rng.random() >= share:
        return json.dumps(message).encode()
    message = copy.deepcopy(message)
    if rng.random() < 0.1:
        message["id"] = rng.choice(IDS)
    while message and rng.random() < 0.6:
        grow(rng, message, pool)
    text = json.dumps(message, ensure_ascii=rng.random() < 0.8)
    for name, value in DEEP.items():
        text = text.replace(f'"{name}"', value)
    body = text.encode("utf-8", "surrogatepass")
    return spoil(rng, body) if rng.random() < 0.1 else body


def session(rng, size):
    """About so many bodies of one client, changed, out of order, twice or not at all."""
    client = Client(rng.choice(CLIENTS))
    messages, numbers = client.window(), itertools.count()
    while len(messages) < size:
        messages += rng.choice((client.file, client.file, client.file, client.notebook))(next(numbers))
    messages += client.goodbye()
    for i in range(len(messages) - 1):
        if rng.random() < 0.1:
            messages[i], messages[i + 1] = messages[i + 1], messages[i]
    messages = [m for m in messages for _ in range(rng.choice((0, 1, 1, 1, 1, 1, 1, 1, 1, 2)))]
    hello = client.hello()
    pool, share = [*hello, *messages], rng.choice((0.05, 0.2, 0.8))
    bodies = [mutated(rng, message, pool, share) for message in messages]
    greeting = [mutated(rng, message, pool, 0.8) for message in hello for _ in range(3) if rng.random() < 0.5]
    return [*greeting, *(json.dumps(m).encode() for m in hello), *bodies]


# ---------------------------------------------------------------- what has to come back


def id_of(message):
    found = message.get("id")
    return json.dumps(found) if isinstance(found, int | str) and not isinstance(found, bool) else None


def expected(body):
    """The ids that have to be answered for a body: ``None`` where something came that has none."""
    try:
        message = json.loads(body)
    except (ValueError, RecursionError):
        return [None]
    if not isinstance(message, dict):
        return [None]
    if isinstance(method := message.get("method"), str):
        leaves = method == "exit" and id_of(message) is not None
        return [id_of(message)] if "id" in message and not leaves else []
    return [] if "id" in message and ("result" in message or "error" in message) else [id_of(message)]


def says_exit(body):
    try:
        message = json.loads(body)
    except (ValueError, RecursionError):
        return False
    return (
        isinstance(message, dict)
        and message.get("method") == "exit"
        and (id_of(message) or "id" not in message)
    )


class Ledger:
    """What was asked and what was answered."""

    def __init__(self):
        self.asked, self.answered, self.questions, self.odd = Counter(), Counter(), [], []
        self.seen = Counter()  # error codes, methods, and answers with suggestions

    def ask(self, body):
        self.asked.update(expected(body))

    def received(self, body):
        message = json.loads(body.decode(), parse_constant=self.odd.append)
        words = (*INSIDES, SECRET, FOLDER) if "error" in message else INSIDES
        said = json.dumps({name: part for name, part in message.items() if name != "id"}, ensure_ascii=False)
        self.odd += [body for word in words if word in said]
        self.seen[
            message.get("error", {}).get("code")
            or message.get("method")
            or "insertText" * ("insertText" in said)
        ] += 1
        if "method" in message:
            self.questions += [message] if "id" in message else []
            return
        self.answered[id_of(message)] += 1
        if "error" in message and set(message["error"]) != {"code", "message"}:
            self.odd.append(body)

    @property
    def missing(self):
        return self.asked - self.answered

    def settle(self):
        assert self.answered == self.asked, (self.missing, self.answered - self.asked)
        assert not self.odd


# ---------------------------------------------------------------- in this process


class Moody:
    """A line whose host answers, fails, is slow, or loads."""

    def __init__(self, rng):
        self._rng = rng

    async def complete(self, body, *, deadline_s, asked, watch=None):  # noqa: ARG002 - the shape of a line
        await asyncio.sleep(self._rng.choice((0, 0, 0.001, 0.01)))
        if self._rng.random() < 0.2:
            return failure(
                self._rng.choice((Reason.NO_HOST, Reason.FAILED, Reason.HOST_FAILED, Reason.LOADING))
            )
        usage = Usage(route="ar", model="fake", reason=Reason.END, tokens=2)
        return Answer(
            middles=(Middle(text=self._rng.choice(("a + b", "", "x\n", ") (")), usage=usage),) * body.n
        )

    async def send_events(self, batch):  # noqa: ARG002
        return self._rng.random() < 0.5

    async def health(self):
        await asyncio.sleep(0)
        return Health(self._rng.choice((None, Reason.LOADING, Reason.NO_HOST, Reason.NO_MODEL)))

    async def pause(self, minutes):  # noqa: ARG002
        return self._rng.choice(("", "it does not run"))

    def revive(self):
        pass

    async def close(self):
        pass


async def play(rng, bodies):
    """A whole session with a server of its own; the editor answers what it is asked, or not, or with nonsense.

    Returns what was seen.
    """
    ledger, codes = Ledger(), []
    server = make_server(Config(), Moody(rng), ledger.received, codes.append)
    for body in bodies:
        ledger.ask(body)
        stdio._receive(server, [body])
        while ledger.questions and rng.random() < 0.7:
            answer = {
                "id": ledger.questions.pop()["id"],
                "result": rng.choice((None, [None], [{"model": "ar"}], *ODD[:12])),
            }
            stdio._receive(server, [json.dumps(answer).encode()])
        await asyncio.sleep(rng.choice((0, 0, 0, 0.001)))
        if codes:
            break
    assert codes in ([], [0 if server.protocol.life is Life.SHUT_DOWN else 1])
    end = time.monotonic() + WAIT_S
    while ledger.missing and time.monotonic() < end:  # noqa: ASYNC110 - nobody could set an event
        await asyncio.sleep(0.002)
    probe = b'{"jsonrpc":"2.0","id":"last","method":"fimserver/explain"}'
    ledger.ask(probe)
    stdio._receive(server, [probe])
    await asyncio.sleep(0)
    ledger.settle()
    for task in server._tasks:
        task.cancel()
    await server.session.shut()
    return ledger.seen


@pytest.fixture
def said(caplog):
    """What a person would find in the log of the editor; pygls is silenced, as for real."""
    stdio_level = logging.getLogger("pygls").level
    logging.getLogger("pygls").setLevel(logging.CRITICAL)
    with caplog.at_level(logging.WARNING):
        yield caplog
    logging.getLogger("pygls").setLevel(stdio_level)


def test_any_messages_in_any_order(said):
    size, seen = 200, Counter()
    for number in range(max(1, MESSAGES // size)):
        rng = random.Random(f"{SEED} {number}")
        bodies = session(rng, size)
        try:
            seen += asyncio.run(play(rng, bodies))
        except BaseException as error:
            error.add_note(f"WIRE_SEED={SEED}, session {number}")
            raise
        assert not [word for word in (*INSIDES, SECRET, FOLDER) if word in said.text], (
            f"session {number}\n{said.text}"
        )
        said.clear()
    print(dict(seen))
    wanted = {
        -32700,
        -32600,
        -32601,
        -32602,
        -32002,
        -32800,
        "insertText",
        "workspace/configuration",
        "fimserver/status",
    }
    assert MESSAGES < 2000 or wanted <= set(seen)


# ---------------------------------------------------------------- what was wrong once


ONE_BY_ONE = [
    ({"jsonrpc": "1.0", "id": "old version", "method": "fimserver/explain"}, None),
    ({"id": "no version", "method": "fimserver/explain"}, None),
    ({"id": "\ud800", "method": "fimserver/explain"}, None),
    (
        {"id": "notification", "method": "textDocument/didClose", "params": {"textDocument": {"uri": "x"}}},
        -32600,
    ),
    ({"id": "cancel", "method": "$/cancelRequest", "params": {"id": 1}}, -32600),
    ({"id": "no method"}, -32600),
    (
        {
            "id": "odd route",
            "method": "workspace/executeCommand",
            "params": {"command": "fimserver.setRoute", "arguments": [{}]},
        },
        None,
    ),
    ({"id": "odd command", "method": "workspace/executeCommand", "params": {"command": "x"}}, -32602),
    ({"id": "deep", "method": "fimserver/explain", "params": [[[{"jsonrpc": "2.0", "id": 3}]]]}, None),
]


def test_odd_requests_are_answered_one_by_one(editor):
    for message, _ in ONE_BY_ONE:
        editor.link.send(json.dumps(message).encode())
    codes = {
        message["id"]: editor.answer(message["id"]).get("error", {}).get("code") for message, _ in ONE_BY_ONE
    }
    assert codes == {message["id"]: code for message, code in ONE_BY_ONE}


def test_an_answer_or_a_cancel_with_the_id_of_something_else_harms_nothing(editor, host):
    host.says(0.2, "a + b")
    editor.open("file:///work/a.py", "x = \n")
    request = editor.post("textDocument/inlineCompletion", editor.params("file:///work/a.py", 0, 4))
    for odd in (
        {"id": request, "result": None},
        {"method": "$/cancelRequest", "params": {"id": {"a": request}}},
    ):
        editor.link.send(json.dumps(odd).encode())
    assert editor.answer(request)["result"]["items"]


CELLS = {
    "notebookDocument": {"uri": "file:///n.ipynb", "version": 2},
    "change": {"cells": {"textContent": 7}},
}


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b'{"method":"textDocument/didChange"', id="no JSON"),
        pytest.param(b'[{"method":"textDocument/didChange"}]', id="a batch"),
        pytest.param(b'{"method":"textDocument/didChange","params":{}}', id="no document"),
        pytest.param(
            b'{"method":"textDocument/didOpen","params":{"textDocument":{"uri":"cell:1"}}}', id="no text"
        ),
        pytest.param(
            json.dumps({"method": "notebookDocument/didChange", "params": CELLS}).encode(), id="cells"
        ),
    ],
)
def test_what_may_have_been_an_edit_silences_the_document(body, editor, host):
    host.says("a + b")
    opened = {
        "notebookDocument": {
            "uri": "file:///n.ipynb",
            "notebookType": "j",
            "version": 1,
            "cells": [{"kind": 2, "document": "cell:1"}],
        },
        "cellTextDocuments": [{"uri": "cell:1", "languageId": "python", "version": 1, "text": "x = \n"}],
    }
    editor.notify("notebookDocument/didOpen", opened)
    assert editor.ask("cell:1", 0, 4)
    editor.link.send(body)
    assert editor.ask("cell:1", 0, 4) == []
    assert editor.explain()["reason"] == "dirty"


def test_a_document_that_was_opened_again_meanwhile_gets_no_suggestion_for_what_it_was(editor, host):
    running = threading.Event()

    def script(_request, _route):
        running.set()
        yield 0.3
        yield "a + b"

    host.engines.script = script
    editor.open("file:///work/a.py", "\n\n\nx = \n")
    request = editor.post("textDocument/inlineCompletion", editor.params("file:///work/a.py", 3, 4))
    assert running.wait(10)
    editor.open("file:///work/a.py", "")
    assert not editor.answer(request)["result"]  # out of date, so not even an empty list
    assert editor.explain()["reason"] in {"stale", "superseded"}


# ---------------------------------------------------------------- over pipes


def pieces(rng, data):
    while data:
        cut = rng.choice((1, 7, 100, 5000, 70000))
        yield data[:cut]
        data = data[cut:]


def ended(link, wait_s=WAIT_S):
    """The exit code."""
    end = time.monotonic() + wait_s
    while link.exit_code is None and time.monotonic() < end:
        time.sleep(0.005)
    return link.exit_code


@pytest.mark.parametrize("number", range(PIPED))
def test_any_messages_over_real_pipes(number, host):
    host.says("a ", "+ b")
    rng, ledger = random.Random(f"{SEED} pipes {number}"), Ledger()
    bodies = [body for body in session(rng, 300) if not says_exit(body)]
    link = OverPipes(host.url, ledger.received)
    try:
        for body in bodies:
            ledger.ask(body)
        for piece in pieces(rng, b"".join(map(encode, bodies))):
            link.raw(piece)
        end = time.monotonic() + WAIT_S
        while ledger.missing and time.monotonic() < end:
            time.sleep(0.01)
        ledger.settle()
        assert link.exit_code is None
        link.send(b'{"id":"end","method":"shutdown"}', b'{"method":"exit"}')
        assert ended(link) == 0
    finally:
        link.close()
    assert not [word for word in (*INSIDES, SECRET, FOLDER) if word in link.stderr], link.stderr


GOOD = b'Content-Length: 34\r\n\r\n{"id":1,"method":"no/suchRequest"}'


@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param(b"Content-Length: 1000000000000\r\n\r\n", id="too large"),
        pytest.param(b"Content-Length: two\r\n\r\n{}", id="no number"),
        pytest.param(b"Content-Length: 2\r\n\r\n{}}\r\n", id="longer than said"),
        pytest.param(b"Content-Length: 36\r\n\r\n{}" + GOOD, id="shorter than said"),
        pytest.param(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}", id="a web page"),
        pytest.param(random.Random(1).randbytes(200), id="noise"),
    ],
)
def test_a_stream_out_of_step_ends_the_server(garbage, host):
    ledger = Ledger()
    link = OverPipes(host.url, ledger.received)
    try:
        link.raw(GOOD)
        end = time.monotonic() + WAIT_S
        while not ledger.answered and time.monotonic() < end:
            time.sleep(0.005)
        link.raw(GOOD.replace(b":1,", b":2,") + garbage)
        assert ended(link) == 1
    finally:
        link.close()
    assert ledger.answered - Counter({None: 1}) == {"1": 1, "2": 1}, "what came before it is answered"
    assert not [word for word in INSIDES if word in link.stderr]
