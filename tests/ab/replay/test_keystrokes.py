"""Keystrokes that suggestions would have saved, on constructed cases."""

import pytest

from fimserver.ab.items.client_model import PlannedRequest, plan
from fimserver.ab.items.traces import Change, Close, Open, Patch, Trace
from fimserver.ab.replay.gold import settle
from fimserver.ab.replay.keystrokes import Accept, accepts, rows, timelines, totals
from fimserver.ab.replay.outcome import Replayed, ReplayedText, RequestOutcome
from fimserver.errors import InputError


def typing(text, start="", at=(0, 0), every_ms=100.0):
    """A trace of a user who types a text, one key per character."""
    events, (line, char) = [Open(t=0, doc=1, language="python", name="a.py", text=start)], at
    for number, key in enumerate(text, start=1):
        events.append(Change(t=every_ms * number, doc=1, edits=(Patch(line, char, line, char, key),)))
        line, char = (line + 1, 0) if key == "\n" else (line, char + 1)
    return Trace("t", tuple(events))


def edited(start, *changes, asked_after=0, at=(0, 0), gap_ms=100.0):
    """The gold text at a position of a text, requested after some of the changes."""
    events = [Open(t=0, doc=1, language="python", text=start)]
    events += [Change(t=gap_ms * n, doc=1, edits=(Patch(*c),)) for n, c in enumerate(changes, start=1)]
    return settle(Trace("t", tuple(events)), [PlannedRequest(0, asked_after, 1, *at)])[0]


@pytest.mark.parametrize(
    ("start", "changes", "at", "text", "rest"),
    [
        pytest.param("x = \n", [(0, 4, 0, 4, "a"), (0, 5, 0, 5, "b")], (0, 4), "ab", "", id="typed on"),
        pytest.param("x = \n", [(0, 4, 0, 4, "ab"), (0, 5, 0, 6, "")], (0, 4), "a", "", id="taken back"),
        pytest.param(
            "x = \n", [(0, 4, 0, 4, "ab"), (0, 4, 0, 5, "c")], (0, 4), "cb", "", id="put right within"
        ),
        pytest.param("x = \ny\n", [(0, 4, 0, 4, "a"), (1, 0, 1, 1, "b")], (0, 4), "a", "", id="edits below"),
        pytest.param(
            "y\nx = \n",
            [(1, 4, 1, 4, "a"), (0, 0, 0, 0, "b\nc"), (2, 5, 2, 5, "d")],
            (1, 4),
            "ad",
            "",
            id="above",
        ),
        pytest.param(
            "x = y\n", [(0, 4, 0, 4, "a"), (0, 3, 0, 5, "bcd")], (0, 4), "a", "y", id="the text before goes"
        ),
        pytest.param(
            "x = \n", [(0, 3, 0, 4, ""), (0, 3, 0, 3, "a")], (0, 4), "", "", id="the key before is taken back"
        ),
        pytest.param(
            "f()\n", [(0, 2, 0, 2, "a"), (0, 3, 0, 4, ")")], (0, 2), "a)", "", id="a bracket is typed over"
        ),
        pytest.param("f()\n", [(0, 2, 0, 2, "a")], (0, 2), "a", ")", id="a bracket stays"),
        pytest.param("f(abc)\n", [(0, 2, 0, 4, "")], (0, 2), "", "c)", id="the text behind is deleted"),
        pytest.param(
            "f(abc)\n", [(0, 2, 0, 4, "z"), (0, 3, 0, 3, "y")], (0, 2), "zy", "c)", id="and written anew"
        ),
        pytest.param(
            "x\r\n",
            [(0, 1, 0, 1, "\r\n    a"), (1, 5, 1, 5, "😀")],
            (0, 1),
            "\n    a😀",
            "",
            id="other line ends",
        ),
    ],
)
def test_what_comes_to_stand_at_a_place(start, changes, at, text, rest):
    settled = edited(start, *changes, at=at)
    assert (settled.text, settled.rest) == (text, rest)


def test_ten_seconds_count_and_no_more():
    settled = edited("", (0, 0, 0, 0, "a"), (0, 1, 0, 1, "b"), (0, 2, 0, 2, "c"), gap_ms=5000.0)
    assert settled.text == "ab"


def test_a_document_that_closes_has_settled():
    events = (*typing("ab").events, Close(t=300, doc=1), Open(t=400, doc=1, language="python", text="other"))
    assert settle(Trace("t", events), [PlannedRequest(0, 0, 1, 0, 0)])[0].text == "ab"


def test_settled_text_says_what_stood_around_and_where_later_requests_are():
    trace = typing("abc", start="x = \r\ny\n", at=(0, 4))
    requests = [PlannedRequest(0, 0, 1, 0, 4), PlannedRequest(1, 2, 1, 0, 6), PlannedRequest(2, 2, 1, 1, 0)]
    first, second, third = settle(trace, requests)
    assert (first.before, first.after, first.language) == ("x = ", "\ny\n", "python")
    assert [dict(settled.inside) for settled in (first, second, third)] == [{}, {0: 2}, {}]
    assert [settled.text for settled in (first, second, third)] == ["abc", "c", ""]


def replayed(trace, answers, endings=None, client="vscode", route="auto"):
    """A replay in which request ``n`` got ``answers[n]``: a text, or a text and how many characters it replaces."""
    shots = []
    for step in plan(trace, client):
        if isinstance(step.what, PlannedRequest):
            number = step.what.number
            got = answers.get(number)
            texts = (ReplayedText(*(got if isinstance(got, tuple) else (got, 0))),) if got else ()
            ending = (endings or {}).get(number, "shown" if texts else "empty")
            facts = {
                "route": "ar",
                "model": "nano",
                "reason": "line",
                "why": "pinned",
                "tokens": 3,
                "forwards": 2,
            }
            key_ms = step.due_ms - 40
            facts = facts if ending in {"shown", "late"} else {}
            shots.append(
                RequestOutcome(step.what, key_ms, step.due_ms, step.due_ms + 30, ending, texts, facts)
            )
    keys = [
        (step.due_ms, len(step.what.edits[0].text))
        for step in plan(trace, client)
        if isinstance(step.what, Change)
    ]
    return Replayed(trace, tuple(shots), tuple(keys), 9.0, 0.0, 1.0, client, route)


def accepted(trace, answers, endings=None):
    run = replayed(trace, answers, endings)
    return dict(accepts(run, settle(trace, [shot.request for shot in run.shots])))


RETURN = typing("return a + b\nx")  # request n comes after key n + 1


@pytest.mark.parametrize(
    ("answers", "endings", "expected"),
    [
        pytest.param({0: "eturn a"}, {}, {0: (7, 6)}, id="right to its end"),
        pytest.param({0: "eturn b"}, {}, {}, id="wrong"),
        pytest.param({0: "eturn a + b\nyy"}, {}, {0: (12, 12 - 1 - 2)}, id="the first line is right"),
        pytest.param({0: "eturn a"}, {0: "late"}, {}, id="it came late"),
        pytest.param(
            {0: "eturn a", 3: "rn a + b"}, {}, {0: (7, 6)}, id="what is written is not written again"
        ),
        pytest.param({0: "eturn", 5: " a + b"}, {}, {0: (5, 4), 5: (6, 5)}, id="one after the other"),
        pytest.param({0: "eturn", 4: "n a + b"}, {}, {0: (5, 4)}, id="overlapping ones"),
        pytest.param({0: "e", 1: "turn"}, {}, {1: (4, 3)}, id="what saves nothing is left"),
        pytest.param({0: "zzz", 1: "turn"}, {}, {1: (4, 3)}, id="a wrong one hides nothing"),
    ],
)
def test_what_is_accepted(answers, endings, expected):
    assert accepted(RETURN, answers, endings) == {
        number: Accept(*accept) for number, accept in expected.items()
    }


@pytest.mark.parametrize(
    ("trace", "answer", "expected"),
    [
        pytest.param(
            typing("abcd", "f()\n", (0, 2)), ("bcd)", 1), Accept(3, 2), id="a bracket that stays is not saved"
        ),
        pytest.param(typing("abcd", "f()\n", (0, 2)), ("bcd)", 0), None, id="a bracket too many"),
        pytest.param(
            Trace(
                "t",
                (
                    *typing("abcd", "f()\n", (0, 2)).events,
                    Change(t=600, doc=1, edits=(Patch(0, 6, 0, 7, ")"),)),
                ),
            ),
            ("bcd)", 1),
            Accept(4, 3),
            id="a bracket that is typed over is saved",
        ),
    ],
)
def test_text_right_of_the_cursor(trace, answer, expected):
    assert accepted(trace, {0: answer}).get(0) == expected


def test_rows_pair_the_same_requests_of_both_arms():
    a = replayed(RETURN, {0: "eturn a + b", 5: " a + c"}, route="dllm")
    b = replayed(
        RETURN, {0: "eturn"}, {1: "cancelled", 2: "superseded", 3: "late", 4: "failed"}, route="auto"
    )
    made = rows("work", a, b, first="b")
    assert [row.item for row in made] == [f"work:{number}" for number in range(14)]
    first, second = made[0], made[1]
    assert (first.group, first.kind, first.language, first.first, first.warm) == (
        "work",
        "request",
        "python",
        "b",
        True,
    )
    assert (first.before, first.gold, first.at_ms) == ("r", "eturn a + b\nx", 100.0)
    assert first.lexemes == 6  # eturn a + b, the line end, x
    assert (first.a.exact, first.a.first_line, first.a.prefix_chars, first.a.saved_keys) == (
        True,
        True,
        11,
        10,
    )
    assert (first.b.exact, first.b.first_line, first.b.prefix_chars, first.b.saved_keys) == (
        False,
        False,
        5,
        4,
    )
    assert (first.a.route, first.a.model, first.a.tokens, first.a.forwards) == ("ar", "nano", 3, 2)
    assert (first.a.first_ms, first.a.answer_ms) == pytest.approx((70, 30))
    assert (second.a.route, second.a.reason, second.a.shown, second.a.first_ms) == ("dllm", "", False, 0.0)
    assert second.b.route == "ar"  # what that arm mostly took
    assert [row.b.reason for row in made[1:5]] == ["cancelled", "superseded", "line", "failed"]
    assert [row.b.answer_ms for row in made[1:3]] == [0.0, 0.0]
    assert made[5].a.shown
    assert (made[5].a.prefix_chars, made[5].a.saved_keys) == (5, 0)


def test_replays_of_different_traces_are_no_pair():
    with pytest.raises(InputError, match="different requests"):
        rows("work", replayed(RETURN, {}), replayed(typing("abc"), {}))


def test_a_timeline_has_a_mark_for_all_that_happened():
    run = replayed(RETURN, {0: "eturn", 5: " b"}, {1: "cancelled", 2: "superseded"})
    other, line = timelines("work", replayed(RETURN, {}), run)
    assert (other.side, len(other.marks)) == ("a", 14 * 3)
    kinds = [mark.what for mark in line.marks]
    counts = {kind: kinds.count(kind) for kind in ("key", "request", "answer", "shown", "accept")}
    assert counts == {"key": 14, "request": 14, "answer": 12, "shown": 2, "accept": 1}
    assert [mark.at_ms for mark in line.marks] == sorted(mark.at_ms for mark in line.marks)
    assert (line.group, line.side, line.keys, line.cancelled, line.superseded) == ("work", "b", 14, 1, 1)
    assert [mark.chars for mark in line.marks if mark.what == "accept"] == [5]


def test_totals():
    run = replayed(
        RETURN, {0: "eturn", 5: " b", 7: " +"}, {1: "cancelled", 2: "superseded", 3: "failed", 7: "late"}
    )
    got = totals(run)
    assert (got.keys, got.typed_chars, got.requests, got.seconds) == (14, 14, 14, 9.0)
    assert (got.shown, got.late, got.cancelled, got.superseded, got.failed, got.empty) == (2, 1, 1, 1, 1, 8)
    assert (got.accepted, got.saved_keys) == (1, 4)
    assert got.kept_share == pytest.approx((5 + 1) / 7)
