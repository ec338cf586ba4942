"""Outcomes of answers as numbers only, with a fake clock."""

import asyncio
import heapq
import itertools
import json

import pytest

from fimserver.events import AnswerRecord, SuggestionEvent, read_batch
from fimserver.front.documents.mirror import Document, Edit, Position
from fimserver.front.feedback.acceptance import Acceptance
from fimserver.front.feedback.ledger import BATCH_ANSWERS, BATCH_S, Ledger, around, is_key, moved, standing

TEXT = "compute(b)\nreturn a"
DONE = AnswerRecord(number=0, at=0, reason="end", route="ar", model="nano", source="model")
EMPTY = AnswerRecord(number=0, at=0, reason="empty", route="ar")


class Window:
    """An editor and its host: a document, a fake clock, and the events that were sent."""

    def __init__(self, text="x = 1\na = \nrest\n", *, hears=True):
        self.now, self.hears, self.batches = 0.0, hears, []
        self._timers, self._order = [], itertools.count()
        self.ledger = Ledger("5e55", self._post, self._later, lambda: 1000.0 + self.now)
        self.acceptance = Acceptance(self.ledger.shown, self.ledger.settled)
        self.document = Document("u", "python", 1, text)

    def _later(self, delay_s, callback):
        heapq.heappush(self._timers, (self.now + delay_s, next(self._order), callback))

    async def _post(self, batch):
        self.batches.append(read_batch(batch))
        return self.hears

    async def wait(self, seconds):
        """Advance the clock and run the timers that are due."""
        end = self.now + seconds
        while self._timers and self._timers[0][0] <= end:
            self.now, _, callback = heapq.heappop(self._timers)
            callback()
        self.now = end
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    def answer(self, *texts, at=(1, 4), answer=DONE):
        offered = [
            self.acceptance.offer(f"{answer.source}{self.now}{i}", self.document, Position(*at), text, "ar")
            for i, text in enumerate(texts)
        ]
        return self.ledger.answered(answer, self.document, [shown for shown in offered if shown])

    def type(self, text, at, end=None):
        edit = Edit(at, end or at, text)
        self.document.change(self.document.version + 1, [edit], "utf-16")
        self.ledger.edited(self.document, [edit], "python")
        self.acceptance.edited(self.document, len(text))

    @property
    def told(self):
        """The newest record of each answer."""
        return {answer.number: answer for batch in self.batches for answer in batch.answers}


def accept(window):
    window.type(TEXT, (1, 4))


def by_words(window):
    window.type("compute", (1, 4))
    window.type("(b)", (1, 11))


def type_through(window):
    for i, char in enumerate("comp"):
        window.type(char, (1, 4 + i))


def go_on_otherwise(window):
    window.type("q", (1, 4))
    window.answer("other", at=(1, 5), answer=DONE.model_copy(update={"source": "memory"}))


@pytest.mark.parametrize(
    ("act", "fate", "accepted", "typed", "stands"),
    [
        (accept, "full", 19, 0, 19),
        (by_words, "partly", 10, 0, 10),
        (type_through, "left", 0, 4, 4),
        (go_on_otherwise, "left", 0, 0, 0),
        (lambda _: None, "left", 0, 0, 0),
    ],
)
def test_what_became_of_a_shown_answer(act, fate, accepted, typed, stands):
    async def run():
        window = Window()
        window.answer(TEXT)
        act(window)
        await window.wait(60)
        window.acceptance.forget("u")
        await window.wait(BATCH_S)
        return window.told[1], window

    answer, window = asyncio.run(run())
    assert (answer.shown, answer.fate, answer.accepted_chars, answer.typed_chars) == (
        True,
        fate,
        accepted,
        typed,
    )
    assert (answer.chars, answer.lexemes, answer.at) == (len(TEXT), 7, 1000.0)
    assert answer.after_10s.prefix_chars == answer.after_60s.prefix_chars == stands
    assert "u" not in {
        entry.document.uri for entry in window.ledger._open.values() if entry.answer.number == 1
    }


def test_what_stands_later_is_seen_at_ten_seconds_and_at_sixty():
    async def run():
        window = Window()
        window.answer(TEXT)
        accept(window)
        await window.wait(9)
        early = window.told[1].after_10s
        await window.wait(5)
        window.type("", (1, 11), (2, 8))
        window.type("above\nabove\n", (0, 0))
        await window.wait(50)
        return early, window.told[1]

    early, answer = asyncio.run(run())
    assert early is None
    assert (answer.after_10s.prefix_chars, answer.after_60s.prefix_chars) == (19, 7)
    assert answer.fate == "full"


def test_what_stands_when_the_document_is_closed_is_what_stands_later():
    async def run():
        window = Window()
        window.answer(TEXT)
        accept(window)
        window.acceptance.forget("u")
        window.ledger.forget("u")
        await window.wait(BATCH_S)
        told = window.told[1]
        window.type("", (1, 0), (2, 8))
        await window.wait(100)
        return told, window

    told, window = asyncio.run(run())
    assert told.after_10s.kept_chars == told.after_60s.kept_chars == 19
    assert window.told[1] == told
    assert not window.ledger._open


def test_a_shadow_is_looked_for_in_the_same_places():
    async def run():
        window = Window()
        entry = window.answer(TEXT)
        window.ledger.shadowed(entry, SuggestionEvent(route="dllm", model="nano", reason="end"), "compute(c)")
        accept(window)
        await window.wait(61)
        window.acceptance.forget("u")
        await window.wait(BATCH_S)
        return window.told[1]

    answer = asyncio.run(run())
    assert (answer.shadow.route, answer.shadow.chars) == ("dllm", 10)
    assert (answer.shadow.after_60s.prefix_chars, answer.shadow.after_60s.kept_chars) == (8, 9)
    assert answer.after_60s.prefix_chars == 19


def test_a_shadow_that_comes_late_is_looked_for_once():
    async def run():
        window = Window()
        entry = window.answer(TEXT)
        await window.wait(11)
        window.ledger.shadowed(entry, SuggestionEvent(route="dllm", reason="end"), "compute")
        await window.wait(60)
        return window.told[1].shadow

    shadow = asyncio.run(run())
    assert shadow.after_10s is None
    assert shadow.after_60s.prefix_chars == 0


def test_an_answer_without_suggestions_is_told_with_its_reason():
    async def run():
        window = Window()
        window.answer(answer=EMPTY)
        await window.wait(BATCH_S)
        return window.told[1], window

    answer, window = asyncio.run(run())
    assert (answer.shown, answer.fate, answer.reason, answer.after_60s) == (False, "", "empty", None)
    assert not window.ledger._open


def test_another_candidate_that_is_accepted_is_the_same_answer():
    async def run():
        window = Window()
        window.answer(TEXT, "compute(c, d)")
        window.type("compute(c, d)", (1, 4))
        window.acceptance.accept("model0.01")
        await window.wait(70)
        return window.told

    told = asyncio.run(run())
    assert list(told) == [1]
    assert (told[1].fate, told[1].chars, told[1].after_60s.prefix_chars) == ("full", 13, 13)


def test_batches_go_after_two_seconds_or_when_they_are_full():
    async def run():
        window = Window()
        window.answer(answer=EMPTY)
        await window.wait(BATCH_S - 0.1)
        sizes = [[len(batch.answers) for batch in window.batches]]
        await window.wait(0.2)
        for _ in range(BATCH_ANSWERS + 1):
            window.answer(answer=EMPTY)
        await window.wait(0)
        sizes.append([len(batch.answers) for batch in window.batches])
        return sizes

    assert asyncio.run(run()) == [[], [1, BATCH_ANSWERS]]


def test_what_a_host_did_not_hear_is_counted_and_said_later():
    async def run():
        window = Window(hears=False)
        window.answer(answer=EMPTY)
        await window.wait(BATCH_S)
        window.hears = True
        window.answer(answer=EMPTY)
        await window.wait(BATCH_S)
        return window

    window = asyncio.run(run())
    assert [batch.dropped for batch in window.batches] == [0, 1]
    assert window.ledger.dropped == 0


def test_the_end_of_a_window_waits_for_its_last_events_and_not_for_long():
    async def run():
        window, began = Window(), asyncio.Event()

        async def never(_):
            began.set()
            await asyncio.Event().wait()

        window.answer(TEXT)
        window.ledger._post = never
        await asyncio.wait_for(window.ledger.close(0.01), 5)
        return window, began.is_set()

    window, began = asyncio.run(run())
    assert began
    assert not window.ledger._open


def test_keys_are_counted_by_language():
    async def run():
        window = Window()
        type_through(window)
        window.type("whole()", (0, 0))
        window.type("\n    ", (0, 0))
        window.type("", (0, 0), (0, 2))
        await window.wait(BATCH_S)
        return window.batches

    (batch,) = asyncio.run(run())
    assert batch.keys == {"python": 5}
    assert batch.answers == ()


def test_nothing_that_is_told_holds_text():
    async def run():
        window = Window("hunter2 = \n")
        entry = window.answer("hunter2hunter2", at=(0, 10))
        window.ledger.shadowed(entry, SuggestionEvent(route="dllm", reason="end"), "hunter2")
        window.type("hunter2hunter2", (0, 10))
        await window.wait(100)
        return json.dumps([batch.model_dump(mode="json") for batch in window.batches])

    assert "hunter2" not in asyncio.run(run())


@pytest.mark.parametrize(
    ("text", "stood", "now", "prefix", "kept"),
    [
        ("compute(b)", "", "", 0, 0),
        ("compute(b)", "", "compute(b)", 10, 10),
        ("compute(b)", "", "compute(c)", 8, 9),
        ("compute(b)", "", "await compute(b)", 0, 10),
        ("compute(b)", "\ncore()\n", "compute(b)\ncore()\n", 10, 10),
        ("compute(b)\nreturn", "\nrest\n", "compute(b)\nrest\n", 10, 10),
        ("a, b)", ")\n", "a, b)\n", 4, 4),
        ("compute(b)", "(c)", "compute(b) # (d)", 10, 10),
        (")", ")", ")", 0, 0),
        (")", ")", "))", 1, 1),
        ("compute(b)", "compute(b)", "compute(b)", 0, 0),
        ("a = 1\nb = 2", "", "a = 1\nc = 0\nb = 2", 6, 11),
        ("a", "", "x" * 500 + "a", 0, 0),
    ],
)
def test_how_much_of_a_text_stands(text, stood, now, prefix, kept):
    found = standing(text, stood, now)
    assert (found.prefix_chars, found.kept_chars) == (prefix, kept)


@pytest.mark.parametrize(
    ("line", "edit", "expected"),
    [
        (5, Edit((7, 0), (7, 0), "a\nb\n"), 5),
        (5, Edit((5, 0), (5, 0), "a\nb\n"), 5),
        (5, Edit((2, 3), (2, 3), "a\nb\r\nc"), 7),
        (5, Edit((2, 0), (4, 0), ""), 3),
        (5, Edit((0, 0), (9, 0), "\n" * 9), 5),
        (5, Edit((0, 0), (9, 0), "\n" * 2), 2),
        (5, Edit(None, None, "all of it"), 5),
    ],
)
def test_where_a_line_is_after_an_edit(line, edit, expected):
    assert moved(line, edit) == expected


@pytest.mark.parametrize(
    ("lines", "line", "before", "expected"),
    [
        ("a = compute\nb\n", 0, "a = ", "compute\nb\n"),
        ("import x\n\na = compute\n", 0, "a = ", "compute\n"),
        ("c = compute\n", 0, "a = ", "c = compute\n"),
        ("a = 1\n", 9, "a = ", "1\n"),
        ("a = 1\n", 99, "", ""),
    ],
)
def test_a_place_is_found_again(lines, line, before, expected):
    assert around(Document("u", "python", 1, lines), line, before) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a", True), ("\n    ", True), ("\r\n", True), ("", False), ("ab", False), ("\n  x", False)],
)
def test_what_is_a_key(text, expected):
    assert is_key(Edit((0, 0), (0, 0), text)) is expected
