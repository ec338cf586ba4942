"""When an editor sends requests, and traces replayed against real servers."""

import sys

import pytest

from fimserver.ab.items.client_model import PlannedRequest, plan
from fimserver.ab.items.traces import Change, Close, Open, Patch, SuggestionRequested, Trace
from fimserver.ab.replay.keystrokes import rows, timeline, totals
from fimserver.ab.replay.replay import replay
from fimserver.errors import FimError, InputError, ModelError
from tests.hosts import OwnHosts, ScriptedHost

COMMAND = [sys.executable, "-P", "-m", "fimserver.cli"]


def key(t_ms, text="x", at=(0, 0), end=None, doc=1):
    return Change(t=t_ms, doc=doc, edits=(Patch(*at, *(end or at), text),))


def trace(*events, text=""):
    return Trace("t", (Open(t=0, doc=1, language="python", name="a.py", text=text), *events))


def asked(steps):
    return [
        (step.due_ms, step.what.line, step.what.char)
        for step in steps
        if isinstance(step.what, PlannedRequest)
    ]


@pytest.mark.parametrize(
    ("events", "client", "expected"),
    [
        pytest.param([key(100), key(250)], "vscode", [(140, 0, 1), (290, 0, 1)], id="after each key"),
        pytest.param(
            [key(100), key(130), key(300)],
            "vscode",
            [(170, 0, 1), (340, 0, 1)],
            id="not where a key comes sooner",
        ),
        pytest.param(
            [key(100), key(250), key(700)],
            "neovim",
            [(450, 0, 1), (900, 0, 1)],
            id="after the last of a burst",
        ),
        pytest.param(
            [key(100), key(200, "", (0, 0), (0, 1))], "vscode", [(140, 0, 1)], id="not where text is deleted"
        ),
        pytest.param([key(100), Close(t=120, doc=1)], "vscode", [], id="not where the document closes"),
        pytest.param(
            [key(100, "a\r\n  b", (0, 2))], "vscode", [(140, 1, 3)], id="at the end of what was inserted"
        ),
        pytest.param([key(100, "ab\n", (3, 2))], "vscode", [(140, 4, 0)], id="on a fresh line"),
        pytest.param(
            [key(100), key(60_000)], "vscode", [(140, 0, 1), (2140, 0, 1)], id="long pauses are cut"
        ),
        pytest.param(
            [key(100), SuggestionRequested(t=177, doc=1, line=0, char=1), key(200)],
            "neovim",
            [(177, 0, 1)],
            id="as the trace itself says",
        ),
    ],
)
def test_when_an_editor_asks(events, client, expected):
    assert asked(plan(trace(*events), client)) == expected


def test_requests_are_numbered_and_know_what_they_follow():
    steps = plan(trace(key(100), key(300)), "vscode")
    assert [step.what for step in steps if isinstance(step.what, PlannedRequest)] == [
        PlannedRequest(0, 1, 1, 0, 1),
        PlannedRequest(1, 2, 1, 0, 1),
    ]


@pytest.fixture
def host():
    with ScriptedHost() as host:
        yield host


def typing(text, every_ms):
    """A user who types on a blank line."""
    keys = [key(every_ms * (n + 1), char, (1, 4 + n)) for n, char in enumerate(text)]
    return trace(*keys, Close(t=every_ms * (len(text) + 1), doc=1), text="def f(a, b):\n    \n")


def play(host, what, **options):
    return replay(
        what,
        [*COMMAND, "--model", "ar"],
        env={"FIMSERVER_CONNECT": host.url},
        options={"prefetch": False, "delayMs": 0},
        **options,
    )


def test_without_a_speed_every_request_is_answered_before_the_next_key(host):
    host.says("eturn a")
    run = play(host, typing("r = ", 100), speed=None)
    assert run.shots[0].ending == "shown"
    assert {shot.ending for shot in run.shots} <= {"shown", "empty"}
    assert run.shots[0].texts == (("eturn a", 0),)
    assert {shot.facts["route"] for shot in run.shots if shot.facts["source"] == "model"} == {"ar"}
    assert all(shot.key_ms <= shot.asked_ms <= shot.answered_ms for shot in run.shots)
    assert [chars for _, chars in run.keys] == [1] * 4


@pytest.mark.parametrize(("client", "ending"), [("vscode", "cancelled"), ("neovim", "superseded")])
def test_the_next_key_ends_a_request_as_the_editor_ends_it(client, ending, host):
    def script(request, _route):
        if "f(a" in request.prefix:  # the trace's own file takes longer than the next key
            yield from [0.05] * 40
        yield "x"

    host.engines.script = script
    run = play(host, typing("ab", 400), client=client)
    assert run.shots[0].ending == ending
    assert run.shots[0].facts == {}


def test_requests_of_the_trace_are_played_in_place_of_the_editors_own(host):
    host.says("c")
    what = trace(
        key(10, "b"), SuggestionRequested(t=40, doc=1, line=0, char=1, invoked=True), key(200, "c", (0, 1))
    )
    run = play(host, what, speed=None)
    assert [shot.request for shot in run.shots] == [PlannedRequest(0, 2, 1, 0, 1, invoked=True)]


def test_a_replay_records_nothing(host, tmp_path, monkeypatch):
    host.says("x")
    monkeypatch.setenv("FIMSERVER_RECORD", str(tmp_path / "t.jsonl"))
    play(host, typing("a", 100), speed=None)
    assert not list(tmp_path.rglob("t.jsonl"))


def test_a_model_that_fails_is_an_error(host):
    host.says(ModelError("its files are gone"))
    with pytest.raises(FimError, match="the server cannot complete: "):
        play(host, typing("a", 100), speed=None)


DIES = "import sys; sys.exit('gone for a reason')"
EXITS = (
    'import os; os.write(1, b\'Content-Length: 36\\r\\n\\r\\n\' + b\'{"jsonrpc":"2.0","id":1,"result":{}}\')'
)
SILENT = "import time; time.sleep(600)"
CHATTY = "print('hello world, how are you')"


@pytest.mark.parametrize(
    ("command", "kind", "says"),
    [
        (["/nowhere/fimserver"], InputError, "/nowhere/fimserver cannot be started"),
        ([sys.executable, "-c", DIES], FimError, "ended, exit code 1: gone for a reason"),
        ([sys.executable, "-c", EXITS], FimError, "ended, exit code 0"),
        ([sys.executable, "-c", SILENT], FimError, "did not answer within 1 s"),
        ([sys.executable, "-c", CHATTY], InputError, "not a language server"),
        ([*COMMAND, "--max-tokens", "0"], InputError, "option max_tokens"),
        ([*COMMAND, "--connect", "http://127.0.0.1:9"], FimError, "not ready after 1 s"),
    ],
    ids=["absent", "dies", "leaves", "silent", "chatty", "bad flags", "no host"],
)
def test_a_server_that_cannot_serve_is_an_error_in_one_line(command, kind, says):
    limit_s = 0.5 if SILENT in command else 60.0
    with pytest.raises(kind) as caught:
        replay(typing("a", 100), command, ready_s=1.0, limit_s=limit_s)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_server_that_is_slow_to_start_does_not_hang():
    late = (
        "import os, time; time.sleep(1); os.write(1, b'Content-Length: 51\\r\\n\\r\\n' + "
        'b\'{"jsonrpc":"2.0","id":1,"error":{"message":"late"}}\')'
    )
    with pytest.raises(FimError, match="refused initialize: late"):
        replay(typing("a", 100), [sys.executable, "-c", late], ready_s=60.0, limit_s=0.1)


@pytest.mark.parametrize("speed", [0.0, -1.0, float("nan")])
def test_a_speed_that_is_none(speed):
    with pytest.raises(InputError, match="give a number above 0"):
        replay(typing("a", 100), COMMAND, speed=speed)


def test_a_trace_goes_through_the_real_server_and_model():
    what = typing("return a +", 100)
    with OwnHosts() as own:
        env = own.env | {"FIMSERVER_DEVICE": "cpu"}
        a, b = (replay(what, [*COMMAND, "--model", route], speed=1.0, env=env) for route in ("dllm", "ar"))
    assert [shot.request for shot in a.shots] == [shot.request for shot in b.shots]
    for run, route in ((a, "dllm"), (b, "ar")):
        assert (len(run.shots), len(run.keys), run.route) == (10, 10, route)
        assert all(shot.asked_ms < shot.answered_ms for shot in run.shots)
        answered = [
            shot for shot in run.shots if shot.facts.get("source") == "model" and "route" in shot.facts
        ]
        assert {shot.facts["route"] for shot in answered} <= {route}
        assert totals(run).typed_chars == 10
        assert sum(mark.what == "key" for mark in timeline("t", "a", run).marks) == 10
    made = rows("t", a, b)
    assert {(row.a.route, row.b.route) for row in made} == {("dllm", "ar")}
    assert made[0].gold == "eturn a +"
