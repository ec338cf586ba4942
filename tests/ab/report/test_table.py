"""The table of a comparison on terminals of several widths, and how numbers are written."""

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from fimserver.ab.analysis.analysis import analyse
from fimserver.ab.analysis.comparison_row import ComparisonRow
from fimserver.ab.report.table import described, figure, line_of, print_table, probability, progress, three
from fimserver.ab.schema import Arm
from tests.ab.sample import make_report

LINE = ComparisonRow(
    "exact", "exact", "share", "higher", "all", 300, 20, "difference", 0.3, 0.25, -0.05, -0.1, 0.004
)


@pytest.fixture(scope="module")
def found():
    report = make_report(120)
    return report, analyse(report)


def printed(found, width, *, terminal=False):
    file = io.StringIO()
    console = Console(
        file=file, width=width, force_terminal=terminal, markup=False, highlight=False, soft_wrap=True
    )
    print_table(console, *found)
    return file.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("width", [48, 60, 80, 104, 140])
def test_no_line_is_wider_than_the_terminal(width, terminal, found):
    text = re.sub(r"\x1b\[[\d;]*m", "", printed(found, width, terminal=terminal))
    assert max(map(len, text.splitlines())) <= width


@pytest.mark.parametrize(
    ("width", "columns"),
    [
        (48, ["A", "B", "B against A"]),
        (60, ["A", "B", "B against A", "95 % interval"]),
        (80, ["A", "B", "B against A", "95 % interval", "p"]),
        (110, ["n", "A", "B", "B against A", "95 % interval", "p"]),
        (140, ["n", "A", "B", "B against A", "95 % interval", "p", "p, Holm"]),
    ],
)
def test_columns_go_where_there_is_little_room(width, columns, found):
    head = next(line for line in printed(found, width).splitlines() if line.startswith("metric"))
    assert re.split(r" {2,}", head.strip()) == ["metric", *columns]


@pytest.mark.parametrize("width", [48, 80, 140])
def test_numbers_are_whole(width, found):
    text = printed(found, width)
    lines = [line_of(row) for row in found[1].comparisons if row.stratum == "all" and row.better]
    for line in lines:
        if line.a.strip("0. %"):
            assert re.search(rf" {re.escape(line.a)} +{re.escape(line.b)} +{re.escape(line.effect)}", text), (
                line
            )
        if width >= 80 and line.a.strip("0. %"):
            assert line.interval in text


def test_a_file_gets_plain_text(found):
    text = printed(found, 140)
    assert "\x1b" not in text
    assert not re.findall(r"[\u2500-\u257f]", text)


def test_it_says_what_was_found(found):
    report, analysis = found
    names = "A dllm (made-up-canvas) against B ar,drafter=none (made-up-drafted): 120 items of 20 groups"
    text = " ".join(printed((report.model_copy(update={"notes": ("stopped early",)}), analysis), 80).split())
    for sentence in (*analysis.headline, names, "Note: stopped early"):
        assert sentence in text


def test_markup_in_a_name_is_text(found):
    report, analysis = found
    arms = {side: arm.model_copy(update={"spec": "[red]x[/red] [/]"}) for side, arm in report.arms.items()}
    assert "A [red]x[/red] [/] (made-up-canvas) against" in printed(
        (report.model_copy(update={"arms": arms}), analysis), 140
    )


def test_an_empty_report_has_a_note_and_no_table():
    report = make_report(0, traces=0)
    text = printed((report, analyse(report)), 80)
    assert "Note: no item was compared" in text
    assert "metric" not in text


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        *(
            (None, ""),
            (float("nan"), ""),
            (float("inf"), ""),
            (0.0, "0"),
            (-0.0001, "0"),
            (0.668, "0.668"),
            (0.05, "0.050"),
        ),
        *(
            (1.0, "1.00"),
            (9.996, "10.0"),
            (42.13, "42.1"),
            (99.96, "100"),
            (127.4, "127"),
            (1234.5, "1,234"),
            (-8.653, "-8.65"),
        ),
    ],
)
def test_three_digits(value, wanted):
    assert three(value) == wanted


@pytest.mark.parametrize(
    ("value", "unit", "wanted"),
    [
        *(
            (12_345.0, "ms", "12.3 s"),
            (1016.2, "ms", "1,016 ms"),
            (3.14159, "ms", "3.14 ms"),
            (None, "ms", ""),
        ),
        *(
            (0.2933, "share", "29.3 %"),
            (0.0, "share", "0.0 %"),
            (float("nan"), "share", ""),
            (48.49, "keys", "48.5"),
        ),
    ],
)
def test_units(value, unit, wanted):
    assert figure(value, unit) == wanted


@pytest.mark.parametrize(
    ("p", "wanted"),
    [(None, ""), (float("nan"), ""), (1e-9, "<0.001"), (0.0123, "0.012"), (0.5, "0.50"), (1.0, "1.00")],
)
def test_probabilities(p, wanted):
    assert probability(p) == wanted


@pytest.mark.parametrize(
    ("change", "effect", "interval", "clear"),
    [
        ({}, "-5.0 pts", "[-10.0, 0.4]", False),
        ({"value": 0.05, "low": 0.01, "high": 0.1}, "+5.0 pts", "[1.0, 10.0]", True),
        ({"low": None, "high": None}, "-5.0 pts", "", False),
        (
            {"effect": "ratio", "unit": "ms", "value": 1.8, "low": 1.6, "high": 2.0},
            "1.80x",
            "[1.60, 2.00]",
            True,
        ),
        (
            {"effect": "ratio", "unit": "ms", "value": 1.0, "low": 0.9, "high": 1.1},
            "1.00x",
            "[0.90, 1.10]",
            False,
        ),
        ({"unit": "ms", "value": -31.7, "low": -44.7, "high": 5.63}, "-31.7 ms", "[-44.7, 5.6]", False),
        ({"value": None, "low": None, "high": None}, "", "", False),
    ],
)
def test_effects_and_their_bounds_have_as_many_digits(change, effect, interval, clear):
    line = line_of(replace(LINE, **change))
    assert (line.effect, line.interval, line.clear) == (effect, interval, clear)


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_counts_on_a_terminal_only(terminal):
    file = io.StringIO()
    with progress(Console(file=file, width=100, force_terminal=terminal)) as bar:
        task = bar.add_task("spans [x]", total=3)
        bar.update(task, completed=2)
    assert ("spans [x]" in file.getvalue()) == terminal
    assert ("2/3" in file.getvalue()) == terminal


@pytest.mark.parametrize(
    ("spec", "models", "wanted"),
    [
        ("dllm", {"dllm": "nano"}, "dllm (nano)"),
        ("auto", {"dllm": "nano", "ar": "nano"}, "auto (nano)"),
        ("auto", {"dllm": "dreamon-7b", "ar": "nano"}, "auto (dllm dreamon-7b, ar nano)"),
        ("http://box:8765", {}, "http://box:8765"),
    ],
)
def test_an_arm_is_named_with_its_models(spec, models, wanted):
    assert described(Arm(spec=spec, models=models)) == wanted


def test_the_first_line_names_both_models(found):
    report, analysis = found
    first = printed((report, analysis), 200).split("\n")[0]
    for arm in report.arms.values():
        assert arm.models
        assert described(arm) in first
