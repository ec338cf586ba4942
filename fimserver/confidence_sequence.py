"""Confidence sequence: an interval for a running mean that stays valid after every value (anytime-valid).

A fixed-sample interval that is checked repeatedly eventually misses the mean; this one may be checked, and
the comparison stopped, at any time. For two arms that alternate in blocks, ``block_differences`` makes the
values.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

FIRST_LOOK = 20  # with fewer values the variance is too uncertain: the bounds are infinite
TIGHTEST_AT = 300  # number of values at which the interval is tightest; it is valid at any number


@dataclass(frozen=True)
class RunningInterval:
    """A mean and its bounds, in the unit of the values. Without values the mean is NaN."""

    value: float
    low: float
    high: float
    count: int


class TimeBlock(NamedTuple):
    """One block of a comparison, served by a randomly drawn side."""

    side: Literal["a", "b"]
    value: float  # one number for the whole block, such as kept characters per request
    propensity: float  # probability with which this side was drawn, above 0


def running_interval(values: Iterable[float], alpha: float = 0.05) -> RunningInterval:
    """Return the last of ``running_intervals``."""
    found = RunningInterval(math.nan, -math.inf, math.inf, 0)
    for found in running_intervals(values, alpha):  # noqa: B007 - the last one is wanted
        pass
    return found


def running_intervals(values: Iterable[float], alpha: float = 0.05) -> Iterator[RunningInterval]:
    """Yield an interval for the mean after every value; all of them together err with at most ``alpha``.

    The asymptotic confidence sequence with a normal mixture of Waudby-Smith, Arbour, Sinha, Kennedy and
    Ramdas (arXiv 2103.06476), with rho chosen so that it is tightest at ``TIGHTEST_AT``. It rests on a
    central limit theorem. Over 2000 looks it missed the mean in 3 to 4 % of simulations with normal values
    and with pairs of which every fifth differs, but in 13 to 16 % with values as skewed as a lognormal or
    with one nonzero value in 25: use it for differences or log ratios of blocks, not for rare events. The
    bounds are infinite below ``FIRST_LOOK`` values, and if all values are equal, as the variance is then
    unknown.
    """
    log_alpha = -2 * math.log(alpha)
    rho_squared = (log_alpha + math.log(log_alpha) + 1) / TIGHTEST_AT
    mean = 0.0
    squares = 0.0
    for count, value in enumerate(values, 1):
        step = value - mean
        mean += step / count
        squares += step * (value - mean)
        half = math.inf
        if count >= FIRST_LOOK and squares > 0.0:
            weight = count * rho_squared
            spread = squares / (count - 1)
            half = math.sqrt(
                spread * 2 * (weight + 1) / (count * weight) * math.log(math.sqrt(weight + 1) / alpha)
            )
        yield RunningInterval(mean, mean - half, mean + half, count)


def block_differences(blocks: Iterable[TimeBlock]) -> Iterator[float]:
    """Yield an unbiased estimate of B minus A for each block but the first, by inverse propensity.

    The mean of the previous blocks is subtracted first. As that is known before the side is drawn, the
    expectation stays the same, and the variance is much smaller. The first block only sets this mean.
    """
    total = 0.0
    for count, block in enumerate(blocks):
        if count:
            rest = (block.value - total / count) / block.propensity
            yield rest if block.side == "b" else -rest
        total += block.value
