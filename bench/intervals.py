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
    """A value of the spans that were measured, and where it may lie for others of their kind."""

    value: float
    low: float
    high: float

    def text(self, digits: int = 2, unit: str = "") -> str:
        return f"{self.value:.{digits}f}{unit} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def bootstrap(statistic: Statistic, *columns: Sequence[float], turns: int = TURNS, seed: int = 0) -> Interval:
    """The 95 % interval of ``statistic`` over paired columns of equal length.

    Raises ``ValueError`` where there is no span.
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
    """The typical ratio of a span: no span counts more than another, and a ratio and its inverse cancel."""
    return (of.log() - by.log()).mean(-1).exp()


def mean_difference(of: torch.Tensor, less: torch.Tensor) -> torch.Tensor:
    return (of - less).mean(-1)


def ratio_of_sums(of: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    """A rate over all spans together: the long ones count more."""
    return of.sum(-1) / by.sum(-1)


def ratio_of_rates(
    of: torch.Tensor, of_by: torch.Tensor, to: torch.Tensor, to_by: torch.Tensor
) -> torch.Tensor:
    """How many times one rate over all spans is another."""
    return ratio_of_sums(of, of_by) / ratio_of_sums(to, to_by)
