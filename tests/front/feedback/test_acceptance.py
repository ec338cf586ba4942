"""The outcome of a suggestion is inferred from the edits that follow it."""

from dataclasses import replace

import pytest

from fimserver.front.documents.mirror import Document, Edit, Position
from fimserver.front.feedback.acceptance import Acceptance, Counts

TEXT = "compute(b)\nreturn a"


@pytest.fixture
def document():
    return Document("u", "python", 1, "x = 1\na = \nrest\n")


def typed(acceptance, document, text, at):
    document.change(document.version + 1, [Edit(at, at, text)], "utf-16")
    acceptance.edited(document, len(text))


def offered(document, text=TEXT):
    acceptance = Acceptance()
    acceptance.offer("1", document, Position(1, 4), text, "ar")
    return acceptance


NOTHING = Counts(shown=1)


def test_accepted_in_full_by_an_edit(document):
    acceptance = offered(document)
    typed(acceptance, document, TEXT, (1, 4))
    assert acceptance.counts["ar"] == replace(NOTHING, accepted=1, accepted_chars=len(TEXT))


def test_accepted_in_full_by_the_items_command_is_counted_once(document):
    acceptance = offered(document)
    typed(acceptance, document, TEXT, (1, 4))
    assert acceptance.accept("1")
    assert acceptance.counts["ar"] == replace(NOTHING, accepted=1, accepted_chars=len(TEXT))


def test_the_command_alone_is_enough(document):
    acceptance = offered(document)
    assert acceptance.accept("1")
    assert acceptance.counts["ar"].accepted == 1


@pytest.mark.parametrize("text", [")", "ab"])
def test_a_last_character_that_came_alone_was_accepted_if_the_editor_says_so(text, document):
    for command in (True, False):
        acceptance = offered(Document("u", "python", 1, "a\nb = \n"), text)
        fresh = Document("u", "python", 1, "a\nb = \n")
        for i, char in enumerate(text):
            typed(acceptance, fresh, char, (1, 4 + i))
        if command:
            acceptance.accept("1")
        typed(acceptance, fresh, "z", (1, 4 + len(text)))
        rest = len(text) - 1
        whole = replace(NOTHING, accepted=1, accepted_chars=1, typed_chars=rest)
        assert acceptance.counts["ar"] == (
            whole if command else replace(NOTHING, left=1, typed_chars=rest + 1)
        )


def test_accepted_by_words(document):
    acceptance = offered(document)
    typed(acceptance, document, "compute", (1, 4))
    typed(acceptance, document, "(b)", (1, 11))
    acceptance.forget("u")
    assert acceptance.counts["ar"] == replace(NOTHING, partly=1, accepted_chars=10)


def test_typed_through(document):
    acceptance = offered(document)
    for i, char in enumerate("comp"):
        typed(acceptance, document, char, (1, 4 + i))
        acceptance.offer(f"again{i}", document, Position(1, 5 + i), TEXT[i + 1 :], "ar")
    acceptance.forget("u")
    assert acceptance.counts["ar"] == replace(NOTHING, left=1, typed_chars=4)


def test_something_else_typed(document):
    acceptance = offered(document)
    typed(acceptance, document, "q", (1, 4))
    acceptance.offer("2", document, Position(1, 5), "other", "dllm")
    assert acceptance.counts == {"ar": replace(NOTHING, left=1), "dllm": NOTHING}


def test_text_that_stood_there_anyway_is_not_acceptance():
    document = Document("u", "python", 1, "foo)\n")
    acceptance = Acceptance()
    acceptance.offer("1", document, Position(0, 3), ")", "ar")
    typed(acceptance, document, "!", (0, 4))
    acceptance.forget("u")
    assert acceptance.counts["ar"].accepted_chars == 0


def test_an_editor_that_reports_what_it_shows_is_believed(document):
    acceptance = Acceptance()
    acceptance.offer("1", document, Position(1, 4), TEXT, "ar")
    acceptance.reported_shown("1")
    acceptance.offer("2", document, Position(2, 0), "other", "ar")
    assert acceptance.counts["ar"].shown == 1
    acceptance.reported_shown("2")
    assert acceptance.counts["ar"].shown == 2


def test_partial_acceptance_that_is_reported(document):
    acceptance = offered(document)
    acceptance.accept("1", 7)
    acceptance.forget("u")
    assert acceptance.counts["ar"] == replace(NOTHING, partly=1, accepted_chars=7)


def test_an_unknown_id_is_no_error():
    assert not Acceptance().accept("never")
