"""Charts of a comparison, as SVG in the colours of the page.

matplotlib draws with four placeholder colours; each is replaced by a CSS variable, so that one picture works
in light and dark mode.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from fimserver.ab.analysis.measures import answered, outcome
from fimserver.ab.analysis.value import CurvePoint
from fimserver.ab.report.drawing import (
    _A,
    _B,
    COLOURS,
    DASHES,
    INK,
    MARKERS,
    NARROW,
    WIDE,
    drawing,
    log_ms,
    svg,
)
from fimserver.ab.schema import SIDES, Mark, PairedRow, Report, Result, Side, Timeline

_STEPS = 400  # maximum points of a curve
_DOTS = 1500
_TRACE_S = 30.0
_LANES: tuple[Literal["key", "request", "answer", "shown", "accept"], ...] = (
    "key",
    "request",
    "answer",
    "shown",
    "accept",
)


class Bar(NamedTuple):
    """One line of a forest plot. ``strong``: all items, not a stratum."""

    label: str
    effect: float
    low: float
    high: float
    strong: bool = False


def ecdf(report: Report, labels: Mapping[Side, str]) -> Markup | None:
    """Share of items with a first suggestion, and with an answer, within a time; others never finish."""
    panels = ("first shown", "whole answer")
    values = {(panel, side): np.sort(_times(report, panel, side)) for panel in panels for side in SIDES}
    if not any(len(found) for found in values.values()):
        return None
    with drawing(NARROW, 5.0) as figure:
        top, bottom = figure.subplots(2, 1, sharex=True)
        for axes, panel in ((top, panels[0]), (bottom, panels[1])):
            for side in SIDES:
                _steps(axes, values[panel, side], len(report.rows), side, labels[side])
            axes.set(title=panel, ylim=(0, 1.02), ylabel="share of items")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:.0%}"))
        log_ms(top)
        bottom.set_xlabel("milliseconds, log scale")
        bottom.legend(loc="lower right")
        return svg(
            figure, "ecdf", "Share of items done within a time, first shown and whole answer, for both arms"
        )


def scatter(report: Report, labels: Mapping[Side, str]) -> Markup | None:
    """Answer times of each item, A on x and B on y, both log. Below the diagonal B was faster."""
    points = [(row, row.a.answer_ms, row.b.answer_ms) for row in report.rows]
    points = [(row, x, y) for row, x, y in points if _positive(x) and _positive(y)]
    if not points:
        return None
    points = points[:: math.ceil(len(points) / _DOTS)]
    with drawing(NARROW, 5.0) as figure:
        axes = figure.subplots()
        for label, marker, colour, wanted in (
            ("both exact, or neither", ".", INK, (False, True)),
            ("only A exact", MARKERS["a"], _A, (True, False)),
            ("only B exact", MARKERS["b"], _B, (False, False)),
        ):
            chosen = [(x, y) for row, x, y in points if _agreement(row) == wanted]
            if chosen:
                across, up = zip(*chosen, strict=True)
                axes.scatter(across, up, s=18, marker=marker, c=colour, alpha=0.65, linewidths=0, label=label)
        low = min(min(x, y) for _, x, y in points) / 1.2
        high = max(max(x, y) for _, x, y in points) * 1.2
        axes.plot((low, high), (low, high), color=INK, linewidth=0.9, label="as fast as each other")
        axes.set(xlim=(low, high), ylim=(low, high), xscale="log", yscale="log")
        axes.set(xlabel=f"A: {labels['a']}, ms to the answer", ylabel=f"B: {labels['b']}, ms to the answer")
        axes.set_aspect("equal")
        log_ms(axes, both=True)
        figure.legend(loc="outside upper left", ncols=2, markerscale=1.7)
        return svg(
            figure, "scatter", "Answer time of each item, A across and B up; below the diagonal B was faster"
        )


def forest(name: str, title: str, axis: str, bars: Sequence[Bar], *, ratio: bool) -> Markup | None:
    """Effects with their intervals, one line each; a ratio is centred at 1 on a log axis, others at 0."""
    drawn = [bar for bar in bars if math.isfinite(bar.effect) and (not ratio or bar.effect > 0)]
    if not drawn:
        return None
    with drawing(NARROW, 0.8 + 0.27 * len(drawn)) as figure:
        axes = figure.subplots()
        axes.axvline(1 if ratio else 0, color=INK, linewidth=0.9)
        for place, bar in enumerate(drawn):
            low, high = (
                side if math.isfinite(side) and (not ratio or side > 0) else bar.effect
                for side in (bar.low, bar.high)
            )
            axes.plot((low, high), (place, place), color=INK, linewidth=2.4 if bar.strong else 1.4)
            axes.plot(
                bar.effect,
                place,
                color=INK,
                marker="D" if bar.strong else "o",
                markersize=6 if bar.strong else 4.5,
            )
        axes.set(xlabel=axis, ylim=(len(drawn) - 0.5, -0.5))
        axes.set_yticks(range(len(drawn)), [bar.label for bar in drawn])
        axes.grid(visible=False, axis="y")
        if ratio:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7), numticks=8))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
            axes.xaxis.set_minor_formatter(NullFormatter())
        return svg(figure, name, title)


def value_curve(points: Sequence[CurvePoint], labels: Mapping[Side, str]) -> Markup | None:
    """Saved characters per second of both arms by added latency; a marker shows the present value."""
    lines = {
        side: [(point.added_ms, value) for point in points if (value := getattr(point, side)) is not None]
        for side in SIDES
    }
    if not any(lines.values()):
        return None
    with drawing(NARROW, 3.5) as figure:
        axes = figure.subplots()
        for side, found in lines.items():
            if found:
                label = f"{side.upper()}: {labels[side]}"
                axes.plot(*zip(*found, strict=True), color=COLOURS[side], linestyle=DASHES[side], label=label)
                axes.plot(*found[0], color=COLOURS[side], marker=MARKERS[side], markersize=8)
        axes.set(xlabel="milliseconds that every answer comes later", ylabel="saved characters per second")
        axes.set_ylim(bottom=min(0.0, *axes.get_ylim()))
        axes.legend(loc="upper right")
        return svg(
            figure,
            "value",
            "What latency is worth: saved characters per second of both arms by added milliseconds",
        )


def timeline(timelines: Sequence[Timeline], labels: Mapping[Side, str]) -> tuple[str, Markup] | None:
    """Name of the longest trace, and a chart of its first 30 s with both arms on one time axis."""
    length = {
        line.group: max((mark.at_ms for mark in line.marks), default=0.0) for line in timelines if line.marks
    }
    if not length:
        return None
    group = max(length, key=lambda name: (length[name], name))
    until = min(_TRACE_S, length[group] / 1000 + 0.2)
    found = {line.side: line.marks for line in timelines if line.group == group}
    with drawing(WIDE, 4.2) as figure:
        for axes, side in zip(figure.subplots(2, 1, sharex=True), SIDES, strict=True):
            for lane, what in enumerate(_LANES):
                _lane(axes, found.get(side, ()), what, lane, side, until)
            axes.set(xlim=(-0.1, until), ylim=(len(_LANES) - 0.5, -0.5))
            axes.set_yticks(range(len(_LANES)), _LANES)
            axes.set_title(f"{side.upper()}: {labels[side]}", loc="left")
            axes.grid(visible=False, axis="y")
        axes.set_xlabel("seconds")
        return group, svg(
            figure,
            "timeline",
            "Keys, requests, answers and suggestions shown and accepted over time, for both arms",
        )


def _lane(axes: Axes, marks: Iterable[Mark], what: str, lane: int, side: Side, until: float) -> None:
    times = [mark.at_ms / 1000 for mark in marks if mark.what == what and mark.at_ms / 1000 <= until]
    colour, width = (INK, 0.8) if what in {"key", "request"} else (COLOURS[side], 1.6)
    upright = (lane - 0.36, lane + 0.36, np.nan)  # one path with gaps is an eighth of the size of many paths
    axes.plot(
        np.repeat(times, 3),
        np.tile(upright, len(times)),
        color=colour,
        linewidth=width,
        solid_capstyle="butt",
    )


def _steps(axes: Axes, values: np.ndarray, total: int, side: Side, label: str) -> None:
    """Draw one curve of shares. ``values`` (n,) are sorted; ``total`` includes items without a time."""
    if len(values) == 0:
        return
    at = np.unique(np.linspace(0, len(values) - 1, min(_STEPS, len(values))).round().astype(int))
    (line,) = axes.step(values[at], (at + 1) / total, where="post", label=f"{side.upper()}: {label}")
    line.set(color=COLOURS[side], linestyle=DASHES[side])


def _times(report: Report, panel: str, side: Side) -> list[float]:
    results: Iterator[Result] = (getattr(row, side) for row in report.rows)
    if panel == "first shown":
        times = [result.first_ms for result in results if outcome(result) == "shown"]
    else:
        times = [result.answer_ms for result in results if answered(result)]
    return [time for time in times if _positive(time)]


def _agreement(row: PairedRow) -> tuple[bool, bool]:
    """Whether only A was exact, and whether both arms agree."""
    return row.a.exact and not row.b.exact, row.a.exact == row.b.exact


def _positive(value: float) -> bool:
    return math.isfinite(value) and value > 0
