"""Value of an arm's answers for the time they take: speed, regret, predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fimserver.ab.analysis.measures import answered, outcome
from fimserver.ab.analysis.statistics import Bootstrap, Floats
from fimserver.ab.schema import SIDES, PairedRow, Side
from fimserver.types import ROUTES, Route

READING_MS = (0, 300)  # that a person reads a suggestion for
ADDED_MS = (0, 50, 100, 200, 300, 500, 750, 1000, 1500, 2000)
PREDICTION_SHARES = (0.1, 0.5, 0.9)


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % bounds; ``None`` where there are none."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Regret:
    """Regret: saved keys per item that one arm for all items loses to the better arm of each item.

    See ``regret``.
    """

    n: int
    keys_per_s: float  # what a second is worth
    a: Estimate
    b: Estimate
    choosing: tuple[Side, ...]  # the arms that chose a route for each item themselves


@dataclass(frozen=True)
class Prediction:
    """How long answers took, as a ratio to what was predicted: 1 is right, 2 is twice as long."""

    side: Side
    route: Route
    n: int
    p10: float
    p50: float
    p90: float


@dataclass(frozen=True)
class CurvePoint:
    """Characters per second of each arm if every answer came ``added_ms`` later. ``None``: no time passed."""

    added_ms: int
    a: float | None
    b: float | None


def column(rows: Sequence[PairedRow], side: Side, name: str) -> Floats:
    """A field of one arm's results: (rows,)."""
    return np.array([getattr(getattr(row, side), name) for row in rows], float)


def speeds(rows: Sequence[PairedRow], side: Side, reading_ms: float, drawn: Bootstrap) -> Floats:
    """Accepted characters per second, in each draw: all saved keys over all waiting and reading.

    Shape (1 + draws,).

    Every shown suggestion is read for ``reading_ms``, good or bad; requests without an answer count with the
    time they took.
    """
    shown = np.array([outcome(getattr(row, side)) == "shown" for row in rows], float)
    spent_ms = drawn.totals(column(rows, side, "answer_ms") + reading_ms * shown)
    with np.errstate(divide="ignore", invalid="ignore"):
        return drawn.totals(column(rows, side, "saved_keys")) * 1000 / spent_ms


def regret(rows: Sequence[PairedRow], drawn: Bootstrap) -> Regret | None:
    """Return what each arm loses to the better of the two arms on every item.

    The value of an answer is its saved keys less what its time is worth: ``saved_keys - rate * answer_ms``.
    The rate is the saved keys per millisecond, over all rows, of the better fixed arm (one that used one
    route throughout; of both where both or none are), and at least 0. The oracle takes for each item the arm
    of the greater value. It knows the outcome, luck included, so no policy reaches a regret of 0. The
    intervals take the rate as given. ``None`` where no time passed.
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
    """By arm and route, where the route that served had been predicted."""
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
    """Saved keys over all waiting, each answer ``ADDED_MS`` later, as on a slower line or device.

    Nothing is taken off for suggestions that the next key would have made stale, so it flatters long waits.
    """

    def speed(side: Side, added_ms: int) -> float | None:
        spent_ms = float(column(rows, side, "answer_ms").sum()) + added_ms * len(rows)
        return float(column(rows, side, "saved_keys").sum()) * 1000 / spent_ms if spent_ms > 0 else None

    return tuple(CurvePoint(added_ms, speed("a", added_ms), speed("b", added_ms)) for added_ms in ADDED_MS)


def estimate(drawn: Bootstrap, series: Floats) -> Estimate:
    """The interval of a series, NaN as ``None``."""
    return Estimate(*map(number, drawn.interval(series)))


def number(value: float) -> float | None:
    """As JSON can have it."""
    return float(value) if np.isfinite(value) else None
