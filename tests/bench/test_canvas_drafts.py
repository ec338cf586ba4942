"""Accepted tokens by place: every arm writes what plain decoding writes, and the table adds up."""

import argparse
from dataclasses import replace

import pytest

from bench.canvas_drafts import PLACES, Row, make_arm, measure, read_arm, table
from bench.quality import Span
from tests.engine.forward.test_adapter import folder, runtime_of  # noqa: F401 - the fixture
from tests.engine.test_autoregressive import CODE


def a_row(arm, span, tokens, passes, accepted, *, one_line=True):
    places = (*accepted, *[0] * (PLACES - len(accepted)))
    return Row(arm, span, one_line, tokens, passes, places, 4 * passes, 1.0, 1.0 + 2 * passes, equal=True)


def test_arms_write_the_same_and_their_places_add_up(folder):  # noqa: F811
    runtime = runtime_of(folder)
    adapter = str(folder / "adapters" / "canvas.safetensors")
    spans = [Span(str(n), "block", "a.py", CODE[:n], CODE[n : n + 9], CODE[n + 9 :]) for n in (40, 90, 150)]
    arms = {
        "plain": make_arm(runtime, "none", "", 0.0),
        "ngram": make_arm(runtime, "ngram", "", 0.001),
        "ahead": make_arm(runtime, "lookahead", adapter, 0.001),
        "model": make_arm(runtime, "model:tiny", "", 0.001, lambda _: runtime_of(folder)),
    }
    rows = measure(arms, spans)
    assert {row.arm for row in rows} == set(arms)
    assert all(row.equal for row in rows)
    assert all(row.tokens == row.passes for row in rows if row.arm == "plain")
    assert all(row.tokens >= row.passes + sum(row.accepted) for row in rows)
    assert any(row.tokens > row.passes for row in rows if row.arm == "model")
    assert sum(row.rows for row in rows if row.arm == "ahead") > sum(
        row.passes for row in rows if row.arm == "ahead"
    )


def test_the_table_pairs_the_spans_that_all_arms_have():
    rows = [
        a_row("good", "1", 30, 10, (10, 10)),
        a_row("good", "2", 20, 10, (10,)),
        a_row("good", "3", 99, 1, (1,)),
        a_row("bad", "1", 10, 10, ()),
        a_row("bad", "2", 10, 10, ()),
    ]
    good, bad = table(rows).splitlines()[2:]
    assert good.startswith(
        "| one line (2) | good | 2.50 [2.00, 3.00] |  | 1.00 [1.00, 1.00] | 0.50 [0.00, 1.00] |"
    )
    assert bad.startswith(
        "| one line (2) | bad | 1.00 [1.00, 1.00] | -1.50 [-2.00, -1.00] | 0.00 [0.00, 0.00] |"
    )
    assert good.endswith("| 4.0 | 1.0 | 2.0 | 0.8 |  | all |")
    assert bad.endswith("| 1.00 [1.00, 1.00] | all |")


def test_the_table_says_where_a_text_is_another():
    rows = [a_row("a", "1", 3, 2, (1,), one_line=False), a_row("b", "1", 3, 2, (1,), one_line=False)]
    lines = table([rows[0], replace(rows[1], equal=False)]).splitlines()
    assert lines[-1].startswith("| several lines (1) | b |")
    assert lines[-1].endswith("| 0 equal |")


def test_an_arm_is_read_from_its_text():
    assert read_arm("shipped=ngram,lookahead,masks=4@a/b.safetensors") == (
        "shipped", "ngram,lookahead,masks=4", "a/b.safetensors"
    )  # fmt: skip
    assert read_arm("ngram=ngram") == ("ngram", "ngram", "")
    for wrong in ("ngram", "=ngram", "a=@b"):
        with pytest.raises(argparse.ArgumentTypeError, match="NAME=DRAFTERS"):
            read_arm(wrong)
