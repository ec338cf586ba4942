"""The load program: what users ask, how it is counted, and a run in small on a real host."""

import itertools
import json
import sys

import pytest

from bench import load
from fimserver.ab.items.traces import read_trace


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


def test_replicas_follow_from_the_users_that_one_carries():
    rows = [
        {"users": users, "batch": 0, "in_time": share} for users, share in ((1, 0.5), (5, 0.48), (20, 0.2))
    ]
    assert load.replicas(rows, 10_000, 0.1, 0.5) == 400
    with pytest.raises(ValueError, match="one user"):
        load.replicas(rows[1:], 10_000, 0.1, 0.5)


def test_a_run_in_small_serves_both_arms(monkeypatch, tmp_path, capsys):
    out = tmp_path / "load.json"
    words = ["load", "--users", "2", "--seconds", "2", "--rounds", "1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setenv("FIMSERVER_DEVICE", "cpu")
    load.main()
    rows = json.loads(out.read_text())
    assert [row["batch"] for row in rows] == [1, 0]
    assert all(row["asked"] > 0 for row in rows)
    assert all(row["shown"] + sum(row["others"].values()) == row["asked"] for row in rows)
    assert not any(reason in {"no_host", "failed", "refused"} for row in rows for reason in row["others"])
    assert "| 2 | batched |" in capsys.readouterr().out
