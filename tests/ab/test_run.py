"""Two arms on the same items, in turn, and an interrupted run."""

import pytest

from fimserver.ab.arms.arm import ArmAnswer
from fimserver.ab.items.spans import Span
from fimserver.ab.run import CANCEL_EVERY, WARM_UP, Journal, RunPlan, fingerprint, run
from fimserver.ab.schema import Arm
from fimserver.errors import FimError, InputError
from fimserver.reasons import Reason
from fimserver.types import Decision, Prefill
from fimserver.wire import Usage


def spans(count):
    return [
        Span(f"s{n}", f"f{n % 3}.py", "line", "python", "def f(a):\n    ", "return a", "\n")
        for n in range(count)
    ]


class Scripted:
    """An arm that records its requests and returns scripted answers."""

    def __init__(self, name, log, text="return a", error=None, fails_at=""):
        self.arm = Arm(spec=name)
        self._log, self._text, self._error, self._fails_at = log, text, error, fails_at

    def fill(self, span, *, warm):
        if span.item == self._fails_at:
            raise self._error
        self._log.append((self.arm.spec, span.item, warm))
        decision = Decision("ar", "asked for", predicted_ms={"ar": 7.0})
        usage = Usage(
            route="ar",
            model="m",
            reason=Reason.END,
            tokens=3,
            forwards=5,
            prefill=Prefill(64, 2, 4.0),
            decision=decision,
        )
        return ArmAnswer(self._text, usage, 3.0, 9.0)

    def close(self):
        raise NotImplementedError

    def cancel_ms(self, span, after_ms):
        self._log.append((self.arm.spec, span.item, after_ms))
        return 1.5


def arms(log, **second):
    return Scripted("a", log), Scripted("b", log, **({"text": "nothing"} | second))


def journal(tmp_path, name="one"):
    return Journal(tmp_path / "unfinished.jsonl", name)


def test_both_arms_do_an_item_before_either_does_the_next(tmp_path):
    log = []
    rows = list(run(RunPlan(spans(12), 0, warm=False), arms(log), journal(tmp_path)))
    done = [entry for entry in log[2 * WARM_UP :] if entry[2] is False]
    assert (
        [item for _, item, _ in done[::2]]
        == [item for _, item, _ in done[1::2]]
        == [row.item for row in rows]
    )
    assert {arm for arm, _, _ in done[::2]} == {"a", "b"}  # the order is drawn
    assert [row.first for row in rows] == [arm for arm, _, _ in done[::2]]


def test_the_order_is_the_seeds(tmp_path):
    def first(seed, name):
        return [
            row.first for row in run(RunPlan(spans(30), seed, warm=False), arms([]), journal(tmp_path, name))
        ]

    one = first(1, "one")
    (tmp_path / "unfinished.jsonl").unlink()
    again = first(1, "one")
    (tmp_path / "unfinished.jsonl").unlink()
    assert one == again != first(2, "one")


def test_a_row_has_scores_and_times(tmp_path):
    row = next(iter(run(RunPlan(spans(1), 0, warm=False), arms([]), journal(tmp_path))))
    assert (row.a.exact, row.b.exact, row.a.saved_keys) == (True, False, 7.0)
    assert (row.a.first_ms, row.a.answer_ms, row.a.passes, row.a.fresh_tokens, row.a.prefill_ms) == (
        3.0,
        9.0,
        3,
        64,
        4.0,
    )
    assert (row.a.parses, row.lexemes, row.gold, row.a.predicted_ms) == (True, 2, "return a", {"ar": 7.0})


def test_every_tenth_item_is_called_off_half_way(tmp_path):
    log = []
    rows = list(run(RunPlan(spans(CANCEL_EVERY + 1), 0, warm=False), arms(log), journal(tmp_path)))
    assert [row.a.cancel_ms is not None for row in rows] == [True] + [False] * (CANCEL_EVERY - 1) + [True]
    assert {after for _, _, after in log if after not in (True, False)} == {4.5}


def test_warm_rows_are_rows_of_their_own(tmp_path):
    rows = list(run(RunPlan(spans(2), 0, warm=True), arms([]), journal(tmp_path)))
    assert [(row.item, row.warm) for row in rows] == [
        ("s0", False),
        ("s0:warm", True),
        ("s1", False),
        ("s1:warm", True),
    ]


def test_a_run_that_was_broken_off_goes_on_where_it_was(tmp_path):
    plan, log = RunPlan(spans(20), 0, warm=False), []
    running = run(plan, arms(log), journal(tmp_path))
    begun = [next(running) for _ in range(7)]
    running.close()
    with (tmp_path / "unfinished.jsonl").open("a") as file:
        file.write('{"item": "s7", "gro')  # the machine went off while it wrote
    log.clear()
    rows = list(run(plan, arms(log), journal(tmp_path)))
    assert rows[:7] == begun
    assert [row.item for row in rows] == [f"s{n}" for n in range(20)]
    assert not {item for _, item, _ in log} & {row.item for row in begun}


def test_what_was_done_survives_a_second_break(tmp_path):
    plan = RunPlan(spans(6), 0, warm=False)
    for count in (2, 3):
        running = run(plan, arms([]), journal(tmp_path))
        for _ in range(count):
            next(running)
        running.close()
    assert [row.item for row in journal(tmp_path).rows] == ["s0", "s1", "s2"]


def test_another_comparison_is_not_mixed_in(tmp_path):
    journal(tmp_path, "one")
    with pytest.raises(InputError, match="unfinished comparison of something else"):
        journal(tmp_path, "two")


@pytest.mark.parametrize("text", ["", "[]", "null", "nonsense"])
def test_a_file_that_is_no_journal_is_left_alone(tmp_path, text):
    path = tmp_path / "unfinished.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match="delete"):
        journal(tmp_path)
    assert path.read_text() == text


def test_an_arm_that_breaks_off_is_named_and_nothing_is_lost(tmp_path):
    broken = arms([], error=FimError("gone"), fails_at="s9")
    with pytest.raises(FimError, match="b failed on s9: gone; run the same command again"):
        list(run(RunPlan(spans(12), 0, warm=False), broken, journal(tmp_path)))
    assert len(journal(tmp_path).rows) == 9


@pytest.mark.parametrize("breaks", ["a", "b"])
def test_ctrl_c_within_an_item_passes_through_and_the_item_is_no_row(tmp_path, breaks):
    broken = {"error": KeyboardInterrupt(), "fails_at": "s9"}
    both = [Scripted(name, [], **(broken if breaks == name else {})) for name in "ab"]
    with pytest.raises(KeyboardInterrupt):
        list(run(RunPlan(spans(12), 0, warm=False), tuple(both), journal(tmp_path)))
    assert [row.item for row in journal(tmp_path).rows] == [f"s{n}" for n in range(9)]


def test_the_fingerprint_is_of_what_is_compared():
    facts = {"arms": ["a", "b"], "spans": ["s1"]}
    assert fingerprint(facts) == fingerprint(dict(reversed(facts.items())))
    assert fingerprint(facts) != fingerprint(facts | {"spans": ["s2"]})
