import json
import random
import re
from dataclasses import asdict

import pytest

from fimserver.ab.analysis.analysis import analyse
from fimserver.ab.analysis.comparison_row import ComparisonRow
from fimserver.ab.analysis.headline import headline
from fimserver.ab.analysis.measures import MEANS, outcome
from fimserver.ab.report.table import line_of
from fimserver.ab.schema import Arm, PairedRow, Report, Result
from fimserver.reasons import Reason


def result(**fields):
    return Result(**{"text": "abcd", "route": "dllm", "model": "m", "reason": "end"} | fields)


def row(number, a, b, **fields):
    named = {
        "item": str(number),
        "group": f"file{number}",
        "kind": "line",
        "language": "python",
        "lexemes": 5,
        "gold": "abcdefgh",
    }
    return PairedRow(**named | fields, a=result(**a), b=result(**{"route": "ar"} | b))


def report(*rows, **fields):
    arms = {"a": Arm(spec="dllm"), "b": Arm(spec="ar")}
    return Report(
        version="0", created="", command="", source={}, environment={}, arms=arms, rows=rows, **fields
    )


def whole(analysis, stratum="all"):
    return {line.metric: line for line in analysis.comparisons if line.stratum == stratum}


# (answer_ms, first_ms, saved_keys, exact) of A and of B
HAND = report(
    row(1, {"answer_ms": 100, "first_ms": 80, "saved_keys": 7, "exact": True, "prefix_chars": 4, "parses": True}, {"answer_ms": 50, "first_ms": 10, "prefix_chars": 2}),
    row(2, {"answer_ms": 400, "first_ms": 80, "saved_keys": 3}, {"answer_ms": 100, "first_ms": 20, "saved_keys": 5, "exact": True, "parses": False}, lexemes=20, kind="body"),
    row(3, {"answer_ms": 200, "first_ms": 80, "saved_keys": 2, "exact": True}, {"answer_ms": 25, "first_ms": 40, "saved_keys": 1, "text": "", "reason": "empty"}, group="file2", kind="body"),
)  # fmt: skip


class TestByHand:
    lines = whole(analyse(HAND))

    @pytest.mark.parametrize(
        ("metric", "n", "a", "b", "effect", "value"),
        [
            ("exact", 3, 2 / 3, 1 / 3, "difference", -1 / 3),
            ("saved_keys", 3, 4, 2, "difference", -2),
            ("kept_share", 2, 0.5, 0.25, "difference", -0.25),
            ("gold_share", 3, 4 / 24, 2 / 24, "difference", -2 / 24),
            ("shown", 3, 1, 2 / 3, "difference", -1 / 3),
            ("empty", 3, 0, 1 / 3, "difference", 1 / 3),
            ("first_ms_ratio", 3, 80, 20, "ratio", 4),
            ("answer_ms_ratio", 3, 200, 50, "ratio", 4),
            ("answer_ms_p50", 3, 200, 50, "difference", -150),
            ("answer_ms_p95", 3, 380, 95, "difference", -285),
            ("chars_per_s_0", 3, 12 / 0.7, 6 / 0.175, "ratio", 2),
            ("chars_per_s_300", 3, 12 / 1.6, 6 / 0.775, "ratio", (6 / 0.775) / (12 / 1.6)),
        ],
    )
    def test_the_table_says(self, metric, n, a, b, effect, value):
        line = self.lines[metric]
        assert (line.n, line.effect) == (n, effect)
        assert (line.a, line.b, line.value) == pytest.approx((a, b, value))

    def test_two_groups_are_too_few_for_intervals_and_it_says_so(self):
        assert self.lines["exact"].groups == 2
        assert self.lines["exact"].low is None
        assert any("too few" in note for note in analyse(HAND).notes)

    def test_what_one_arm_has_no_number_for_is_left_out(self):
        assert not {"parses", "cancel_ms"} & set(self.lines)

    def test_signs_are_tested_once_for_the_whole_and_corrected_for_all_tests(self):
        tested = {name: line.p for name, line in self.lines.items() if line.p is not None}
        assert tested["exact"] == 1.0  # 2 against 1
        assert tested["answer_ms_ratio"] == tested["first_ms_ratio"] == 0.25  # 3 against 0
        assert {name for name, line in self.lines.items() if line.p_holm is not None} == set(tested)
        assert self.lines["answer_ms_ratio"].p_holm == min(1.0, 0.25 * len(tested))
        assert all(line.p is None for line in analyse(HAND).comparisons if line.stratum != "all")

    def test_two_lines_carry_the_claims(self):
        assert [line.metric for line in analyse(HAND).comparisons if line.primary] == [
            "first_ms_p95",
            "exact",
        ]

    def test_parts_are_the_ways_in_which_rows_differ(self):
        found = dict.fromkeys(line.stratum for line in analyse(HAND).comparisons)
        assert list(found) == ["all", "kind:body", "kind:line", "bucket:1-8", "bucket:17-32"]
        assert whole(analyse(HAND), "kind:body")["saved_keys"].a == 2.5

    def test_regret_is_what_the_better_arm_of_each_item_would_have_kept(self):
        found = analyse(HAND).regret
        rate = 6 / 175  # of B, the faster to keep, in keys per millisecond
        a, b = [7 - rate * 100, 3 - rate * 400, 2 - rate * 200], [-rate * 50, 5 - rate * 100, 1 - rate * 25]
        best = [max(pair) for pair in zip(a, b, strict=True)]
        assert found.keys_per_s == pytest.approx(1000 * rate)
        assert found.a.value == pytest.approx(sum(best) / 3 - sum(a) / 3)
        assert found.b.value == pytest.approx(sum(best) / 3 - sum(b) / 3)
        assert found.choosing == ()

    def test_the_curve_adds_the_same_wait_to_every_answer(self):
        points = {point.added_ms: point for point in analyse(HAND).curve}
        assert points[0].a == pytest.approx(12 / 0.7)
        assert points[1000].b == pytest.approx(6 / 3.175)


class TestRegret:
    def test_an_arm_that_chooses_well_has_none_and_its_rate_is_not_used(self):
        rows = [
            row(
                i,
                {"answer_ms": 10, "saved_keys": 9, "route": ("ar", "dllm")[i % 2]},
                {"answer_ms": 10, "saved_keys": i % 2},
            )
            for i in range(12)
        ]
        found = analyse(report(*rows)).regret
        assert found.choosing == ("a",)
        assert found.keys_per_s == pytest.approx(50)
        assert found.a.value == 0
        assert found.b.value == pytest.approx(8.5)
        assert found.b.low < 8.5 < found.b.high

    def test_without_time_there_is_none(self):
        found = analyse(report(row(1, {}, {})))
        assert found.regret is None
        assert found.curve[0].a is None


def test_predictions_are_by_arm_and_by_the_route_that_served():
    rows = [
        row(
            i,
            {"answer_ms": 100 * i, "predicted_ms": {"dllm": 100, "ar": 1}},
            {"answer_ms": 50, "predicted_ms": {"dllm": 9}},
        )
        for i in range(1, 12)
    ]
    (found,) = analyse(report(*rows)).predictions
    assert (found.side, found.route, found.n, found.p10, found.p50, found.p90) == ("a", "dllm", 11, 2, 6, 10)


@pytest.mark.parametrize(
    ("fields", "ended"),
    [
        ({}, "shown"),
        ({"text": ""}, "empty"),
        ({"shown": False}, "late"),
        ({"shown": False, "reason": "stale"}, "late"),
        ({"shown": True, "reason": "deadline"}, "shown"),
        ({"shown": False, "reason": "superseded"}, "cancelled"),
        ({"text": "", "reason": "no_host"}, "error"),
        ({"shown": False, "reason": "duplicate"}, "withheld"),
        ({"shown": False, "text": "", "reason": "unfinished"}, "late"),
        ({"shown": False, "text": "", "reason": "cut_off"}, "withheld"),  # by the token limit, not by time
        ({"shown": False, "text": "return va", "reason": "cut_off"}, "withheld"),
    ],
)
def test_every_request_has_one_outcome(fields, ended):
    assert outcome(result(**fields)) == ended


@pytest.mark.parametrize("reason", Reason)
def test_the_shares_of_outcomes_add_up(reason):
    lines = whole(analyse(report(row(1, {"reason": reason, "shown": False}, {"text": ""}))))
    assert sum(lines[name].a for name in ("shown", "late", "cancelled", "empty", "error", "withheld")) == 1


def test_errors_and_cancelled_requests_have_no_times_and_it_is_said_how_many_are_left():
    fine = {"answer_ms": 50, "first_ms": 50}
    rows = [
        row(1, fine, fine),
        row(2, fine, fine | {"text": "", "reason": "failed"}),
        row(3, fine | {"reason": "cancelled", "shown": False}, fine),
    ]
    analysis = analyse(report(*rows, row(4, fine, {"answer_ms": 50})))
    assert whole(analysis)["answer_ms_ratio"].n == 2
    assert whole(analysis)["first_ms_ratio"].n == 1
    assert "times of first text are of 1 of 4 items: those that both arms answered" in analysis.notes
    assert whole(analysis)["exact"].n == 4


class TestWarm:
    cold, warm = ({"answer_ms": ms, "first_ms": ms} for ms in (100, 10))

    def test_warm_rows_stand_beside_the_cold_ones(self):
        rows = [row(i, self.cold, self.cold) for i in range(6)] + [
            row(i, self.warm, self.warm, warm=True) for i in range(6, 14)
        ]
        analysis = analyse(report(*rows))
        assert analysis.n == 6
        assert whole(analysis)["answer_ms_p50"].a == 100
        assert whole(analysis, "warm")["answer_ms_p50"].a == 10
        assert whole(analysis, "warm")["answer_ms_p50"].n == 8

    def test_where_all_are_warm_they_are_the_whole(self):
        analysis = analyse(report(*(row(i, self.warm, self.warm, warm=True) for i in range(8))))
        assert analysis.n == 8
        assert not whole(analysis, "warm")
        assert "all items ran with the caches of the item before" in analysis.notes


class TestNothingToSay:
    def test_a_report_without_rows_has_a_note(self):
        analysis = analyse(report())
        assert (analysis.n, analysis.comparisons, analysis.headline) == (0, (), ())
        assert analysis.notes

    @pytest.mark.parametrize(
        "made",
        [
            report(),
            HAND,
            report(row(1, {}, {})),
            report(*(row(i, {"saved_keys": i % 2}, {"answer_ms": 1e-9 * (i % 2)}) for i in range(9))),
            report(
                *(
                    row(i, {"text": "", "reason": "failed"}, {"text": "", "reason": "failed"}, gold="")
                    for i in range(9)
                )
            ),
        ],
        ids=["no rows", "by hand", "one row", "no time", "only errors"],
    )
    def test_json_never_sees_a_number_that_is_none(self, made):
        assert json.loads(json.dumps(asdict(analyse(made)), allow_nan=False))["n"] == len(made.rows)

    def test_an_interrupted_run_says_so(self):
        assert any("interrupted" in note for note in analyse(report(row(1, {}, {}), finished=False)).notes)


def random_rows(seed, speedup, rate_a, rate_b, count=240):
    rng = random.Random(seed)
    for i in range(count):
        ms = rng.lognormvariate(5, 0.5)
        yes = [rng.random() < rate for rate in (rate_a, rate_b)]
        a, b = (
            {
                "answer_ms": ms * rng.lognormvariate(0, 0.2) / by,
                "exact": ok,
                "saved_keys": 9.0 * ok,
                "prefix_chars": 3,
            }
            for by, ok in zip((1, speedup), yes, strict=True)
        )
        yield row(i, a, b, group=f"file{i % 40}")  # fmt: skip


def numbers(text):
    return [float(number) for number in re.findall(r"[-+]?\d+\.?\d*", text)]


class TestHeadline:
    def test_a_faster_and_better_b_is_told_with_its_interval(self):
        speed, exact, value = analyse(report(*random_rows(1, 1.8, 0.2, 0.5))).headline
        assert speed.startswith("B answered 1.8")
        assert "the kept share of B, the faster one, is within 2 points of A's" in speed
        assert exact.startswith("B was exact on ")
        assert "p < 0.001" in exact
        assert value.startswith("B kept ")
        assert "no difference" not in (speed + exact + value)

    def test_a_slower_and_worse_b_is_told_in_the_same_words(self):
        speed, exact, value = analyse(report(*random_rows(1, 1 / 1.8, 0.5, 0.2))).headline
        assert speed.startswith("B answered 0.")
        assert "the kept share of A, the faster one" in speed
        assert exact.startswith("B was exact on ")
        assert value.startswith("B kept 0.")
        assert "no difference" not in (speed + exact + value)

    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize(
        ("speedup", "rate_a", "rate_b"), [(1.8, 0.2, 0.5), (0.6, 0.5, 0.2), (1.0, 0.3, 0.3)]
    )
    def test_its_signs_and_bounds_are_those_of_the_table(self, seed, speedup, rate_a, rate_b):
        analysis = analyse(report(*random_rows(seed, speedup, rate_a, rate_b)))
        lines = {line.metric: line_of(line) for line in analysis.comparisons if line.stratum == "all"}
        for sentence, metric in zip(
            analysis.headline, ("answer_ms_ratio", "exact", "chars_per_s_300"), strict=True
        ):
            said = sentence.split("(")[1] if metric == "exact" else sentence
            assert numbers(said)[:3] == pytest.approx(
                numbers(lines[metric].effect + lines[metric].interval), abs=0.0051
            )

    def test_no_difference_is_said_in_so_many_words_with_what_could_not_be_seen(self):
        speed, exact, value = analyse(report(*random_rows(2, 1.0, 0.3, 0.3))).headline
        assert all("no difference shown, less than" in sentence for sentence in (speed, exact, value))
        assert "faster" not in speed

    @pytest.mark.parametrize("groups", [1, 2, 5])
    def test_too_few_groups_are_counted_and_nothing_is_claimed(self, groups):
        rows = [
            row(i, {"answer_ms": 90 + i, "saved_keys": 2}, {"answer_ms": 30, "saved_keys": 3})
            for i in range(groups)
        ]
        speed, exact, value = analyse(report(*rows)).headline
        for sentence in (speed, exact, value):
            assert f"{groups} groups are too few for an interval (6 are needed)" in sentence
            assert "No difference" not in sentence

    def test_many_groups_are_never_called_too_few(self):
        rows = [
            row(
                i,
                {"answer_ms": 90, "saved_keys": 9.0 * (i == 0), "prefix_chars": 4 * (i == 0)},
                {"answer_ms": 30, "saved_keys": 1.0},
            )
            for i in range(44)
        ]
        sentences = " ".join(analyse(report(*rows)).headline)
        assert "too few" not in sentences
        assert "allow no interval" in sentences

    def test_arms_that_never_differ_still_have_a_width(self):
        same = {"answer_ms": 50.0, "exact": False, "saved_keys": 1.0}
        analysis = analyse(report(*(row(i, same, same) for i in range(30))))
        line = whole(analysis)["exact"]
        assert (line.value, line.p) == (0, 1)
        assert line.high == -line.low == pytest.approx(1 - 0.025 ** (1 / 30))
        assert "less than 11.6 points could not be seen" in analysis.headline[1]

    def test_a_kept_share_that_may_be_worse_is_not_called_as_good(self):
        rows = [
            row(
                i,
                {"answer_ms": 90 + i % 7, "prefix_chars": 3},
                {"answer_ms": 30 + i % 5, "prefix_chars": i % 4},
            )
            for i in range(60)
        ]
        assert "is not shown to be within 2 points" in analyse(report(*rows)).headline[0]

    def test_numbers_are_written_as_people_say_them(self):
        line = ComparisonRow(
            "exact",
            "exact",
            "share",
            "higher",
            "all",
            300,
            40,
            "difference",
            0.12,
            0.103,
            -0.017,
            -0.038,
            0.004,
            p=0.12,
        )
        (said,) = headline([line])
        assert said == (
            "B was exact on 10.3 % against 12.0 % of A (-1.7 points [-3.8, 0.4], p = 0.12): "
            "no difference shown, less than 2.1 points could not be seen."
        )


def test_known_differences_are_found_and_the_same_seed_gives_the_same_numbers():
    made = report(*random_rows(3, 1.8, 0.2, 0.5))
    lines = whole(analyse(made))
    assert 1.5 < lines["answer_ms_ratio"].low < lines["answer_ms_ratio"].high < 2.1
    assert 0 < lines["exact"].low < lines["exact"].high
    assert lines["answer_ms_p95"].a_low < lines["answer_ms_p95"].a < lines["answer_ms_p95"].a_high
    assert lines["answer_ms_p99"].low is None
    assert analyse(made, seed=5) == analyse(made, seed=5) != analyse(made, seed=6)


def test_exchanging_the_arms_turns_every_sign():
    made = report(*random_rows(3, 1.8, 0.2, 0.5))
    turned = report(*(row.model_copy(update={"a": row.b, "b": row.a}) for row in made.rows))
    lines, others = whole(analyse(made)), whole(analyse(turned))
    for name in ("exact", "saved_keys", "answer_ms_p95"):
        assert (others[name].low, others[name].high) == pytest.approx((-lines[name].high, -lines[name].low))
        assert others[name].p == lines[name].p
    for name in ("answer_ms_ratio", "chars_per_s_300"):
        assert (others[name].low, others[name].high) == pytest.approx(
            (1 / lines[name].high, 1 / lines[name].low), rel=1e-4
        )


def test_every_metric_has_its_own_name():
    names = [measure.metric for measure in MEANS]
    assert len(set(names)) == len(names)
