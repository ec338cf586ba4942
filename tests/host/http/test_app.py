"""The endpoints of a host over a real connection, with scripted engines."""

import json
import socket
import threading
import time
from collections import Counter
from contextlib import contextmanager

import httpx2
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

from fimserver.errors import ModelMissingError, NonFiniteError
from fimserver.types import CONTEXT_CHARS, Sampling
from fimserver.wire import MAX_BODY_BYTES, read_answer
from tests.hosts import ScriptedHost, until

PATIENCE_S = 60.0
TOKEN = "secret"  # noqa: S105 - of a host that lives as long as a test


class Client(httpx2.Client):
    """Talks to one host."""

    def __init__(self, host, **headers):
        super().__init__(base_url=host.url, headers=headers, trust_env=False, timeout=PATIENCE_S)

    def completes(self, prompt="a", *, status=200, known=None, **fields):
        """The answer to a request."""
        response = self.post("/v1/completions", json={"prompt": prompt, "fimserver": known or {}, **fields})
        assert response.status_code == status, response.text
        return response.json()

    def streams(self, **fields):
        """The events of a stream."""
        with self.stream(
            "POST", "/v1/completions", json={"prompt": "a", "stream": True, **fields}
        ) as response:
            assert response.status_code == 200
            assert response.headers["content-type"].startswith("text/event-stream")
            data = [line.removeprefix("data: ") for line in response.iter_lines() if line]
        assert data.pop() == "[DONE]"
        return [json.loads(event) for event in data]


@pytest.fixture
def client(host):
    with Client(host) as client:
        yield client


@contextmanager
def hangs(host):
    """The engine does not come back from a forward pass before the end."""
    free, began = threading.Event(), threading.Event()

    def script(_request, _route):
        yield "x"
        began.set()
        assert free.wait(PATIENCE_S)

    host.engines.script = script
    try:
        yield began
    finally:
        free.set()
        until(lambda: host.scheduler.depth == (0, 0))


def plods(_request, _route):
    """An engine with more small steps than any test waits for."""
    for _ in range(2000):
        yield "x"
        yield 0.005


def test_an_answer_has_the_shape_of_openai(client):
    answer = client.completes()
    assert answer["id"].startswith("cmpl-")
    assert (answer["object"], answer["model"]) == ("text_completion", "fake")
    assert abs(answer["created"] - time.time()) < 60
    assert answer["choices"] == [{"index": 0, "text": "xy", "finish_reason": "stop"}]
    assert answer["usage"] == {"prompt_tokens": 0, "completion_tokens": 2, "total_tokens": 2}
    assert [(u["route"], u["reason"], u["tokens"]) for u in answer["fimserver"]] == [("ar", "end", 2)]
    assert "error" not in answer


def test_a_stream_has_the_shape_of_openai(client):
    events = client.streams()
    assert {event["object"] for event in events} == {"text_completion"}
    assert len({event["id"] for event in events}) == 1
    assert [event["choices"] for event in events] == [
        [{"index": 0, "text": "x", "finish_reason": None}],
        [{"index": 0, "text": "y", "finish_reason": None}],
        [{"index": 0, "text": "", "finish_reason": "stop"}],
    ]
    assert [event.get("model") for event in events] == ["fake"] * 3
    assert events[-1]["fimserver"]["reason"] == "end"


def test_a_stream_comes_as_it_is_made(host, client):
    with (
        hangs(host),
        client.stream("POST", "/v1/completions", json={"prompt": "a", "stream": True}) as response,
    ):
        assert '"text":"x"' in next(response.iter_lines())


@pytest.mark.parametrize("stream", [True, False])
def test_choices_are_told_apart_by_index(client, stream):
    fields = {"n": 3, "suffix": ")"}
    if stream:
        events = client.streams(**fields)
        texts = [
            "".join(e["choices"][0]["text"] for e in events if e["choices"][0]["index"] == i)
            for i in range(3)
        ]
        routes = [event["fimserver"]["route"] for event in events if "fimserver" in event]
    else:
        answer = client.completes(**fields)
        texts = [choice["text"] for choice in answer["choices"]]
        routes = [usage["route"] for usage in answer["fimserver"]]
        assert answer["usage"] == {"prompt_tokens": 0, "completion_tokens": 6, "total_tokens": 6}
    assert texts == ["xy"] * 3
    assert routes == ["ar", "dllm", "ar"]


def test_stop_strings_and_limits(host, client):
    answer = client.completes(stop=["y"])
    assert answer["choices"][0] == {"index": 0, "text": "x", "finish_reason": "stop"}
    assert answer["fimserver"][0]["reason"] == "block"
    client.completes(
        max_tokens=7,
        temperature=0.5,
        top_p=0.25,
        seed=3,
        known={"stop": "line", "path": "p", "typed_chars": 1},
    )
    asked = host.engines.asked[-1]
    assert asked.sampling == Sampling(7, 0.5, 0.25, 3, "line")
    assert (asked.path, asked.typed_chars) == ("p", 1)


def test_what_is_far_from_the_cursor_never_reaches_an_engine(host, client):
    far = CONTEXT_CHARS
    client.completes("p" + "a" * far, suffix="b" * far + "s")
    asked = host.engines.asked[0]
    assert (asked.prefix, asked.suffix) == ("a" * far, "b" * far)


def test_no_tokens_means_warm_only(host, client):
    assert client.completes(max_tokens=0)["choices"] == [{"index": 0, "text": "", "finish_reason": "stop"}]
    assert [len(host.engines.warmed), len(host.engines.asked)] == [1, 0]


def test_the_front_reads_what_the_host_writes(client):
    response = client.post("/v1/completions", json={"prompt": "a", "n": 2})
    assert [(m.text, m.usage.model, m.usage.reason) for m in read_answer(response.content).middles] == [
        ("xy", "fake", "end")
    ] * 2


@pytest.mark.parametrize("stream", [True, False])
def test_a_newer_request_of_a_document_answers_the_older(host, client, stream):
    host.engines.script = plods
    known = {"session": "s", "document": "d"}
    answers = []

    def asks():
        with Client(host) as other:
            answers.append(
                other.streams(fimserver=known)[-1]["fimserver"]
                if stream
                else other.completes(known=known)["fimserver"][0]
            )

    thread = threading.Thread(target=asks)
    thread.start()
    until(lambda: host.scheduler.depth == (1, 0))
    host.says("new")
    assert client.completes(known=known)["choices"][0]["text"] == "new"
    thread.join(PATIENCE_S)
    assert [usage["reason"] for usage in answers] == ["superseded"]


def test_requests_without_a_document_are_strangers(host):
    begun, threads, answers = threading.Event(), [], []

    def script(_request, _route):
        assert begun.wait(PATIENCE_S)
        yield "x"

    def asks():
        with Client(host) as other:
            answers.append(other.completes()["fimserver"][0]["reason"])

    host.engines.script = script
    for _ in range(3):
        threads.append(threading.Thread(target=asks))
        threads[-1].start()
    until(lambda: host.scheduler.depth == (1, 2))
    begun.set()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert answers == ["end"] * 3


def hang_up(host, *, stream, while_):
    """Send a request over a bare socket, and close it ``while_`` that is true."""
    body = json.dumps({"prompt": "dropped", "stream": stream}).encode()
    with socket.create_connection(("127.0.0.1", int(host.url.rsplit(":", 1)[1])), PATIENCE_S) as line:
        line.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b"
            % (len(body), body)
        )
        until(while_)


@pytest.mark.parametrize("stream", [True, False])
def test_hanging_up_stops_the_engine(host, stream):
    host.engines.script = plods
    hang_up(host, stream=stream, while_=lambda: host.engines.asked)
    dropped = time.monotonic()
    until(lambda: host.engines.stopped)
    ((reason, when),) = host.engines.stopped
    assert reason == "cancelled"
    assert when - dropped < 1


@pytest.mark.parametrize("stream", [True, False])
def test_hanging_up_in_the_queue_leaves_it(host, stream):
    with hangs(host) as began:
        hang_up(host, stream=False, while_=began.is_set)  # else it would end before it hangs
        hang_up(host, stream=stream, while_=lambda: host.scheduler.depth == (1, 1))
        until(lambda: host.scheduler.depth == (1, 0))
    assert len(host.engines.asked) == 1


def test_hanging_up_within_the_body_is_no_error(host, client, caplog):
    with socket.create_connection(("127.0.0.1", int(host.url.rsplit(":", 1)[1])), PATIENCE_S) as line:
        line.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        until(lambda: host._server.server_state.tasks)
    until(lambda: not host._server.server_state.tasks)
    assert client.completes()["choices"][0]["text"] == "xy"
    assert not caplog.records


@pytest.mark.parametrize("stream", [True, False])
def test_everyone_is_answered_at_the_deadline_even_if_the_engine_hangs(host, client, stream):
    with hangs(host) as began:
        started = time.monotonic()
        known = {"deadline_ms": 1000, "route": "ar"}
        first = client.streams(fimserver=known) if stream else client.completes(known=known)
        assert began.is_set()
        behind = client.completes(known=known)
        took = time.monotonic() - started
    choices = [event["choices"][0] for event in first] if stream else first["choices"]
    usage = first[-1]["fimserver"] if stream else first["fimserver"][0]
    assert "".join(choice["text"] for choice in choices) == "x"
    assert choices[-1]["finish_reason"] == "length"
    assert (usage["reason"], usage["route"]) == ("deadline", "ar")
    assert behind["choices"][0]["text"] == ""
    assert behind["fimserver"][0]["reason"] == "deadline"
    assert 2 <= took < PATIENCE_S


def test_what_is_good_by_the_deadline_is_given(host, client):
    host.engines.script = plods
    answer = client.completes(known={"deadline_ms": 100})
    assert set(answer["choices"][0]["text"]) == {"x"}
    assert (answer["choices"][0]["finish_reason"], answer["fimserver"][0]["reason"]) == ("length", "deadline")
    assert answer["usage"]["completion_tokens"] == len(answer["choices"][0]["text"])


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("canary"), "failed"),
        (KeyboardInterrupt("canary"), "failed"),
        (NonFiniteError("NaN"), "non_finite"),
        (torch.OutOfMemoryError("canary"), "out_of_memory"),
    ],
    ids=repr,
)
def test_a_failure_is_an_answer_and_the_host_goes_on(host, client, error, reason):
    host.says(error)
    answer = client.completes("canary")
    assert answer["choices"] == [{"index": 0, "text": "", "finish_reason": "stop"}]
    assert answer["fimserver"][0]["reason"] == reason
    assert answer["error"]["message"]
    assert "canary" not in json.dumps(answer)
    assert client.streams()[-1]["error"] == answer["error"]
    host.says("x")
    assert client.completes()["choices"][0]["text"] == "x"
    assert client.get("/health").status_code == 200


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"prompt": 1}, "prompt"),
        ({"n": 0}, "n"),
        ({"fimserver": {"deadline_ms": -1}}, "fimserver.deadline_ms"),
        ({"model": "gpt-4"}, "model"),
        ({"model": "gpt-4", "fimserver": {"route": "ar"}}, "model"),
        ({"model": "qwen2.5-coder-7b"}, "model"),
    ],
)
def test_a_bad_request_is_refused_by_field(host, client, fields, named):
    response = client.post("/v1/completions", json={"prompt": "a", **fields})
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith(named)
    assert not host.engines.asked


def test_a_card_that_is_not_served_is_told_from_one_that_is_unknown(client):
    known, unknown = (
        client.completes(model=name, status=400)["error"]["message"] for name in ("qwen2.5-coder-7b", "gpt-4")
    )
    assert "started with it" in known
    assert "not known" in unknown


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_that_is_too_large_is_refused(host, client, declared):
    data = b" " * (MAX_BODY_BYTES + 1)
    response = client.post("/v1/completions", content=data if declared else iter([data[:-9], data[-9:]]))
    assert response.status_code == 400
    assert "8 MiB" in response.json()["error"]["message"]
    assert not host.engines.asked


@pytest.mark.parametrize(
    ("model", "pin", "route"),
    [
        ("auto", "auto", "ar"),
        ("", "auto", "ar"),
        ("fimserver", "ar", "ar"),
        ("ar", "auto", "ar"),
        ("ar", "dllm", "dllm"),
    ],
)
def test_a_model_or_a_pin_names_the_route(client, model, pin, route):
    assert client.completes(model=model, known={"route": pin})["fimserver"][0]["route"] == route


def test_models_are_the_names_that_a_request_may_have(client):
    answer = client.get("/v1/models").json()
    assert answer["object"] == "list"
    assert [(model["id"], model["object"]) for model in answer["data"]] == [
        (name, "model") for name in ("auto", "dllm", "ar", "fake")
    ]
    for model in answer["data"]:
        client.completes(model=model["id"])


@pytest.mark.parametrize(
    ("verb", "path", "status"),
    [("GET", "/v1/completions", 405), ("POST", "/health", 405), ("GET", "/x", 404)],
)
def test_other_ways_lead_nowhere(client, verb, path, status):
    assert client.request(verb, path).status_code == status


def test_health_while_models_are_loaded_and_after():
    loaded = threading.Event()

    def load():
        assert loaded.wait(PATIENCE_S)
        return host.engines

    host = ScriptedHost(load)
    with host, Client(host) as client:
        response = client.get("/health")
        assert (response.status_code, response.json()["status"]) == (503, "loading")
        usage = client.completes(known={"deadline_ms": 100})["fimserver"][0]
        assert usage["reason"] == "loading"
        loaded.set()
        until(lambda: client.get("/health").json()["status"] == "ok")
        assert client.get("/health").status_code == 200
        assert host.scheduler.depth == (0, 0)  # who was answered at the deadline is not worked for


def test_health_when_models_cannot_be_loaded():
    def load():
        raise ModelMissingError("run fimserver models get x")

    with ScriptedHost(load) as host, Client(host) as client:
        until(lambda: client.get("/health").json()["status"] == "no_model")
        response = client.get("/health")
        assert response.status_code == 503
        assert response.json()["error"] == {"message": "run fimserver models get x"}
        answer = client.completes()
        assert answer["fimserver"][0]["reason"] == "no_model"
        assert answer["error"] == {"message": "run fimserver models get x"}
        assert "fimserver_ready 0.0" in client.get("/metrics").text


def test_metrics_count_and_hold_no_text(host, client):
    canary = "canary" * 3
    known = {"session": canary, "document": canary, "path": canary, "repo": canary, "route": "ar"}
    host.says(canary, ValueError(canary))
    before = samples(client)
    client.completes(canary, suffix=canary, known=known)
    client.completes(model=canary, status=400)
    after = samples(client)
    grown = Counter[str]()
    for name, labels in after:
        if ("route", "ar") in labels:
            grown[name] += after[name, labels] - before.get((name, labels), 0)
    assert grown["fimserver_choices_total"] == 1
    assert grown["fimserver_queue_seconds_count"] == 1
    assert (after["fimserver_running", ()], after["fimserver_waiting", ()], after["fimserver_ready", ()]) == (
        0,
        0,
        1,
    )
    assert canary not in client.get("/metrics").text


def samples(client):
    """Name and labels to value, of all that is ours."""
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    found = [s for family in text_string_to_metric_families(response.text) for s in family.samples]
    assert {name for s in found if s.name.startswith("fimserver_") for name in s.labels} <= {
        "route",
        "reason",
        "le",
        "place",
    }
    return {
        (s.name, tuple(sorted(s.labels.items()))): s.value for s in found if s.name.startswith("fimserver_")
    }


def test_drafts_are_counted_in_answers_and_metrics(host, client):
    host.says("a", "b", "c")
    before = samples(client)
    answer = client.completes(known={"route": "ar"})
    after = samples(client)
    assert answer["fimserver"][0]["drafting"] == {
        "rounds": 3,
        "drafted": 6,
        "accepted": [3],
        "switched_off": 0,
    }
    grown = {key: after[key] - before.get(key, 0) for key in after}
    assert grown["fimserver_draft_rounds_total", ()] == 3
    assert grown["fimserver_drafted_tokens_total", ()] == 6
    assert grown["fimserver_accepted_tokens_total", (("place", "1"),)] == 3


def test_metrics_have_names_that_dashboards_rely_on(client):
    client.completes()
    names = {name for name, _ in samples(client)}
    assert names >= {
        "fimserver_choices_total",
        "fimserver_tokens_total",
        "fimserver_forwards_total",
        "fimserver_ttft_seconds_count",
        "fimserver_total_seconds_count",
        "fimserver_queue_seconds_count",
        "fimserver_running",
        "fimserver_waiting",
        "fimserver_ready",
    }


@pytest.fixture(scope="module")
def guarded():
    with ScriptedHost(token=TOKEN, allowed_hosts=frozenset({"127.0.0.1", "::1", "box"})) as host:
        host.says("x")
        yield host


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/metrics", "/v1/completions"])
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": "Bearer"}, 401),
        ({"Authorization": f"Bearer {TOKEN}x"}, 401),
        ({"Authorization": f"Basic {TOKEN}"}, 401),
        ({"Authorization": f"Bearer {TOKEN}", "Origin": "http://evil.example"}, 403),
        ({"Authorization": f"Bearer {TOKEN}", "Origin": "null"}, 403),
        ({"Authorization": f"Bearer {TOKEN}", "Host": "evil.example"}, 403),
        ({"Authorization": f"Bearer {TOKEN}", "Host": "127.0.0.1.evil.example:80"}, 403),
        ({"Authorization": f"Bearer {TOKEN}", "Host": "x@127.0.0.1"}, 403),
        ({"Authorization": f"Bearer {TOKEN}", "Host": ""}, 403),
        ({"Authorization": f"Bearer {TOKEN}", "Host": "[::1"}, 403),
        ({"Authorization": f"Bearer {TOKEN}"}, 200),
        ({"Authorization": f"Bearer {TOKEN}", "Host": "[::1]:8765"}, 200),
        ({"Authorization": f"Bearer {TOKEN}", "Host": "BOX"}, 200),
    ],
    ids=lambda value: str(value).replace(TOKEN, "TOKEN"),
)
def test_over_tcp_only_who_has_the_token_is_served(guarded, path, headers, status):
    with Client(guarded) as client:
        verb, content = ("POST", b'{"prompt": "a"}') if "completions" in path else ("GET", None)
        response = client.request(verb, path, headers=headers, content=content)
    assert response.status_code == status
    assert TOKEN not in response.text


def test_who_is_refused_keeps_no_host_awake(guarded):
    before = guarded.host.last_used
    with Client(guarded) as client:
        client.get("/health")
        assert guarded.host.last_used == before
        client.get("/health", headers={"Authorization": f"Bearer {TOKEN}"})
    assert guarded.host.last_used > before
