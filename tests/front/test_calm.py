"""When an automatic request waits longer, and the limit of suggestions per minute."""

import pytest

from fimserver.front.calm import AFTER_DISMISSAL_S, LEFT_IN_A_ROW, MINUTE_S, Calm

URI = "file:///work/a.py"


def why(calm, now_s=100.0, revision=1, place=(0, 4), uri=URI):
    return calm.why_wait(uri, revision, place, now_s)


def test_nobody_waits_at_first():
    assert why(Calm()) == ""


def test_a_dismissal_is_remembered_for_a_while():
    calm = Calm()
    calm.dismissed(100.0)
    assert why(calm, 101.0) == "after a dismissal"
    assert why(calm, 100.0 + AFTER_DISMISSAL_S) == ""


def test_a_suggestion_that_is_used_ends_the_waiting():
    calm = Calm()
    calm.dismissed(100.0)
    for _ in range(LEFT_IN_A_ROW):
        calm.settled(was_used=False)
    calm.settled(was_used=True)
    assert why(calm, 101.0) == ""


@pytest.mark.parametrize(
    ("left", "waits"), [(LEFT_IN_A_ROW - 1, False), (LEFT_IN_A_ROW, True), (LEFT_IN_A_ROW + 5, True)]
)
def test_several_in_a_row_that_were_not_used(left, waits):
    calm = Calm()
    for _ in range(left):
        calm.settled(was_used=False)
    assert bool(why(calm)) is waits


def test_while_deleting_until_something_is_typed():
    calm = Calm()
    calm.edited(URI, only_deleted=True)
    assert why(calm, revision=2) == "while deleting"
    assert why(calm, revision=2, uri="file:///work/b.py") == ""
    calm.edited(URI, only_deleted=False)
    assert why(calm, revision=3) == ""


@pytest.mark.parametrize(
    ("revision", "place", "said"),
    [(1, (0, 5), "while moving"), (1, (1, 4), "while moving"), (1, (0, 4), ""), (2, (0, 5), "")],
)
def test_a_cursor_that_moves_without_an_edit(revision, place, said):
    calm = Calm()
    why(calm, revision=1, place=(0, 4))
    assert why(calm, revision=revision, place=place) == said


def test_a_closed_document_is_forgotten():
    calm = Calm()
    why(calm)
    calm.edited(URI, only_deleted=True)
    calm.forget(URI)
    assert why(calm, place=(7, 7)) == ""


def test_suggestions_a_minute():
    calm = Calm()
    for second in range(3):
        calm.shown(100.0 + second)
    assert [calm.is_full(limit, 103.0) for limit in (0, 1, 3, 4)] == [False, True, True, False]
    assert not calm.is_full(3, 100.0 + MINUTE_S)
