"""The benchmark of the canvas cache at toy size: its tables have a row for each cache, and figures that agree."""

import re

from bench.canvas_cache import COMPARED, TIMED, Sizes, time_report, tokens_report
from tests.tiny import make_checkpoint
from tests.training.test_rows import CODE


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_times_are_of_the_same_middles_in_turn():
    lines = list(time_report(Sizes(layers=1, hidden=64, context=48, canvas=4), rounds=3))
    table = [cells(line) for line in lines if line.startswith("| `")]
    assert [row[0].strip("`") for row in table] == list(TIMED)
    assert table[0][2] == "1.00x [1.00, 1.00]"
    none, dual, checked = (int(row[3]) for row in table)
    assert none == 4 * 52
    assert dual < checked < none
    assert "3 rounds" in lines[0]


def test_tokens_are_compared_with_the_exact_canvas_and_with_the_truth(tmp_path):
    folder = make_checkpoint(tmp_path / "tiny", "qwen3", seed=5)
    lines = list(tokens_report(folder, [CODE], count=3, schedule="entropy"))
    table = [cells(line) for line in lines if line.startswith("| `")]
    assert [row[0].strip("`") for row in table] == list(COMPARED)
    for row in table:
        share = float(re.match(r"[\d.]+", row[1])[0])
        assert 0 <= share <= 100
        assert row[2].endswith("of 3")
        assert len(row[5].split(",")) == 4
    fewer = {row[0].strip("`"): float(row[6]) for row in table}
    assert fewer["dual:2"] < fewer["dual:1000,share=1000"]
