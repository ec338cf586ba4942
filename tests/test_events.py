"""Events of a window: they arrive complete, and have no field for text."""

import pytest

from fimserver.errors import InputError
from fimserver.events import AnswerRecord, Batch, Persistence, SuggestionEvent, read_batch

FULL = AnswerRecord(
    number=3,
    at=1.7e9,
    document="0f" * 8,
    language="c_sharp",
    route="ar",
    model="nano",
    source="model",
    reason="end",
    policy="shadow",
    propensity=0.5,
    bucket=2,
    block=5666666,
    first=True,
    chars=12,
    lexemes=4,
    total_ms=120.5,
    ttft_ms=30.25,
    shown=True,
    fate="partly",
    accepted_chars=7,
    typed_chars=1,
    after_10s=Persistence(prefix_chars=8, kept_chars=9),
    after_60s=Persistence(prefix_chars=0, kept_chars=0),
    shadow=SuggestionEvent(
        route="dllm",
        model="nano",
        reason="line",
        chars=3,
        after_60s=Persistence(prefix_chars=1, kept_chars=2),
    ),
)
BARE = AnswerRecord(number=0, at=0, reason="superseded")


@pytest.mark.parametrize("answers", [(), (BARE,), (FULL, BARE)])
def test_a_batch_comes_through_whole(answers):
    batch = Batch(session="ab12", answers=answers, keys={"python": 7, "": 1}, dropped=2)
    assert read_batch(batch.model_dump_json(exclude_defaults=True).encode()) == batch


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"text": "secret"}, "text"),
        ({"document": "file:///home/me/secret.py"}, "document"),
        ({"language": "My Secret"}, "language"),
        ({"reason": "because"}, "reason"),
        ({"chars": -1}, "chars"),
        ({"total_ms": float("inf")}, "total_ms"),
        ({"bucket": 5}, "bucket"),
        ({"shadow": {"reason": "end", "text": "secret"}}, "shadow.text"),
    ],
)
def test_what_has_no_place_in_an_event_is_refused_and_named(changes, named):
    sent = Batch(session="ab12", answers=(BARE,)).model_dump(mode="json")
    sent["answers"][0] |= changes
    with pytest.raises(InputError, match=rf"answers\.0\.{named}") as error:
        read_batch(
            str(sent)
            .replace("'", '"')
            .replace("None", "null")
            .replace("False", "false")
            .replace("inf", "1e999")
            .encode()
        )
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{", b'{"session": "/home/me"}', b'{"session": "", "answers": 7}']
)
def test_what_is_no_batch_is_refused(data):
    with pytest.raises(InputError):
        read_batch(data)
