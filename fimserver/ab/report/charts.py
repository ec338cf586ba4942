"""Charts of a comparison, as SVG in the page's own colours.

matplotlib draws with four stand-in colours; each becomes a CSS variable, so that one picture is right in
light and dark.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import matplotlib as mpl
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from fimserver.ab.analysis.measures import answered, outcome
from fimserver.ab.analysis.value import CurvePoint
from fimserver.ab.schema import SIDES, Mark, PairedRow, Report, Result, Side, Timeline

# Colours that nothing else uses, and the variables of the page that replace them.
_INK = "#010203"
_GRID = "#010204"
_A = "#010205"
_B = "#010206"
_VARIABLES = {_INK: "var(--ink)", _GRID: "var(--grid)", _A: "var(--a)", _B: "var(--b)"}
_COLOURS: Mapping[Side, str] = {"a": _A, "b": _B}
_DASHES: Mapping[Side, str] = {"a": "-", "b": "--"}
_MARKERS: Mapping[Side, str] = {"a": "o", "b": "s"}

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fimserver",
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that a layout is the same everywhere
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _INK,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "xtick.color": _GRID,
    "ytick.color": _GRID,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "xtick.minor.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "lines.linewidth": 1.8,
    "figure.facecolor": "none",
    "axes.unicode_minus": False,
    "axes.titlesize": 10.5,
    "path.simplify": False,
    "text.parse_math": False,  # a dollar sign in a name is one
}
_WIDE = 10.4
_NARROW = 4.6  # inches of 72 units: a column of the page is as wide as this is in units, or less
_STEPS = 400  # points of a curve are enough for the eye
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
    """One line of a forest plot. ``strong``: it is the whole, not a part."""

    label: str
    effect: float
    low: float
    high: float
    strong: bool = False


def ecdf(report: Report, labels: Mapping[Side, str]) -> Markup | None:
    """Share of items with a first suggestion, and with an answer, within a time.

    Those that never had one count as never.
    """
    panels = ("first shown", "whole answer")
    values = {(panel, side): np.sort(_times(report, panel, side)) for panel in panels for side in SIDES}
    if not any(len(found) for found in values.values()):
        return None
    with _drawing(_NARROW, 5.0) as figure:
        top, bottom = figure.subplots(2, 1, sharex=True)
        for axes, panel in ((top, panels[0]), (bottom, panels[1])):
            for side in SIDES:
                _steps(axes, values[panel, side], len(report.rows), side, labels[side])
            axes.set(title=panel, ylim=(0, 1.02), ylabel="share of items")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:.0%}"))
        _log_ms(top)
        bottom.set_xlabel("milliseconds, log scale")
        bottom.legend(loc="lower right")
        return _svg(
            figure, "ecdf", "Share of items done within a time, first shown and whole answer, for both arms"
        )


def scatter(report: Report, labels: Mapping[Side, str]) -> Markup | None:
    """Each item's answer times, A across and B up, both log. Below the diagonal B was faster."""
    points = [(row, row.a.answer_ms, row.b.answer_ms) for row in report.rows]
    points = [(row, x, y) for row, x, y in points if _positive(x) and _positive(y)]
    if not points:
        return None
    points = points[:: math.ceil(len(points) / _DOTS)]
    with _drawing(_NARROW, 5.0) as figure:
        axes = figure.subplots()
        for label, marker, colour, wanted in (
            ("both exact, or neither", ".", _INK, (False, True)),
            ("only A exact", _MARKERS["a"], _A, (True, False)),
            ("only B exact", _MARKERS["b"], _B, (False, False)),
        ):
            chosen = [(x, y) for row, x, y in points if _agreement(row) == wanted]
            if chosen:
                across, up = zip(*chosen, strict=True)
                axes.scatter(across, up, s=18, marker=marker, c=colour, alpha=0.65, linewidths=0, label=label)
        low = min(min(x, y) for _, x, y in points) / 1.2
        high = max(max(x, y) for _, x, y in points) * 1.2
        axes.plot((low, high), (low, high), color=_INK, linewidth=0.9, label="as fast as each other")
        axes.set(xlim=(low, high), ylim=(low, high), xscale="log", yscale="log")
        axes.set(xlabel=f"A: {labels['a']}, ms to the answer", ylabel=f"B: {labels['b']}, ms to the answer")
        axes.set_aspect("equal")
        _log_ms(axes, both=True)
        figure.legend(loc="outside upper left", ncols=2, markerscale=1.7)
        return _svg(
            figure, "scatter", "Answer time of each item, A across and B up; below the diagonal B was faster"
        )


def forest(name: str, title: str, axis: str, bars: Sequence[Bar], *, ratio: bool) -> Markup | None:
    """Differences with their intervals, one line each; about 1 on a log axis for a ratio, else about 0."""
    drawn = [bar for bar in bars if math.isfinite(bar.effect) and (not ratio or bar.effect > 0)]
    if not drawn:
        return None
    with _drawing(_NARROW, 0.8 + 0.27 * len(drawn)) as figure:
        axes = figure.subplots()
        axes.axvline(1 if ratio else 0, color=_INK, linewidth=0.9)
        for place, bar in enumerate(drawn):
            low, high = (
                side if math.isfinite(side) and (not ratio or side > 0) else bar.effect
                for side in (bar.low, bar.high)
            )
            axes.plot((low, high), (place, place), color=_INK, linewidth=2.4 if bar.strong else 1.4)
            axes.plot(
                bar.effect,
                place,
                color=_INK,
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
        return _svg(figure, name, title)


def value_curve(points: Sequence[CurvePoint], labels: Mapping[Side, str]) -> Markup | None:
    """Saved characters per second of both arms if every answer came so much later.

    A mark where they are now.
    """
    lines = {
        side: [(point.added_ms, value) for point in points if (value := getattr(point, side)) is not None]
        for side in SIDES
    }
    if not any(lines.values()):
        return None
    with _drawing(_NARROW, 3.5) as figure:
        axes = figure.subplots()
        for side, found in lines.items():
            if found:
                label = f"{side.upper()}: {labels[side]}"
                axes.plot(
                    *zip(*found, strict=True), color=_COLOURS[side], linestyle=_DASHES[side], label=label
                )
                axes.plot(*found[0], color=_COLOURS[side], marker=_MARKERS[side], markersize=8)
        axes.set(xlabel="milliseconds that every answer comes later", ylabel="saved characters per second")
        axes.set_ylim(bottom=min(0.0, *axes.get_ylim()))
        axes.legend(loc="upper right")
        return _svg(
            figure,
            "value",
            "What latency is worth: saved characters per second of both arms by added milliseconds",
        )


def timeline(timelines: Sequence[Timeline], labels: Mapping[Side, str]) -> tuple[str, Markup] | None:
    """The longest trace's name, and what happened in its first 30 s, both sides on one time axis."""
    length = {
        line.group: max((mark.at_ms for mark in line.marks), default=0.0) for line in timelines if line.marks
    }
    if not length:
        return None
    group = max(length, key=lambda name: (length[name], name))
    until = min(_TRACE_S, length[group] / 1000 + 0.2)
    found = {line.side: line.marks for line in timelines if line.group == group}
    with _drawing(_WIDE, 4.2) as figure:
        for axes, side in zip(figure.subplots(2, 1, sharex=True), SIDES, strict=True):
            for lane, what in enumerate(_LANES):
                _lane(axes, found.get(side, ()), what, lane, side, until)
            axes.set(xlim=(-0.1, until), ylim=(len(_LANES) - 0.5, -0.5))
            axes.set_yticks(range(len(_LANES)), _LANES)
            axes.set_title(f"{side.upper()}: {labels[side]}", loc="left")
            axes.grid(visible=False, axis="y")
        axes.set_xlabel("seconds")
        return group, _svg(
            figure,
            "timeline",
            "Keys, requests, answers and suggestions shown and accepted over time, for both arms",
        )


def _lane(axes: Axes, marks: Iterable[Mark], what: str, lane: int, side: Side, until: float) -> None:
    times = [mark.at_ms / 1000 for mark in marks if mark.what == what and mark.at_ms / 1000 <= until]
    colour, width = (_INK, 0.8) if what in {"key", "request"} else (_COLOURS[side], 1.6)
    upright = (
        lane - 0.36,
        lane + 0.36,
        np.nan,
    )  # one path with gaps is an eighth of the text of one path each
    axes.plot(
        np.repeat(times, 3),
        np.tile(upright, len(times)),
        color=colour,
        linewidth=width,
        solid_capstyle="butt",
    )


def _steps(axes: Axes, values: np.ndarray, total: int, side: Side, label: str) -> None:
    """One curve of shares. ``values`` (n,) are sorted, ``total`` counts the ones that never came as well."""
    if len(values) == 0:
        return
    at = np.unique(np.linspace(0, len(values) - 1, min(_STEPS, len(values))).round().astype(int))
    (line,) = axes.step(values[at], (at + 1) / total, where="post", label=f"{side.upper()}: {label}")
    line.set(color=_COLOURS[side], linestyle=_DASHES[side])


def _times(report: Report, panel: str, side: Side) -> list[float]:
    results: Iterator[Result] = (getattr(row, side) for row in report.rows)
    if panel == "first shown":
        times = [result.first_ms for result in results if outcome(result) == "shown"]
    else:
        times = [result.answer_ms for result in results if answered(result)]
    return [time for time in times if _positive(time)]


def _agreement(row: PairedRow) -> tuple[bool, bool]:
    """Whether only A was exact, and whether both were as exact as each other."""
    return row.a.exact and not row.b.exact, row.a.exact == row.b.exact


def _positive(value: float) -> bool:
    return math.isfinite(value) and value > 0


def _log_ms(axes: Axes, *, both: bool = False) -> None:
    """1, 2, 5 of each decade, in plain figures."""
    for axis in (axes.xaxis, axes.yaxis)[: 1 + both]:
        axis.axes.set_xscale("log") if axis is axes.xaxis else axis.axes.set_yscale("log")
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
        axis.set_minor_formatter(NullFormatter())


@contextmanager
def _drawing(width: float, height: float) -> Iterator[Figure]:
    with mpl.rc_context(_STYLE):
        yield Figure(figsize=(width, height), layout="constrained")


def _svg(figure: Figure, name: str, title: str) -> Markup:
    """The figure as one inline SVG.

    Its ids carry ``name``, since matplotlib gives the same ones to every figure.
    """
    file = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+")  # the reader's fonts draw the text, not matplotlib's
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = re.sub(
        r"<\?xml.*?\?>|<!DOCTYPE.*?>|<!--.*?-->|<metadata>.*?</metadata>|<defs>\s*<style.*?</defs>",
        "",
        file.getvalue(),
        flags=re.DOTALL,
    )
    text = re.sub(r'\b(id="|href="#)', rf"\g<1>{name}-", text).replace("url(#", f"url(#{name}-")
    text = re.sub(r"\n\s*", "\n", text).strip()
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    opening, _, body = text.partition(">")
    box = re.search(r'viewBox="[^"]*"', opening)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {box[0] if box else ""}'
    label = f'role="img" aria-labelledby="{name}-title"><title id="{name}-title">{escape(title)}</title>'
    return Markup(f"{head} {label}{body}")  # noqa: S704 - matplotlib escapes the texts, and ours is escaped here
