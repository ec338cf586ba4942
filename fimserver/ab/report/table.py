"""Table of a comparison on a terminal, and the format of its numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from fimserver.ab.analysis.analysis import Analysis
from fimserver.ab.analysis.comparison_row import ComparisonRow
from fimserver.ab.analysis.measures import ALL
from fimserver.ab.schema import Arm, Report

LEGEND = (
    "Differences are B minus A. A ratio above 1 is in B's favour: how many times as fast, or as much in the"
    " same time. Points (pts) are of 100 %."
)
_UNITS = {"ms": " ms", "share": " %"}  # written after a number; other units are in the label
_MANY = {"keys", "characters", "tokens", "passes", "characters/s"}
_ENDINGS = {"late", "cancelled", "empty", "error", "withheld", "tokens"}
_COLUMNS = (
    ("n", 104),
    ("A", 0),
    ("B", 0),
    ("B against A", 0),
    ("95 % interval", 58),
    ("p", 70),
    ("p, Holm", 118),
)


class TableLine(NamedTuple):
    """One formatted line of a table. Empty: not available."""

    label: str
    n: str
    a: str
    b: str
    effect: str
    interval: str
    p: str
    p_holm: str
    primary: bool
    clear: bool  # the interval excludes no difference


def three(value: float | None, scale: float | None = None) -> str:
    """Format a number with three significant digits, without decimals from 100 on; empty for NaN, ``None``.

    ``scale``: use as many decimals as this number would have, so that related numbers match.
    """
    if value is None or not math.isfinite(value):
        return ""
    size = float(f"{abs(value if scale is None else scale):.3g}")
    digits = 2 - math.floor(math.log10(size)) if size else 0
    text = f"{value:,.{min(3, max(0, digits))}f}"
    return text if any(digit in text for digit in "123456789") else "0"


def figure(value: float | None, unit: str) -> str:
    """Format a number with its unit: shares in percent, long times in seconds."""
    if value is None or not math.isfinite(value):
        return ""
    if unit == "share":
        return f"{100 * value:.1f} %"
    if unit == "ms" and abs(value) >= 10_000:
        return f"{value / 1000:,.1f} s"
    return three(value) + _UNITS.get(unit, "")


def probability(p: float | None) -> str:
    """Format a p value; ``<0.001`` below that."""
    if p is None or not math.isfinite(p):
        return ""
    return "<0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def line_of(row: ComparisonRow, label: str = "") -> TableLine:
    """Format a comparison row, under its own label or another."""
    unit = (
        f", {row.unit}"
        if row.unit in _MANY and row.unit not in row.label and row.unit != "characters/s"
        else ""
    )
    return TableLine(
        label or row.label.replace("characters per second", "characters/s") + unit,
        f"{row.n:,}",
        figure(row.a, row.unit),
        figure(row.b, row.unit),
        _effect(row),
        _interval(row),
        probability(row.p),
        probability(row.p_holm),
        row.primary,
        clear(row),
    )


def clear(row: ComparisonRow) -> bool:
    """Whether the interval excludes no difference."""
    same = 1.0 if row.effect == "ratio" else 0.0
    return row.low is not None and row.high is not None and not row.low <= same <= row.high


def _effect(row: ComparisonRow) -> str:
    number = _scaled(row, row.value)
    if not number or row.effect == "ratio":
        return f"{number}x" if number else ""
    signed = number if number.startswith("-") or number == "0" else f"+{number}"
    return signed + {"share": " pts", "ms": " ms"}.get(row.unit, "")


def _interval(row: ComparisonRow) -> str:
    low = _scaled(row, row.low)
    high = _scaled(row, row.high)
    return f"[{low}, {high}]" if low and high else ""


def _scaled(row: ComparisonRow, value: float | None) -> str:
    """Format the effect or one of its bounds, all with the same number of digits."""
    if row.unit == "share" and row.effect == "difference":
        return "" if value is None else three(100 * value, 10)
    found = [abs(each) for each in (row.value, row.low, row.high) if each is not None and math.isfinite(each)]
    return three(value, max(found, default=0.0))


def print_table(console: Console, report: Report, analysis: Analysis) -> None:
    """Print the headline and the table of all items.

    A narrow terminal gets fewer columns; numbers are never wrapped. A file gets no frame.
    """
    specs = " against ".join(f"{side.upper()} {described(arm)}" for side, arm in report.arms.items())
    _say(console, f"{specs}: {analysis.n:,} items of {analysis.groups:,} groups", bold=True)
    for sentence in analysis.headline:
        _say(console, sentence)
    rows = [row for row in analysis.comparisons if row.stratum == ALL and not _silent(row)]
    if rows:
        console.print(_table(console, [line_of(row) for row in rows]), soft_wrap=False)
        _say(console, LEGEND)
    for note in dict.fromkeys((*report.notes, *analysis.notes)):
        _say(console, f"Note: {note}")


def described(arm: Arm) -> str:
    """Return an arm's specification and its models: ``dllm (nano)``, ``auto (dllm dreamon-7b, ar nano)``."""
    models = [name for name in arm.models.values() if name]
    if not models:
        return arm.spec
    if len(set(models)) == 1:
        return f"{arm.spec} ({models[0]})"
    return f"{arm.spec} ({', '.join(f'{route} {name}' for route, name in arm.models.items())})"


def _silent(row: ComparisonRow) -> bool:
    """Whether an outcome happened on neither side."""
    return row.metric in _ENDINGS and not row.a and not row.b


def _say(console: Console, text: str, *, bold: bool = False) -> None:
    console.print(Text(text, "bold" if bold else ""), soft_wrap=False)


def _table(console: Console, lines: Iterable[TableLine]) -> Table:
    frame = box.SIMPLE_HEAD if console.is_terminal and console.width >= 100 else None
    table = Table(
        box=frame, padding=(0, 1), pad_edge=False, header_style="bold" if console.is_terminal else ""
    )
    table.add_column("metric", overflow="fold")
    shown = [(name, console.width >= width) for name, width in _COLUMNS]
    for name, wanted in shown:
        if wanted:
            table.add_column(name, justify="right", no_wrap=True)
    for line in lines:
        cells = (line.n, line.a, line.b, line.effect, line.interval, line.p, line.p_holm)
        kept = [cell for cell, (_, wanted) in zip(cells, shown, strict=True) if wanted]
        table.add_row(*(Text(cell) for cell in (line.label, *kept)), style="bold" if line.clear else "")
    return table


def progress(console: Console) -> Progress:
    """Return a progress bar with count, elapsed and remaining time; silent without a terminal."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
