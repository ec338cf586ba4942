"""Bootstrap intervals of the statistics that a benchmark reports.

A column has one value per span, and spans are what is drawn again, so that all that one span gave stays
together. Columns of one call are paired. The percentile method, seeded: the same columns give the same
interval.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

Statistic = Callable[..., torch.Tensor]  # columns (…, n) -> values (…)
TURNS = 2000
LEVEL = 0.95


class Interval(NamedTuple):
    """A statistic of the measured spans with its confidence interval."""

    value: float
    low: float
    high: float

    def text(self, digits: int = 2, unit: str = "") -> str:
        return f"{self.value:.{digits}f}{unit} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def bootstrap(statistic: Statistic, *columns: Sequence[float], turns: int = TURNS, seed: int = 0) -> Interval:
    """Return the 95 % interval of ``statistic`` over paired columns of equal length.

    Raises ``ValueError`` if there are no spans or the columns differ in length.
    """
    count = len(columns[0])
    if count == 0 or any(len(column) != count for column in columns):
        raise ValueError(f"columns of {[len(column) for column in columns]} spans cannot be paired")
    data = [torch.tensor(column, dtype=torch.float64) for column in columns]
    drawn = torch.randint(count, (turns, count), generator=torch.Generator().manual_seed(seed))
    values = statistic(*(column[drawn] for column in data))
    low, high = values.quantile(
        torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
    ).tolist()
    return Interval(float(statistic(*data)), low, high)


def median(values: torch.Tensor) -> torch.Tensor:
    """The middle value, or the mean of the two in the middle."""
    ordered, count = values.sort(-1).values, values.shape[-1]
    return (ordered[..., (count - 1) // 2] + ordered[..., count // 2]) / 2


def geometric_mean_ratio(of: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    """Geometric mean of the ratios of spans: spans have equal weight, and a ratio and its inverse cancel."""
    return (of.log() - by.log()).mean(-1).exp()


def mean_difference(of: torch.Tensor, less: torch.Tensor) -> torch.Tensor:
    return (of - less).mean(-1)


def ratio_of_sums(of: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    """Rate over all spans together, in which long ones count more."""
    return of.sum(-1) / by.sum(-1)


def ratio_of_rates(
    of: torch.Tensor, of_by: torch.Tensor, to: torch.Tensor, to_by: torch.Tensor
) -> torch.Tensor:
    """Ratio of two rates over all spans."""
    return ratio_of_sums(of, of_by) / ratio_of_sums(to, to_by)
