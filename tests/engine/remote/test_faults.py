"""Faults of a remote server: each gives its error in time, and text that came before stays."""

import pytest

from fimserver.cards import ELSEWHERE, Card, Remote
from fimserver.engine.remote.engine import RemoteEngine
from fimserver.errors import (
    AwayError,
    BadKeyError,
    GarbledError,
    NoFimError,
    OverloadedError,
    RemoteError,
    TooLongError,
    WarmingError,
    WrongModelError,
)
from fimserver.host.failures import reason_of
from fimserver.reasons import Reason
from fimserver.types import Deadline, Request, Sampling
from tests.hosts import free_port
from tests.servers_elsewhere import PlayedServer, sse

REQUEST = Request("x = ", "\n", Sampling(max_tokens=16, stop="none"))
MODELS = (200, {"data": [{"id": "qwen2.5-coder-7b", "owned_by": "vllm"}]})
WORD = sse({"choices": [{"index": 0, "text": "some(text)", "finish_reason": None}]})
END = sse({"choices": [{"index": 0, "text": "", "finish_reason": "stop"}]}, "[DONE]")
HALF = 'data: {"choices": [{"index": 0, "te'
FAULTS = [
    pytest.param(["reset"], AwayError, "away", id="reset before an answer"),
    pytest.param(["cut"], AwayError, "away", id="closed before an answer"),
    pytest.param([WORD, 0.1, "reset"], AwayError, "away", id="reset in mid-answer"),
    pytest.param([WORD, "cut"], AwayError, "away", id="cut in mid-answer"),
    pytest.param([WORD], AwayError, "away", id="ended without an end"),
    pytest.param([WORD, HALF, "cut"], AwayError, "away", id="half a line"),
    pytest.param([WORD, HALF + "\n"], GarbledError, "garbled", id="half a JSON"),
    pytest.param(["data: <html>\n"], GarbledError, "garbled", id="a page"),
    pytest.param([b"data: {\xff\xfe}\n"], GarbledError, "garbled", id="no text"),
    pytest.param(["data: [1, 2]\n"], GarbledError, "garbled", id="another JSON"),
    pytest.param([sse({"choices": "none"})], GarbledError, "garbled", id="another shape"),
    pytest.param(["x" * (3 << 19)], GarbledError, "garbled", id="a line without end"),
    pytest.param(
        [WORD, sse({"error": {"type": "boom"}})], GarbledError, "garbled", id="an error in the stream"
    ),
    pytest.param((500, "oops"), GarbledError, "garbled", id="500"),
    pytest.param((401, {"error": {"message": "no"}}), BadKeyError, "bad_key", id="401"),
    pytest.param((403, {}), BadKeyError, "bad_key", id="403"),
    pytest.param((429, {"error": {"message": "slow down"}}), OverloadedError, "overloaded", id="429"),
    pytest.param((503, {"error": {"message": "Loading model"}}), WarmingError, "loading", id="503 loading"),
    pytest.param((503, {}), OverloadedError, "overloaded", id="503"),
    pytest.param(
        (404, {"error": {"message": "The model `x` does not exist"}}),
        WrongModelError,
        "wrong_model",
        id="404",
    ),
    pytest.param((404, {"detail": "Not Found"}), NoFimError, "no_fim", id="no such address"),
    pytest.param(
        (400, {"error": {"message": "suffix is not currently supported"}}), NoFimError, "no_fim", id="suffix"
    ),
    pytest.param(
        (400, {"error": "qwen does not support insert"}), NoFimError, "no_fim", id="Ollama without insert"
    ),
    pytest.param(
        (501, {"error": {"message": "prefix token is missing", "type": "not_supported_error"}}),
        NoFimError,
        "no_fim",
        id="llama.cpp without FIM",
    ),
    pytest.param(
        (400, {"error": {"message": "maximum context length is 512"}}),
        TooLongError,
        "too_long",
        id="too long",
    ),
]


def engine_of(url):
    return RemoteEngine(Card(name="elsewhere", remote=Remote(url=url), **ELSEWHERE), "ar")


@pytest.mark.parametrize(("answer", "error", "reason"), FAULTS)
def test_a_fault_has_its_reason(answer, error, reason):
    with PlayedServer({"/v1/models": MODELS, "/v1/completions": answer}) as server:
        said = []
        chunks = engine_of(server.url).complete(REQUEST, Deadline.of_ms(60_000))
        with pytest.raises(error) as caught:  # at the deadline it would end with a reason
            said.extend(chunk.text for chunk in chunks)
        assert reason_of(caught.value) == reason
        assert server.url in str(caught.value)
        assert "".join(said) == ("some(text)" if isinstance(answer, list) and answer[0] == WORD else "")


@pytest.mark.parametrize("steps", [[30.0], [WORD, 30.0]], ids=["silent", "silent after a word"])
def test_a_server_that_stalls_is_left_at_the_deadline_and_hung_up_on(steps):
    with PlayedServer({"/v1/models": MODELS, "/v1/completions": steps}) as server:
        *_, last = engine_of(server.url).complete(REQUEST, Deadline.of_ms(2000))
        assert last.reason is Reason.DEADLINE
        assert server.closed.wait(60)


def test_a_slow_server_is_read_as_it_goes():
    steps = [WORD, 0.05, WORD, 0.05, END]
    with PlayedServer({"/v1/models": MODELS, "/v1/completions": steps}) as server:
        chunks = list(engine_of(server.url).complete(REQUEST, Deadline.of_ms(60_000)))
        assert "".join(chunk.text for chunk in chunks) == "some(text)some(text)"
        assert chunks[-1].reason is Reason.END


def test_a_connection_that_ends_before_a_word_is_tried_once_more():
    with PlayedServer({"/v1/models": MODELS, "/v1/completions": [WORD, END]}, first=[["reset"]]) as server:
        assert list(engine_of(server.url).complete(REQUEST, Deadline.of_ms(60_000)))[-1].reason is Reason.END
        assert len(server.asked) == 2


def test_connections_are_used_again():
    """It is asked what it is by several questions at once, after every failure."""
    refusal = (400, {"error": {"message": "no"}})
    with PlayedServer({"/v1/models": MODELS, "/v1/completions": refusal}) as server:
        engine = engine_of(server.url)
        for _ in range(3):
            with pytest.raises(RemoteError):
                list(engine.complete(REQUEST, Deadline.of_ms(60_000)))
        assert server.requests > 2 * server.connections


def test_nothing_is_asked_twice_once_something_was_said():
    with PlayedServer({"/v1/models": MODELS, "/v1/completions": [WORD, 0.1, "reset"]}) as server:
        with pytest.raises(AwayError):
            list(engine_of(server.url).complete(REQUEST, Deadline.of_ms(60_000)))
        assert len(server.asked) == 1


def test_a_prompt_that_is_too_long_is_tried_once_more_and_shorter():
    refusal = (400, {"error": {"message": "maximum context length is 512"}})
    request = Request("x = 1\n" * 2000, "", REQUEST.sampling)
    with PlayedServer(
        {"/v1/models": MODELS, "/v1/completions": [WORD, END]}, first=[(404, {}), refusal]
    ) as server:
        assert list(engine_of(server.url).complete(request, Deadline.of_ms(60_000)))[-1].reason is Reason.END
        long, short = (len(body["prompt"]) for path, body, _ in server.asked if path == "/v1/completions")
        assert short < 0.7 * long


def test_a_server_that_is_away_is_not_tried_at_every_key():
    url = f"http://127.0.0.1:{free_port()}"
    engine = engine_of(url)
    for _ in range(20):
        with pytest.raises(AwayError, match="is it running"):
            list(engine.complete(REQUEST, Deadline.of_ms(60_000)))
    assert engine.connection.tries < 10


def test_another_kind_of_server_says_how_to_name_its_dialect():
    with PlayedServer({"/": (200, {})}) as server, pytest.raises(GarbledError, match="dialect"):
        list(engine_of(server.url).complete(REQUEST, Deadline.of_ms(60_000)))
