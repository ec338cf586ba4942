"""Format of a request and an answer between front and host, and what is refused."""

import json

import pytest

from fimserver.errors import InputError
from fimserver.reasons import Reason
from fimserver.types import Decision, Slot, Snippet
from fimserver.wire import (
    MAX_STOP_CHARS,
    MAX_STOPS,
    CompletionBody,
    CompletionChunk,
    Usage,
    finish_reason,
    gather,
    read_answer,
    read_body,
    read_piece,
)


def body(**fields):
    return json.dumps({"prompt": "a", **fields}).encode()


def known(**fields):
    return body(fimserver=fields)


def test_a_prompt_is_enough():
    assert read_body(b'{"prompt": "a"}') == CompletionBody(prompt="a")


def test_fields_of_openai_that_we_do_not_know_are_ignored():
    assert read_body(body(logprobs=3, echo=False, user="x")) == CompletionBody(prompt="a")


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (b"", "body"),
        (b"{", "body"),
        (b"[]", "body"),
        (b"null", "body"),
        (b'{"prompt": "\xff"}', "body"),
        (b'{"prompt": "a", "logprobs": ' + b"[" * 5000 + b"]" * 5000 + b"}", "body"),
        (b"{}", "prompt"),
        (body(prompt=["a", "b"]), "prompt"),
        (body(prompt=None), "prompt"),
        (body(suffix=1), "suffix"),
        (body(model="m" * 201), "model"),
        (body(max_tokens=-2), "max_tokens"),
        (body(max_tokens=1.5), "max_tokens"),
        (body(temperature=-0.1), "temperature"),
        (body(temperature=float("nan")), "temperature"),
        (body(top_p=-0.1), "top_p"),
        (body(top_p=float("inf")), "top_p"),
        (body(seed=1.5), "seed"),
        (body(seed="x"), "seed"),
        (body(n=0), "n"),
        (body(n=9), "n"),
        (body(stream="perhaps"), "stream"),
        (body(stop=[1]), "stop"),
        (body(stop="x" * (MAX_STOP_CHARS + 1)), "stop"),
        (body(stop=["x"] * (MAX_STOPS + 1)), "stop"),
        (body(fimserver=[]), "fimserver"),
        (known(unheard_of=1), "fimserver.unheard_of"),
        (known(route="both"), "fimserver.route"),
        (known(stop="word"), "fimserver.stop"),
        (known(deadline_ms=0), "fimserver.deadline_ms"),
        (known(deadline_ms=float("nan")), "fimserver.deadline_ms"),
        (known(deadline_ms=float("inf")), "fimserver.deadline_ms"),
        (known(session="s" * 201), "fimserver.session"),
        (known(document="d" * 201), "fimserver.document"),
        (known(path="p" * 1001), "fimserver.path"),
        (known(typed_chars=-1), "fimserver.typed_chars"),
        (known(snippets=[{"path": "p", "text": "t"}] * 65), "fimserver.snippets"),
        (known(snippets=[{"path": "p", "text": "t" * 65537}]), "fimserver.snippets.0.text"),
        (known(snippets=[{"path": "p"}]), "fimserver.snippets.0.text"),
    ],
)
def test_a_bad_body_is_refused_by_field(data, field):
    with pytest.raises(InputError) as caught:
        read_body(data)
    named = str(caught.value).split(":")[0]
    assert named == field or (field == "stop" and named.split(".")[0] == "stop")


def test_a_refusal_does_not_quote_what_was_sent():
    for data in (
        body(temperature="canary"),
        body(stop=[["canary"]]),
        b'{"prompt": "canary',
        known(path="canary" * 200),
    ):
        with pytest.raises(InputError) as caught:
            read_body(data)
        assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    ("stop", "stops"),
    [
        (None, ()),
        ("", ()),
        ("x", ("x",)),
        (["x", "", "y"], ("x", "y")),
        ([], ()),
        (["x"] * MAX_STOPS, ("x",) * MAX_STOPS),
    ],
)
def test_stop_strings(stop, stops):
    assert read_body(body(stop=stop)).stops == stops


def test_snippets_become_the_nouns_of_an_engine():
    sent = read_body(known(snippets=[{"path": "p", "text": "t"}])).fimserver.snippets
    assert [snippet.snippet() for snippet in sent] == [Snippet("p", "t")]


def test_a_body_survives_the_way_of_the_front():
    sent = CompletionBody(prompt="a\u2028b\0", suffix="\r\n", n=2, fimserver={"route": "ar", "idle": True})
    assert read_body(sent.model_dump_json(exclude_defaults=True).encode()) == sent


@pytest.mark.parametrize("reason", [*Reason, None])
def test_finish_reason_is_a_word_of_openai(reason):
    usage = reason and Usage(route="ar", model="m", reason=reason)
    cut = reason in {Reason.LENGTH, Reason.DEADLINE}
    assert finish_reason(usage) == (None if reason is None else "length" if cut else "stop")


def test_an_event_is_one_line_whatever_the_text():
    text = 'a\n\r\n"\\\u2028\x85\0é🙂'
    event = CompletionChunk(index=3, text=text).sse("cmpl-1")
    assert event.startswith(b"data: ")
    assert event.endswith(b"\n\n")
    assert b"\n" not in event[:-2]
    assert len(event.decode().splitlines()) == 2
    assert json.loads(event[6:]) == {
        "id": "cmpl-1",
        "object": "text_completion",
        "choices": [{"index": 3, "text": text, "finish_reason": None}],
    }


def test_the_last_event_of_a_choice_says_how_it_ended():
    usage = Usage(
        route="dllm", model="nano", reason=Reason.LENGTH, tokens=4, decision=Decision("dllm", "asked for")
    )
    event = json.loads(CompletionChunk(usage=usage, error="because").sse("x")[6:])
    assert event["choices"][0]["finish_reason"] == "length"
    assert event["model"] == "nano"
    assert event["error"] == {"message": "because"}
    assert Usage(**event["fimserver"]) == usage


def test_what_is_said_as_an_event_is_read_as_the_same_piece():
    usage = Usage(
        route="dllm",
        model="nano",
        reason=Reason.END,
        decision=Decision("dllm", "asked for", "length", 3.0, 1),
    )
    canvas = (Slot("\u2028é", masked=False, fresh=True), Slot("", masked=True))
    for piece in (
        CompletionChunk(text="a\x85\n"),
        CompletionChunk(index=2, usage=usage),
        CompletionChunk(canvas=canvas),
        CompletionChunk(error="because"),
    ):
        lines = piece.sse("x").decode().splitlines()
        assert [read_piece(line) for line in lines] == [piece, None]


@pytest.mark.parametrize("line", ["", ":", "data: [DONE]", "event: x", "data:"])
def test_lines_of_a_stream_that_say_nothing(line):
    assert read_piece(line) is None


@pytest.mark.parametrize(
    "event", ["{", "{}", '{"choices": []}', '{"choices": [{"text": 1}]}', '{"choices": [{}], "canvas": [1]}']
)
def test_an_event_of_another_server_is_told_apart(event):
    with pytest.raises(InputError, match="not a fimserver host"):
        read_piece(f"data: {event}")


def test_a_stream_adds_up_to_an_answer_of_the_choices_that_ended():
    usage = Usage(route="ar", model="m", reason=Reason.END)
    pieces = [
        CompletionChunk(text="a"),
        CompletionChunk(index=1, text="x"),
        CompletionChunk(text="b", usage=usage),
        CompletionChunk(index=2, text="never ends"),
    ]
    got = gather([*pieces, CompletionChunk(index=1, text="y", usage=usage, error="because")])
    assert [m.text for m in got.middles] == ["ab", "xy"]
    assert (got.reason, got.message) == (None, "because")
    assert gather([]).reason is Reason.FAILED


def answer(**fields):
    usages = [
        {"route": "ar", "model": "m", "reason": "end"},
        {"route": "dllm", "model": "m", "reason": "length"},
    ]
    choices = [
        {"index": 0, "text": "a", "finish_reason": "stop"},
        {"index": 1, "text": "b", "finish_reason": "length"},
    ]
    return json.dumps({"id": "x", "choices": choices, "fimserver": usages, **fields}).encode()


def test_an_answer_is_read_choice_by_choice():
    got = read_answer(answer(error={"message": "half of it failed"}))
    assert [(m.text, m.usage.route, m.usage.reason) for m in got.middles] == [
        ("a", "ar", "end"),
        ("b", "dllm", "length"),
    ]
    assert (got.reason, got.message) == (None, "half of it failed")


def test_an_answer_without_a_choice_is_a_failure():
    assert read_answer(answer(choices=[], fimserver=[])).reason is Reason.FAILED


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<html>",
        b"{}",
        b"[]",
        answer(fimserver=[]),
        answer(fimserver=[{"route": "ar"}]),
        answer(choices=None),
        answer(error="x"),
    ],
)
def test_an_answer_of_another_server_is_told_apart(data):
    with pytest.raises(InputError, match="not a fimserver host"):
        read_answer(data)
