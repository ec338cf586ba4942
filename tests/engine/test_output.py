"""Rules that end a middle, in the engines: the text shown, the tokens spent, and the tokens drafted."""

from __future__ import annotations

import pytest

from fimserver.engine.output import Output, make_endings
from fimserver.engine.speculation.drafts import ScriptedDrafter
from fimserver.reasons import Reason
from fimserver.types import Deadline, Request, Sampling

CODE = '''import os


def read(path):
    """Read a file."""
    with open(path) as file:
        return file.read()


def write(path, text):
    with open(path, "w") as file:
        file.write(text)


def copy(source, target):
    write(target, read(source))
'''
CURSORS = [
    "return file.read()",
    "with open(path) as file",
    "file.read()",
    "file.write(text)",
    "path, text",
    "write(target",
]


def requests(stop="auto"):
    for cursor in CURSORS:
        at = CODE.index(cursor)
        yield Request(
            CODE[:at], CODE[at + len(cursor) :], path="files.py", sampling=Sampling(max_tokens=40, stop=stop)
        )


def tokens_of(engine, request, drafter=None):
    """Ids that the engine chose, and its chunks."""
    watcher, before = drafter or ScriptedDrafter(), engine.speculation.drafters
    engine.speculation.drafters = (watcher,)
    try:
        chunks = list(engine.complete(request, Deadline()))
    finally:
        engine.speculation.drafters = before
    return watcher.seen, chunks


def test_no_token_is_spent_after_the_one_that_decides(nano):
    engine, ended = nano.engine("ar"), set()
    for request in requests():
        every, _ = tokens_of(engine, request.with_sampling(stop="none"))
        ids, chunks = tokens_of(engine, request)
        endings = make_endings(request)
        texts = [engine.vocabulary.decode(every[: n + 1]) for n in range(len(every))]
        end, spent = next(
            ((e, n + 1) for n, text in enumerate(texts) if (e := endings.end(text))), (None, len(every))
        )
        assert ids == every[:spent]
        if end:
            assert "".join(chunk.text for chunk in chunks) == texts[spent - 1][: end.chars]
            assert chunks[-1].reason is end.reason
            ended.add(end.reason)
    assert ended, "no rule had anything to do: the test shows nothing"


def test_drafts_end_with_the_token_that_ends_the_middle(nano):
    engine, cut = nano.engine("ar"), 0
    for request in requests():
        every, _ = tokens_of(engine, request.with_sampling(stop="none"))
        endings = make_endings(request)
        done = 0
        for chunk in tokens_of(engine, request, ScriptedDrafter([*every, *every]))[1]:
            if chunk.round and chunk.round.draft:
                ids = [*every[:done], *chunk.round.draft]
                assert endings.peek(engine.vocabulary.decode(ids[:-1])) is None
                cut += endings.peek(engine.vocabulary.decode(ids)) is not None
            done += chunk.round.accepted + 1 if chunk.round else 0
    assert cut, "no draft was cut: the test shows nothing"


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_drafts_do_not_change_where_the_middle_ends(temperature, nano):
    engine = nano.engine("ar")
    for greedy in requests():
        request = greedy.with_sampling(temperature=temperature, seed=5)
        plain = tokens_of(engine, request)
        noise = tokens_of(engine, request, ScriptedDrafter([*plain[0], *plain[0], *plain[0]]))
        assert plain[0] == noise[0]
        assert plain[1][-1].reason is noise[1][-1].reason


def test_the_canvas_ends_by_the_same_rules(nano):
    engine, ended = nano.engine("dllm"), set()
    for request in requests():
        whole = "".join(
            c.text
            for c in engine.complete(
                request.with_sampling(stop="none"),
                Deadline(),
            )
        )
        chunks = list(engine.complete(request, Deadline()))
        text, endings = "".join(chunk.text for chunk in chunks), make_endings(request)
        if chunks[-1].reason in {Reason.SUFFIX, Reason.SCOPE, Reason.LINE, Reason.STATEMENT, Reason.REPEATED}:
            assert whole.startswith(text)
            ended.add(chunks[-1].reason)
        assert endings.peek(text) is None or endings.peek(text).chars >= len(text)
    assert ended


def test_what_was_held_back_is_given_when_nothing_follows(nano):
    """A line that is also the next one of the file waits; if the model stops there, it was part of the middle."""
    vocabulary = nano.engine("ar").vocabulary
    request = Request("def f():\n    ", "\n    result = 1\n    return result\n", path="a.py")
    output = Output(vocabulary, request)
    shown = output.show(vocabulary.encode("a = 2\n    result = 1"))
    assert (shown, output.reason) == ("a = 2", None)
    assert output.rest() == "\n    result = 1"


def test_useful_counts_up_to_the_token_that_ends(nano):
    vocabulary = nano.engine("ar").vocabulary
    output = Output(vocabulary, Request("x = ", "\n", path="a.py"))
    ids = vocabulary.encode("f(1)\ny = 2\n")
    count = output.useful([], ids)
    assert "\n" in vocabulary.decode(ids[:count])
    assert "\n" not in vocabulary.decode(ids[: count - 1])
    assert output.useful([], ids[:2]) == 2
    assert Output(vocabulary, Request("x = ", "\n", sampling=Sampling(stop="none"))).useful([], ids) == len(
        ids
    )


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("pyproject.toml", "a = 1"),
        ("x/Dockerfile", "a = 1"),
        ("README.md", "a = 1\n```\nb"),
        ("", "a = 1\n```\nb"),
    ],
)
def test_a_fence_ends_the_text_of_any_file_but_prose(path, shown):
    endings = make_endings(Request("", "\n", path=path))
    text = "a = 1\n```\nb"
    end = endings.end(text)
    assert text[: end.chars if end else None] == shown
