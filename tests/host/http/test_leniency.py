"""Leniency with real clients: limits above ours, nulls, lists of one, any seed, many stops, cut characters."""

import json
import socket
import threading
import time

import httpx2
import pytest

from fimserver.host import waiting
from fimserver.reasons import EXPLANATIONS, Reason
from fimserver.types import MAX_TOKENS, SEEDS
from fimserver.wire import MAX_FILE_CHARS, MAX_STOPS, read_body

PATIENCE_S = 60.0
COMPLETION_PATHS = ["/v1/completions", "/v1/fim/completions", "/fim/completions", "/infill"]


@pytest.fixture
def client(host):
    with httpx2.Client(base_url=host.url, trust_env=False, timeout=PATIENCE_S) as client:
        yield client


def asked(host, client, path, raw=None, **fields):
    """The request that reached the engine."""
    content = raw if raw is not None else json.dumps({"prompt": "a", **fields})
    response = client.post(path, content=content)
    assert response.status_code == 200, response.text
    return host.engines.asked[-1]


@pytest.mark.parametrize("path", COMPLETION_PATHS)
@pytest.mark.parametrize("limit", [MAX_TOKENS + 1, 4096, 2**31, 10**30])
def test_a_limit_above_ours_is_ours(host, client, path, limit):
    name = "n_predict" if path == "/infill" else "max_tokens"
    assert asked(host, client, path, **{name: limit}).sampling.max_tokens == MAX_TOKENS


@pytest.mark.parametrize("path", COMPLETION_PATHS)
def test_no_limit_of_the_client_is_our_default(host, client, path):
    name = "n_predict" if path == "/infill" else "max_tokens"
    assert (
        asked(host, client, path, **{name: -1}).sampling.max_tokens
        == asked(host, client, path).sampling.max_tokens
        == 64
    )


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/infill", {"t_max_predict_ms": 10**9}),
        ("/infill", {"n_indent": 10**9}),
        ("/v1/completions", {"fimserver": {"deadline_ms": 10**9}}),
    ],
)
def test_other_limits_above_ours_are_ours_too(host, client, path, fields):
    assert asked(host, client, path, **fields)


OPENAI_NULLS = [
    "model",
    "suffix",
    "max_tokens",
    "temperature",
    "top_p",
    "seed",
    "stop",
    "n",
    "stream",
    "stream_options",
    "echo",
]
INFILL_NULLS = [
    *(
        "model",
        "input_prefix",
        "prompt",
        "input_suffix",
        "input_extra",
        "n_predict",
        "n_indent",
        "n_cmpl",
        "temperature",
    ),
    *("top_k", "top_p", "seed", "stop", "t_max_prompt_ms", "t_max_predict_ms", "stream", "response_fields"),
]


@pytest.mark.parametrize("name", [*OPENAI_NULLS, "fimserver"])
def test_a_null_of_openai_is_a_field_that_was_left_out(host, client, name):
    assert asked(host, client, "/v1/completions", **{name: None}) == asked(host, client, "/v1/completions")


@pytest.mark.parametrize("name", INFILL_NULLS)
def test_a_null_of_infill_is_a_field_that_was_left_out(host, client, name):
    fields = {"input_prefix": "a", "prompt": "b"}
    rest = {key: value for key, value in fields.items() if key != name}
    assert asked(host, client, "/infill", json.dumps(fields | {name: None})) == asked(
        host, client, "/infill", json.dumps(rest)
    )


def test_nulls_within_hints_and_chunks(host, client):
    hints = {"route": None, "deadline_ms": None, "snippets": None, "features": None}
    assert asked(host, client, "/v1/completions", fimserver=hints) == asked(host, client, "/v1/completions")
    got = asked(host, client, "/infill", input_extra=[{"filename": None, "text": "x"}])
    assert [(snippet.path, snippet.text) for snippet in got.snippets] == [("", "x")]


@pytest.mark.parametrize("path", COMPLETION_PATHS)
def test_a_prompt_may_be_a_list_of_one(host, client, path):
    assert asked(host, client, path, prompt=["abc"]).prefix == "abc"


@pytest.mark.parametrize("prompt", [["a", "b"], [], [1], [[1, 2]], [["a"]], {}, 1])
def test_other_lists_are_no_prompt(client, prompt):
    response = client.post("/v1/completions", json={"prompt": prompt})
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith("prompt")


@pytest.mark.parametrize("seed", [-1, 0, SEEDS - 1, SEEDS, 2**63 - 1, -(2**63), -7, 2**64 - 1])
def test_any_integer_is_a_seed(host, client, seed):
    for path, name in [("/v1/completions", "seed"), ("/fim/completions", "random_seed"), ("/infill", "seed")]:
        got = asked(host, client, path, **{name: seed}).sampling.seed
        assert got == asked(host, client, path, **{name: seed}).sampling.seed
        assert 0 <= got < SEEDS
        assert got == (0 if seed == -1 else seed % SEEDS)


@pytest.mark.parametrize(
    "stop", [["\n\n"] * 17, ["x" * 240], [f"s{i}" for i in range(MAX_STOPS)], "x" * 1000]
)
def test_many_and_long_stop_strings(host, client, stop):
    for path in COMPLETION_PATHS:
        asked(host, client, path, stop=stop)


@pytest.mark.parametrize("path", COMPLETION_PATHS)
def test_too_many_stop_strings_are_refused_with_the_limit(client, path):
    message = client.post(path, json={"prompt": "a", "stop": ["x"] * (MAX_STOPS + 1)}).json()["error"][
        "message"
    ]
    assert message.startswith("stop")
    assert str(MAX_STOPS) in message


def test_chunks_beyond_the_limits_are_left_out(host, client):
    chunks = [{"filename": f"{i}.py", "text": str(i)} for i in range(70)]
    got = asked(host, client, "/infill", input_extra=chunks)
    assert [snippet.path for snippet in got.snippets] == [f"{i}.py" for i in range(6, 70)]
    large = {"filename": "min.js", "text": "x" * (MAX_FILE_CHARS + 1)}
    small = {"filename": "p" * 5000, "text": "x" * MAX_FILE_CHARS}
    got = asked(host, client, "/infill", input_extra=[large, small, {"text": ""}])
    assert [len(snippet.text) for snippet in got.snippets] == [MAX_FILE_CHARS]


@pytest.mark.parametrize(
    ("written", "text"),
    [
        (r"\ude00 x = ", "\ufffd x = "),
        (r"x = '\ud83d", "x = '\ufffd"),
        (r"\ud83d\ude00 \ud83d\ud83d\ude00", "😀 \ufffd😀"),
        (r"\\ud800 \\\ud800 \n", "\\ud800 \\\ufffd \n"),
        (r"\uDE00\uD83D", "\ufffd\ufffd"),
    ],
)
def test_half_a_character_is_a_replacement_character(host, client, written, text):
    for path in COMPLETION_PATHS:
        assert asked(host, client, path, f'{{"prompt": "{written}"}}').prefix == text
    assert asked(host, client, "/v1/completions", f'{{"prompt": "a", "suffix": "{written}"}}').suffix == text
    extra = f'{{"input_prefix": "a", "input_extra": [{{"filename": "f", "text": "{written}"}}]}}'
    assert asked(host, client, "/infill", extra).snippets[0].text == text
    raw = f'{{"prompt": "<fim_prefix>{written}<fim_suffix>s<fim_middle>"}}'
    assert asked(host, client, "/v1/completions", raw).prefix == text


@pytest.mark.parametrize(
    "body", [b'{"prompt": "\\ud80"}', b'{"prompt": "\\ud800', b'{"prompt": "\xed\xa0\x80"}', b"\\ud800"]
)
def test_what_is_no_json_stays_none(client, body):
    response = client.post("/v1/completions", content=body)
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith("body")


def test_top_p_of_zero_is_greedy(host, client):
    got = asked(host, client, "/v1/completions", top_p=0, temperature=1.0)
    assert (got.sampling.temperature, got.sampling.top_p) == (0.0, 1.0)


def test_an_echo_that_is_asked_for_is_refused_and_scores_are_ignored(client):
    assert (
        client.post("/v1/completions", json={"prompt": "a", "echo": True})
        .json()["error"]["message"]
        .startswith("echo")
    )
    assert (
        client.post("/v1/completions", json={"prompt": "a", "logprobs": 1, "best_of": 2}).status_code == 200
    )


@pytest.mark.parametrize(
    "path", ["//v1/completions", "/v1//completions/", "/v1/completions/", "/v1/completions///"]
)
def test_an_address_with_slashes_too_many(client, path):
    response = client.post(str(client.base_url).rstrip("/") + path, json={"prompt": "a"})
    assert (response.status_code, response.json()["choices"][0]["text"]) == (200, "xy")


@pytest.mark.parametrize(
    "prompt",
    [
        "<fim-prefix>a<fim-suffix>b<fim-middle>",
        "<PRE>a<SUF>b<MID>",
        "<PRE> a <SUF>b <MID>",
        "<fim-suffix>b<fim-prefix>a<fim-middle>",
    ],
)
def test_more_raw_prompts(host, client, prompt):
    got = asked(host, client, "/v1/completions", prompt=prompt)
    assert (got.prefix, got.suffix) == ("a", "b")


@pytest.mark.parametrize("path", ["/", "/x", "/v1/chat/completions", "/v1", "/api/generate"])
def test_an_unknown_address_is_an_error_in_json(client, path):
    response = client.post(path, json={})
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["type"]) == (404, 404, "invalid_request_error")
    assert "/v1/completions" in error["message"]


@pytest.mark.parametrize(
    ("verb", "path"), [("GET", "/v1/completions"), ("DELETE", "/health"), ("PUT", "/v1/models")]
)
def test_another_method_is_an_error_in_json(client, verb, path):
    response = client.request(verb, path)
    assert (response.status_code, response.json()["error"]["code"]) == (405, 405)
    assert response.headers["allow"]


def test_one_model_by_name(client):
    for name in ("auto", "ar", "dllm", "fake"):
        assert client.get(f"/v1/models/{name}").json() == {
            "id": name,
            "object": "model",
            "owned_by": "fimserver",
        }
    for name in ("gpt-4", "a/b", "%2e%2e"):
        response = client.get(f"/v1/models/{name}")
        assert (response.status_code, response.json()["error"]["code"]) == (404, 404)


def events(client, path, **fields):
    with client.stream("POST", path, json={"prompt": "a", "stream": True, **fields}) as response:
        data = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert data.pop() == "[DONE]"
    return [json.loads(event) for event in data]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/fim/completions"])
def test_each_event_has_what_openai_promises(client, path):
    for event in events(client, path):
        assert abs(event["created"] - time.time()) < 60
        assert event["model"] == "fake"
        assert event["id"].startswith("cmpl-")
        assert len(event["choices"]) == 1


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/fim/completions"])
@pytest.mark.parametrize("choices", [1, 3])
def test_the_usage_of_a_stream_comes_last_where_it_is_asked_for(client, path, choices):
    *_, last = events(client, path, n=choices, stream_options={"include_usage": True})
    assert last["choices"] == []
    count = 2 * choices
    assert last["usage"] == {"prompt_tokens": 0, "completion_tokens": count, "total_tokens": count}
    for options in (None, {}, {"include_usage": False}):
        assert all(event["choices"] for event in events(client, path, stream_options=options))


@pytest.mark.parametrize("path", COMPLETION_PATHS)
@pytest.mark.parametrize("stream", [True, False])
def test_more_requests_than_the_queue_holds(host, client, path, stream, monkeypatch):
    """The request that waited longest gets an error, not just an empty text."""
    monkeypatch.setattr(waiting, "MAX_WAITING", 1)
    free, answers = threading.Event(), []

    def script(_request, _route):
        assert free.wait(PATIENCE_S)
        yield "x"

    def asks():
        with httpx2.Client(base_url=host.url, trust_env=False, timeout=PATIENCE_S) as other:
            answers.append(other.post(path, json={"prompt": "a", "stream": stream}))

    host.engines.script = script
    threads = []
    for depth in ((1, 0), (1, 1), (1, 1)):
        threads.append(threading.Thread(target=asks))
        threads[-1].start()
        end = time.monotonic() + PATIENCE_S
        while host.scheduler.depth != depth:
            assert time.monotonic() < end
            time.sleep(0.005)
    while not answers:
        assert time.monotonic() < end
        time.sleep(0.005)
    (told,) = answers
    free.set()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert [answer.status_code for answer in answers[1:]] == [200, 200]
    if stream:
        assert EXPLANATIONS[Reason.OVERLOADED] in told.text
    else:
        assert (told.status_code, told.json()["error"]["code"]) == (429, 429)
        assert told.headers["retry-after"] == "1"


def test_a_body_that_never_comes_is_not_waited_for(host, monkeypatch):
    monkeypatch.setattr("fimserver.host.http.completions.BODY_S", 0.2)
    with socket.create_connection(("127.0.0.1", int(host.url.rsplit(":", 1)[1])), PATIENCE_S) as line:
        line.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        assert line.recv(4096).startswith(b"HTTP/1.1 408")


def test_a_failure_that_nobody_foresaw_is_an_error_in_json_and_quotes_nothing(
    host, client, monkeypatch, caplog
):
    def fails(_self, _job):
        raise ValueError("canary")

    monkeypatch.setattr("fimserver.host.scheduler.Scheduler.submit", fails)
    response = client.post("/v1/completions", json={"prompt": "canary"})
    assert (response.status_code, response.json()["error"]["code"]) == (500, 500)
    assert "canary" not in response.text + caplog.text
    assert "ValueError at test_leniency.py" in caplog.text


def test_a_body_of_the_front_is_read_as_it_was_sent():
    body = read_body(b'{"prompt": "a", "stop": "x", "seed": -1, "max_tokens": 4096}')
    assert read_body(body.model_dump_json(exclude_defaults=True).encode()) == body
