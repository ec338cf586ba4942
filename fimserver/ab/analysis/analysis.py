"""Analysis of a report: every number of a comparison, over all items and by strata.

Signs: a difference is B minus A. A ratio above 1 is in B's favour: for times A over B ("B is 1.8x as fast"),
for speeds B over A. Intervals are 95 %, from a cluster bootstrap over ``PairedRow.group``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np

from fimserver.ab.analysis.comparison_row import ComparisonRow
from fimserver.ab.analysis.headline import headline
from fimserver.ab.analysis.measures import ALL, MEANS, TIMES, YES_OR_NO, Measure, pairs, strata
from fimserver.ab.analysis.statistics import (
    MIN_CLUSTERS,
    Bootstrap,
    Floats,
    Interval,
    bootstrap,
    geometric_ratio,
    holm,
    mean_difference,
    sign_test,
    unseen,
)
from fimserver.ab.analysis.value import (
    READING_MS,
    CurvePoint,
    Prediction,
    Regret,
    curve,
    estimate,
    number,
    predictions,
    regret,
    speeds,
)
from fimserver.ab.schema import PairedRow, Report

PERCENTILES = (50, 90, 95, 99)
BOUNDED = frozenset({50, 95})  # percentiles with intervals: too few rows are beyond the others
PRIMARY = frozenset({"first_ms_p95", "exact"})
FEW_GROUPS = 10

Draw = Callable[[tuple[str, ...]], Bootstrap]


@dataclass(frozen=True)
class Analysis:
    """All numbers of a report. ``dataclasses.asdict`` of it is JSON."""

    n: int  # analysed items: the cold ones if there are any
    groups: int
    comparisons: tuple[ComparisonRow, ...] = ()
    regret: Regret | None = None
    predictions: tuple[Prediction, ...] = ()
    curve: tuple[CurvePoint, ...] = ()
    headline: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def analyse(report: Report, seed: int = 0) -> Analysis:
    """Analyse a report, deterministically for a seed. A report without rows gets only a note."""
    if not report.rows:
        return Analysis(0, 0, notes=("no item was compared",))
    draw: Draw = lru_cache(maxsize=2)(partial(bootstrap, seed=seed))  # most columns use all rows
    found = [c for stratum, rows in strata(report.rows) for c in _compare(stratum, rows, draw)]
    comparisons = _corrected(found)
    rows = dict(strata(report.rows))[ALL]
    groups = tuple(row.group for row in rows)
    return Analysis(
        len(rows),
        len(set(groups)),
        comparisons,
        regret(rows, draw(groups)),
        predictions(rows),
        curve(rows),
        headline(comparisons),
        tuple(_notes(report, rows, comparisons)),
    )


def _compare(stratum: str, rows: Sequence[PairedRow], draw: Draw) -> Iterator[ComparisonRow]:
    for measure in TIMES:
        yield from _times(measure, stratum, rows, draw)
    for measure in MEANS:
        yield from _means(measure, stratum, rows, draw)
    yield from _speeds(stratum, rows, draw)


def _times(measure: Measure, stratum: str, rows: Sequence[PairedRow], draw: Draw) -> Iterator[ComparisonRow]:
    """Yield the geometric mean ratio and percentiles of a time."""
    groups, a, b = pairs(measure, rows)
    if not groups:
        return
    drawn = draw(groups)
    metric = measure.metric
    label = measure.label
    line = ComparisonRow(
        metric, label, measure.unit, measure.better, stratum, len(groups), drawn.groups.count, "difference"
    )
    middle = replace(line, metric=f"{metric}_ratio", label=f"{label}, geometric mean", effect="ratio")
    middle = replace(middle, a=float(np.exp(np.log(a).mean())), b=float(np.exp(np.log(b).mean())))
    yield _valued(
        replace(middle, p=sign_test(b - a) if stratum == ALL else None), geometric_ratio(a, b, drawn)
    )
    of_a, of_b = (drawn.quantiles(values, [share / 100 for share in PERCENTILES]) for values in (a, b))
    for place, share in enumerate(PERCENTILES):
        named = replace(line, metric=f"{metric}_p{share}", label=f"{label}, p{share}")
        named = replace(named, primary=stratum == ALL and named.metric in PRIMARY)
        full = _drawn(named, drawn, of_a[:, place], of_b[:, place])
        yield full if share in BOUNDED else replace(named, a=full.a, b=full.b, value=full.value)


def _means(measure: Measure, stratum: str, rows: Sequence[PairedRow], draw: Draw) -> Iterator[ComparisonRow]:
    groups, a, b = pairs(measure, rows)
    if not groups:
        return
    drawn = draw(groups)
    found = mean_difference(a, b, drawn)
    if measure.metric in YES_OR_NO and (a == b).all():
        found = Interval(0.0, -unseen(drawn.groups.count), unseen(drawn.groups.count))
    line = ComparisonRow(
        *measure[:4], stratum, len(groups), drawn.groups.count, "difference", float(a.mean()), float(b.mean())
    )
    line = replace(line, p=sign_test(b - a) if stratum == ALL and measure.tested else None)
    yield _valued(replace(line, primary=stratum == ALL and measure.metric in PRIMARY), found)


def _speeds(stratum: str, rows: Sequence[PairedRow], draw: Draw) -> Iterator[ComparisonRow]:
    drawn = draw(tuple(row.group for row in rows))
    for reading_ms in READING_MS:
        metric = f"chars_per_s_{reading_ms}"
        label = f"accepted characters per second, {reading_ms} ms of reading"
        line = ComparisonRow(
            metric, label, "characters/s", "higher", stratum, len(rows), drawn.groups.count, "ratio"
        )
        yield _drawn(line, drawn, speeds(rows, "a", reading_ms, drawn), speeds(rows, "b", reading_ms, drawn))


def _drawn(line: ComparisonRow, drawn: Bootstrap, a: Floats, b: Floats) -> ComparisonRow:
    """Fill in both arms' estimates and the effect from their series over the draws (1 + draws,)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        both = drawn.interval(b - a if line.effect == "difference" else b / a)
    of_a = estimate(drawn, a)
    of_b = estimate(drawn, b)
    line = replace(
        line, a=of_a.value, a_low=of_a.low, a_high=of_a.high, b=of_b.value, b_low=of_b.low, b_high=of_b.high
    )
    return _valued(line, both)


def _valued(line: ComparisonRow, found: Interval) -> ComparisonRow:
    return replace(line, value=number(found.value), low=number(found.low), high=number(found.high))


def _corrected(comparisons: Sequence[ComparisonRow]) -> tuple[ComparisonRow, ...]:
    corrected = iter(holm([line.p for line in comparisons if line.p is not None]))
    return tuple(line if line.p is None else replace(line, p_holm=next(corrected)) for line in comparisons)


def _notes(report: Report, rows: Sequence[PairedRow], comparisons: Sequence[ComparisonRow]) -> Iterator[str]:
    if not report.finished:
        yield "the run was interrupted: these are the items that were done"
    if all(row.warm for row in rows):
        yield "all items ran with the caches of the item before"
    groups = len({row.group for row in rows})
    if groups < MIN_CLUSTERS:
        yield f"{groups} groups are too few for intervals: {MIN_CLUSTERS} are needed"
    elif groups < FEW_GROUPS:
        yield f"intervals of {groups} groups are rough"
    whole = {line.metric: line for line in comparisons if line.stratum == ALL}
    for measure in TIMES:
        line = whole.get(f"{measure.metric}_ratio")
        if line is None or line.n < len(rows):
            yield (
                f"times of {measure.label} are of {line.n if line else 0} of {len(rows)} items: those that"
                " both arms answered"
            )
