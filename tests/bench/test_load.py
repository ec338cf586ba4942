"""The load benchmark: what users request, how it is counted, and a small run on a real host."""

import itertools
import json
import sys
from collections import Counter

import pytest

from bench import load
from fimserver.ab.items.traces import read_trace
from fimserver.reasons import Reason
from fimserver.types import ROUTES


@pytest.fixture(scope="module")
def traces():
    return [load.asks(read_trace(path)) for path in sorted(load.TRACES.glob("*.jsonl"))]


def test_a_request_has_the_text_around_the_cursor_and_ends_at_the_next_key(traces):
    for trace in traces:
        assert len(trace) > 100
        for ask in trace:
            assert ask.until_s > ask.after_s
            assert ask.prefix
        assert all(one.until_s <= two.after_s for one, two in itertools.pairwise(trace))


def test_users_type_in_documents_of_their_own_for_as_long_as_asked(traces):
    (one, *_), (two, *_) = (list(load.share(traces[0], user, 5, 20.0)) for user in (0, 1))
    assert one.prefix != two.prefix
    for user in range(5):
        dues = [ask.after_s for ask in load.share(traces[0], user, 5, 20.0)]
        assert dues[0] == 0.0
        assert dues == sorted(dues)
        assert dues[-1] <= 20.0


def test_a_row_has_percentiles_and_rates():
    tally = load.Tally(asked=40, tokens=100, seconds=10.0, ms=[float(n) for n in range(1, 21)])
    row = tally.row()
    assert (row["in_time"], row["p50_ms"], row["p95_ms"], row["tokens_s"]) == (0.5, 11.0, 20.0, 10.0)
    assert load.Tally().row()["p95_ms"] == 0.0


def test_a_slower_typist_leaves_longer_between_the_same_keys(traces):
    slow = load.asks(read_trace(min(load.TRACES.glob("*.jsonl"))), 3.0)
    for usual, ask in zip(min(traces, key=lambda trace: -len(trace)), slow, strict=True):
        assert (ask.prefix, ask.suffix) == (usual.prefix, usual.suffix)
        assert ask.after_s == pytest.approx(3 * usual.after_s - 2 * 0.04)
    pauses = [(one.pause_s, other.pause_s) for one, other in zip(slow, traces[0], strict=True)]
    assert all(long > short for long, short in pauses[:-1])


def test_what_is_shown_at_rests_is_counted_by_itself():
    rows = [
        load.Tally(asked=40, rests=4, at_rests=at_rests, ms=[9.0] * at_rests).row() | {"users": n, "batch": 0}
        for n, at_rests in ((1, 4), (5, 4), (20, 1))
    ]
    assert [row["at_rests"] for row in rows] == [1.0, 1.0, 0.25]
    assert load.replicas(rows, 10_000, 0.1, 0.5, "at_rests") == 400


def test_replicas_follow_from_the_users_that_one_carries():
    rows = [
        {"users": users, "batch": 0, "in_time": share} for users, share in ((1, 0.5), (5, 0.48), (20, 0.2))
    ]
    assert load.replicas(rows, 10_000, 0.1, 0.5) == 400
    with pytest.raises(ValueError, match="one user"):
        load.replicas(rows[1:], 10_000, 0.1, 0.5)


@pytest.mark.parametrize("route", ROUTES)
def test_a_run_in_small_serves_both_arms(route, monkeypatch, tmp_path, capsys):
    out = tmp_path / "load.json"
    words = ["load", "--users", "2", "--seconds", "2", "--rounds", "1", "--route", route, "--out", str(out)]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setenv("FIMSERVER_DEVICE", "cpu")
    load.main()
    rows = json.loads(out.read_text())
    assert [row["batch"] for row in rows] == [1, 0]
    assert all(row["asked"] > 0 for row in rows)
    assert all(row["shown"] + sum(row["others"].values()) == row["asked"] for row in rows)
    assert not any(reason in {"no_host", "failed", "refused"} for row in rows for reason in row["others"])
    assert "| 2 | batched |" in capsys.readouterr().out


def test_the_table_names_reasons_as_users_see_them():
    tally = load.Tally(asked=3, others=Counter({Reason.OVERLOADED: 2, "given up": 1}))
    assert load.line(1, 0, tally).endswith("| {'overloaded': 2, 'given up': 1} |")
