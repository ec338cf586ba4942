"""Remembered suggestions: typing through, deleting back, accepting by words; bounded."""

import pytest

from fimserver.front import memory
from fimserver.front.memory import Key, Memory, RememberedMiddle
from fimserver.reasons import Reason


def key(prefix, suffix="\n", uri="u", route="auto"):
    return Key(uri, route, suffix, prefix)


def middles(*texts):
    return tuple(RememberedMiddle(text, Reason.END) for text in texts)


@pytest.mark.parametrize(
    ("asked", "texts"),
    [
        pytest.param(key("def f"), ["(x):"], id="the same place"),
        pytest.param(key("def f("), ["x):"], id="a character typed"),
        pytest.param(key("def f(x)"), [":"], id="words accepted"),
        pytest.param(key("def f(x):"), [], id="all of it accepted"),
        pytest.param(key("def f["), [], id="something else typed"),
        pytest.param(key("def "), [], id="deleted beyond it"),
        pytest.param(key("def f", suffix="pass\n"), [], id="another suffix"),
        pytest.param(key("def f", uri="v"), [], id="another document"),
        pytest.param(key("def f", route="ar"), [], id="another route"),
    ],
)
def test_recall(asked, texts):
    found = Memory()
    found.remember(key("def f"), middles("(x):"))
    assert [middle.text for middle in found.recall(asked)] == texts


def test_deleting_back_into_a_suggestion_finds_it_again():
    found = Memory()
    found.remember(key("a = "), middles("compute(b)"))
    for prefix in ("a = comp", "a = compute(", "a = com", "a = "):
        assert found.recall(key(prefix))[0].text == "compute(b)"[len(prefix) - 4 :]


def test_only_candidates_that_go_on_are_left():
    found = Memory()
    found.remember(key(""), middles("alpha", "beta", "alps"))
    assert [m.text for m in found.recall(key("al"))] == ["pha", "ps"]


def test_the_newest_suggestion_wins():
    found = Memory()
    found.remember(key("x"), middles("yz1"))
    found.remember(key("xy"), middles("z2"))
    assert found.recall(key("xyz"))[0].text == "2"


def test_it_is_bounded_in_entries_and_characters(monkeypatch):
    monkeypatch.setattr(memory, "MAX_ENTRIES", 3)
    found = Memory()
    for i in range(10):
        found.remember(key(f"{i}"), middles("x"))
    assert len(found) == 3
    monkeypatch.setattr(memory, "MAX_CHARS", 50)
    found.remember(key("p" * 40), middles("y" * 20))
    assert len(found) == 1
    found.clear()
    assert (len(found), found._chars) == (0, 0)


def test_a_closed_document_is_forgotten():
    found = Memory()
    found.remember(key("a", uri="u"), middles("x"))
    found.remember(key("a", uri="v"), middles("x"))
    found.forget("u")
    assert not found.recall(key("a", uri="u"))
    assert found.recall(key("a", uri="v"))
