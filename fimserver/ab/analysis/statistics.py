"""Confidence intervals and tests for paired rows that come in groups.

Items of one file, task or trace are similar, so whole groups are resampled with replacement and a group's
rows stay together (paired cluster bootstrap). The plain percentile interval of such draws is too narrow for
few groups: over nine kinds of simulated rows (300 times each) a nominal 95 % interval covered 85 to 89 % with
8 groups and 90 to 95 % with 35. The percentiles are therefore moved outwards, to the normal probability
of ``sqrt(g / (g - 1)) * t(g - 1)`` (the expanded percentile interval of Hesterberg, arXiv 1411.5279), where
``g`` is not the number of groups but Kish's effective number, ``(sum of sizes)^2 / sum of squared sizes``,
because a few large groups carry no more information than few groups. That covered 92 to 98 % with 8 and 92 to
97 % with 35; a p95 difference was covered in 93 % of 1000 simulations with 36 groups. Unlike an interval that
is widened about its centre, it is the same for a ratio and its logarithm and never leaves the range of the
draws; unlike a studentised one, it works for means and quantiles alike.

With fewer than ``MIN_CLUSTERS`` groups the bounds are NaN: even from the smallest to the largest of all
draws, an interval of ``g`` groups covers at most ``1 - 2^(1 - g)``. They are also NaN if one group outweighs
all others (effective number below 2).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats  # type: ignore[import-untyped]

DRAWS = 4000
ALPHA = 0.05
MIN_CLUSTERS = 6
_CELLS = 1 << 20  # limit for temporary arrays

Floats = NDArray[np.float64]


class Interval(NamedTuple):
    """A number and its 95 % bounds; NaN if there are none."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Clusters:
    """Group of each row."""

    index: NDArray[np.intp]  # (rows,)
    count: int

    @property
    def effective(self) -> float:
        """Kish's effective number of groups."""
        sizes = np.bincount(self.index, minlength=self.count).astype(float)
        return float(sizes.sum() ** 2 / (sizes**2).sum())


def clusters(groups: Sequence[str]) -> Clusters:
    """Number the groups of rows (at least one)."""
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    return Clusters(index, len(names))


@dataclass(frozen=True)
class Bootstrap:
    """Bootstrap draws. Every returned array has the sample itself in row 0, then one row per draw.

    So the difference of two arms, or any function of several numbers, is plain array arithmetic.
    """

    groups: Clusters
    weights: NDArray[np.uint16]  # (1 + draws, clusters): how often each group was drawn

    @cached_property
    def _rows(self) -> Floats:
        return self.totals(np.ones(len(self.groups.index)))

    def totals(self, column: ArrayLike) -> Floats:
        """Sum of a column (rows,) in each draw: (1 + draws,)."""
        sums = np.bincount(self.groups.index, np.asarray(column, float), minlength=self.groups.count)
        return np.concatenate(
            [block.astype(float) @ sums for block in _blocks(self.weights, self.groups.count)]
        )

    def means(self, column: ArrayLike) -> Floats:
        """Mean of a column (rows,) in each draw: (1 + draws,)."""
        return self.totals(column) / self._rows

    def quantiles(self, column: ArrayLike, shares: Sequence[float]) -> Floats:
        """Quantiles of a column (rows,) in each draw, as in ``numpy.quantile``: (1 + draws, shares)."""
        values = np.asarray(column, float)
        order = np.argsort(values)
        values = values[order]
        rows = self.groups.index[order]
        return np.concatenate(
            [_quantiles(values, block[:, rows], shares) for block in _blocks(self.weights, len(rows))]
        )

    def interval(self, series: Floats) -> Interval:
        """Interval of a number, given its value in each draw (1 + draws,).

        The bounds are NaN if some draw has no finite value or there are too few groups.
        """
        effective = self.groups.effective
        if self.groups.count < MIN_CLUSTERS or effective < 2 or not np.isfinite(series).all():
            return Interval(float(series[0]), np.nan, np.nan)
        tail = stats.norm.sf(np.sqrt(effective / (effective - 1)) * stats.t.isf(ALPHA / 2, effective - 1))
        low, high = np.quantile(series[1:], [tail, 1 - tail])
        return Interval(float(series[0]), float(low), float(high))


def bootstrap(groups: Sequence[str], seed: int = 0, draws: int = DRAWS) -> Bootstrap:
    """Resample the groups of rows (at least one) ``draws`` times."""
    found = clusters(groups)
    random = np.random.default_rng(seed)
    weights = np.ones((1 + draws, found.count), np.uint16)
    step = max(1, _CELLS // found.count)
    for start in range(1, 1 + draws, step):
        block = weights[start : start + step]
        drawn = random.integers(found.count, size=block.shape) + np.arange(len(block))[:, None] * found.count
        block[:] = np.bincount(drawn.ravel(), minlength=block.size).reshape(block.shape)
    return Bootstrap(found, weights)


def mean_difference(a: ArrayLike, b: ArrayLike, drawn: Bootstrap) -> Interval:
    """Mean of B minus A for paired columns (rows,)."""
    return drawn.interval(drawn.means(np.subtract(b, a)))


def geometric_ratio(a: ArrayLike, b: ArrayLike, drawn: Bootstrap) -> Interval:
    """Geometric mean of A over B for paired positive columns (rows,): for times, how much faster B is."""
    return drawn.interval(np.exp(drawn.means(np.log(a) - np.log(b))))


def sign_test(differences: ArrayLike) -> float:
    """Exact two-sided p of a sign test without ties (McNemar's for binary outcomes).

    It assumes independent pairs: for groups with many rows, trust the interval instead.
    """
    signs = np.sign(np.asarray(differences, float))
    plus = int((signs > 0).sum())
    discordant = int((signs != 0).sum())
    return float(stats.binomtest(plus, discordant).pvalue) if discordant else 1.0


def holm(values: Sequence[float]) -> tuple[float, ...]:
    """Adjust p values for multiple tests (Holm 1979)."""
    order = np.argsort(values)
    raised = np.asarray(values, float)[order] * np.arange(len(values), 0, -1)
    adjusted = np.empty(len(values))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(raised))
    return tuple(adjusted.tolist())


def unseen(count: int) -> float:
    """Upper 97.5 % bound of a share without a case in ``count`` groups (rule of three).

    A bootstrap of zeros would have an interval of width 0. NaN for fewer than ``MIN_CLUSTERS`` groups.
    """
    return 1 - (ALPHA / 2) ** (1 / count) if count >= MIN_CLUSTERS else float("nan")


def _blocks(weights: NDArray[np.uint16], width: int) -> Iterator[NDArray[np.uint16]]:
    """Split into blocks of rows, so that temporary arrays with ``width`` columns stay small."""
    step = max(1, _CELLS // width)
    return (weights[start : start + step] for start in range(0, len(weights), step))


def _quantiles(values: Floats, counts: NDArray[np.uint16], shares: Sequence[float]) -> Floats:
    """Quantiles of sorted values (rows,) with multiplicities (draws, rows): (draws, shares)."""
    ends = np.cumsum(counts, axis=1, dtype=np.int64)
    last = ends[:, -1] - 1
    found = np.empty((len(counts), len(shares)))
    for column, share in enumerate(shares):
        position = last * share
        below = np.floor(position).astype(np.int64)
        left, right = (
            values[(ends <= place[:, None]).sum(axis=1)] for place in (below, np.minimum(below + 1, last))
        )
        found[:, column] = left + (position - below) * (right - left)
    return found
