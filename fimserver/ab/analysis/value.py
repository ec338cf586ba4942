"""Value of an arm's answers relative to their time: speed, regret, quality of predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fimserver.ab.analysis.measures import answered, outcome
from fimserver.ab.analysis.statistics import Bootstrap, Floats
from fimserver.ab.schema import SIDES, PairedRow, Side
from fimserver.types import ROUTES, Route

READING_MS = (0, 300)  # assumed times to read a suggestion
ADDED_MS = (0, 50, 100, 200, 300, 500, 750, 1000, 1500, 2000)
PREDICTION_SHARES = (0.1, 0.5, 0.9)


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % bounds; ``None`` if there are none."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Regret:
    """Saved keys per item that each arm loses to choosing the better arm for each item; see ``regret``."""

    n: int
    keys_per_s: float  # value of a second, in saved keys
    a: Estimate
    b: Estimate
    choosing: tuple[Side, ...]  # arms that used more than one route


@dataclass(frozen=True)
class Prediction:
    """Ratio of actual to predicted answer times: 1 is correct, 2 is twice as long."""

    side: Side
    route: Route
    n: int
    p10: float
    p50: float
    p90: float


@dataclass(frozen=True)
class CurvePoint:
    """Saved keys per second of each arm if every answer came ``added_ms`` later. ``None``: no time passed."""

    added_ms: int
    a: float | None
    b: float | None


def column(rows: Sequence[PairedRow], side: Side, name: str) -> Floats:
    """Return a field of one arm's results: (rows,)."""
    return np.array([getattr(getattr(row, side), name) for row in rows], float)


def speeds(rows: Sequence[PairedRow], side: Side, reading_ms: float, drawn: Bootstrap) -> Floats:
    """Saved keys per second of waiting and reading, in each draw: (1 + draws,).

    Every shown suggestion takes ``reading_ms`` to read; requests without an answer count with their time.
    """
    shown = np.array([outcome(getattr(row, side)) == "shown" for row in rows], float)
    spent_ms = drawn.totals(column(rows, side, "answer_ms") + reading_ms * shown)
    with np.errstate(divide="ignore", invalid="ignore"):
        return drawn.totals(column(rows, side, "saved_keys")) * 1000 / spent_ms


def regret(rows: Sequence[PairedRow], drawn: Bootstrap) -> Regret | None:
    """Return what each arm loses to an oracle that takes the better arm for every item.

    The value of an answer is its saved keys minus the value of its time: ``saved_keys - rate * answer_ms``.
    The rate is the saved keys per millisecond, over all rows, of the better fixed arm (an arm with a single
    route; if both or none are fixed, of the better one), and at least 0. The oracle knows the outcome, luck
    included, so no policy reaches a regret of 0. The intervals treat the rate as known. ``None`` if no time
    passed.
    """
    choosing = tuple(side for side in SIDES if len({getattr(row, side).route for row in rows}) > 1)
    fixed = [side for side in SIDES if side not in choosing] or SIDES
    spent = {side: float(column(rows, side, "answer_ms").sum()) for side in fixed}
    rates = [float(column(rows, side, "saved_keys").sum()) / spent[side] for side in fixed if spent[side] > 0]
    if not rates:
        return None
    rate = max(0.0, *rates)
    values = {
        side: column(rows, side, "saved_keys") - rate * column(rows, side, "answer_ms") for side in SIDES
    }
    best = np.maximum(values["a"], values["b"])
    a, b = (estimate(drawn, drawn.means(best - values[side])) for side in SIDES)
    return Regret(len(rows), rate * 1000, a, b, choosing)


def predictions(rows: Sequence[PairedRow]) -> tuple[Prediction, ...]:
    """Return the quality of predicted times by arm and route, for answers whose time was predicted."""
    found = []
    for side in SIDES:
        results = [result for row in rows if answered(result := getattr(row, side)) and result.answer_ms > 0]
        for route in ROUTES:
            mine = [
                result
                for result in results
                if result.route == route and result.predicted_ms.get(route, 0.0) > 0
            ]
            if mine:
                ratios = [result.answer_ms / result.predicted_ms[route] for result in mine]
                found.append(
                    Prediction(side, route, len(mine), *map(float, np.quantile(ratios, PREDICTION_SHARES)))
                )
    return tuple(found)


def curve(rows: Sequence[PairedRow]) -> tuple[CurvePoint, ...]:
    """Return saved keys per second of waiting if each answer came ``ADDED_MS`` later.

    Suggestions that the next key would have made stale still count, so long waits look better than they are.
    """

    def speed(side: Side, added_ms: int) -> float | None:
        spent_ms = float(column(rows, side, "answer_ms").sum()) + added_ms * len(rows)
        return float(column(rows, side, "saved_keys").sum()) * 1000 / spent_ms if spent_ms > 0 else None

    return tuple(CurvePoint(added_ms, speed("a", added_ms), speed("b", added_ms)) for added_ms in ADDED_MS)


def estimate(drawn: Bootstrap, series: Floats) -> Estimate:
    """Interval of a series, with ``None`` instead of NaN."""
    return Estimate(*map(number, drawn.interval(series)))


def number(value: float) -> float | None:
    """Return ``None`` for NaN and infinity, which JSON does not have."""
    return float(value) if np.isfinite(value) else None
