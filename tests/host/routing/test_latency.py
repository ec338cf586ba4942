"""Costs of a model, learned from its answers."""

import json
import math
import random

import pytest

from fimserver.host.routing.latency import LENGTHS, LatencyModel, LatencySample, ModelCost
from fimserver.lengths import BUCKETS
from fimserver.reasons import Reason

LEXEMES = (4, 12, 23, 46, 100)


def seen(rows=128, row_ms=0.1, passes=10, pass_ms=2.0, tokens=20, reason=Reason.END):
    prefill = rows * row_ms
    return LatencySample(rows, prefill, passes, tokens, prefill + passes * pass_ms, reason)


def learned(*answers):
    cost = ModelCost()
    for answer in answers:
        cost.learn(answer)
    return cost


def test_nothing_is_known_before_a_pass_was_seen():
    assert not ModelCost().known
    assert not learned(seen(passes=0)).known
    assert learned(seen()).known


def test_a_model_that_keeps_nothing_has_no_price_of_rows():
    assert learned(seen(rows=0)).by_length(1000, LEXEMES)[1] == pytest.approx(20)


def test_an_answer_takes_its_fresh_rows_and_its_passes():
    cost = learned(*[seen()] * 3)
    assert cost.by_length(0, LEXEMES)[1] == pytest.approx(20)
    assert cost.by_length(1000, LEXEMES)[1] == pytest.approx(120)


def test_a_length_that_was_never_seen_is_reckoned_from_tokens_a_pass():
    cost = learned(*[seen(passes=10, tokens=20)] * 3)  # two tokens a pass
    assert cost.by_length(0, LEXEMES)[3] == pytest.approx(46 * 1.3 / 2 * 2.0)


def test_lengths_have_passes_of_their_own():
    cost = learned(seen(tokens=5, passes=3), seen(tokens=100, passes=40))
    by_length = cost.by_length(0, LEXEMES)
    assert by_length[4] / by_length[0] == pytest.approx(40 / 3)


@pytest.mark.parametrize("reason", [Reason.CANCELLED, Reason.SUPERSEDED, Reason.DEADLINE])
def test_an_answer_that_was_cut_short_teaches_what_a_pass_takes_but_not_how_many_there_are(reason):
    cost = learned(seen(passes=10), *[seen(passes=1, pass_ms=4.0, reason=reason)] * 5)
    assert cost.by_length(0, LEXEMES)[1] == pytest.approx(40)


def test_an_outlier_counts_for_nothing():
    cost = learned(*[seen()] * 6, seen(pass_ms=500.0), *[seen()] * 2)
    assert cost.by_length(0, LEXEMES)[1] == pytest.approx(20)


@pytest.mark.parametrize("factor", [0.5, 2.0, 10.0])
def test_a_device_that_changes_its_pace_is_known_again_within_thirty_answers(factor):
    draw = random.Random(1)
    noisy = [seen(pass_ms=2 * draw.lognormvariate(0, 0.1)) for _ in range(100)]
    cost = learned(*noisy, *[seen(pass_ms=2 * factor * draw.lognormvariate(0, 0.1)) for _ in range(30)])
    assert cost.by_length(0, LEXEMES)[1] == pytest.approx(20 * factor, rel=0.1)


def test_its_own_error_is_the_ratio_of_actual_to_predicted():
    cost = ModelCost()
    for actual in (1, 2, 2, 2, 4):
        cost.learn(seen(passes=10, pass_ms=actual, rows=0), predicted_ms=20.0)
    assert cost.error() == {"p10": pytest.approx(0.5), "p50": pytest.approx(1.0), "p90": pytest.approx(2.0)}
    assert ModelCost().error() == {}


def test_a_model_whose_middles_are_shorter_than_peoples_is_predicted_as_it_is():
    cost = learned(*[seen(rows=0)] * 5)
    assert cost.by_length(0, LEXEMES)[4] > 90  # a hundred lexemes
    for _ in range(200):
        cost.learn(seen(rows=0), predicted_ms=cost.by_length(0, LEXEMES)[4])  # and 20 tokens come, in 20 ms
    assert cost.by_length(0, LEXEMES)[4] < 60


def test_it_is_kept_between_runs(tmp_path):
    path = tmp_path / "deep" / "latency.json"
    first = LatencyModel(path)
    for _ in range(LENGTHS + 5):
        first.learn("ar/nano", seen(), predicted_ms=30.0)
    assert first.unsaved == LENGTHS + 5
    first.save()
    assert first.unsaved == 0
    second = LatencyModel(path)
    assert second.cost("ar/nano").dump() == first.cost("ar/nano").dump()
    assert not second.cost("dllm/nano").known
    assert [p.name for p in path.parent.iterdir()] == ["latency.json"]


def _saved(change):
    cost = learned(seen()).dump()
    data = {"schema": 1, "costs": {"ar/nano": cost}}
    change(data)
    return json.dumps(data)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        "null",
        _saved(lambda d: d.update(schema=2)),
        _saved(lambda d: d.update(costs=[])),
        _saved(lambda d: d["costs"].update(x=None)),
        _saved(lambda d: d["costs"]["ar/nano"].pop("passes")),
        _saved(lambda d: d["costs"]["ar/nano"].update(passes=[])),
        _saved(lambda d: d["costs"]["ar/nano"].update(row_ms=["x"])),
        _saved(lambda d: d["costs"]["ar/nano"].update(row_ms=[math.nan])),
    ],
)
def test_a_file_that_cannot_be_used_is_as_good_as_none(tmp_path, text):
    path = tmp_path / "latency.json"
    path.write_text(text)
    latency = LatencyModel(path)
    assert not latency.cost("ar/nano").known
    latency.learn("ar/nano", seen())
    latency.save()
    assert LatencyModel(path).cost("ar/nano").known


def test_a_folder_that_cannot_be_written_costs_only_the_memory(tmp_path):
    (tmp_path / "file").write_text("")
    latency = LatencyModel(tmp_path / "file" / "latency.json")
    latency.learn("ar/nano", seen())
    latency.save()
    assert latency.cost("ar/nano").known


def test_every_bucket_has_a_price():
    assert len(learned(seen()).by_length(10, LEXEMES)) == len(BUCKETS)
