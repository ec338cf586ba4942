"""Confidence sequence: an interval for a running mean that may be looked at after every value.

A fixed-size interval that is looked at again and again is wrong in the end; this one may be watched, and the
comparison stopped, at any time. For two arms that take turns in blocks, ``block_differences`` makes the
values.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

FIRST_LOOK = 20  # values below which the spread is not known well enough: the bounds are infinite
TIGHTEST_AT = 300  # values at which the interval is tightest; anywhere else it is valid as well


@dataclass(frozen=True)
class RunningInterval:
    """A mean and its bounds, in the values' unit. Without values the mean is NaN."""

    value: float
    low: float
    high: float
    count: int


class TimeBlock(NamedTuple):
    """One block of a comparison in which a coin chose who serves."""

    side: Literal["a", "b"]  # that served
    value: float  # one number for the whole block, such as kept characters per request
    propensity: float  # the probability with which this side was drawn, above 0


def running_interval(values: Iterable[float], alpha: float = 0.05) -> RunningInterval:
    """Return the last of ``running_intervals``."""
    found = RunningInterval(math.nan, -math.inf, math.inf, 0)
    for found in running_intervals(values, alpha):  # noqa: B007 - the last one is wanted
        pass
    return found


def running_intervals(values: Iterable[float], alpha: float = 0.05) -> Iterator[RunningInterval]:
    """Behind every value, where the mean is, with an error of at most ``alpha`` over all of them together.

    The asymptotic confidence sequence with a normal mixture of Waudby-Smith, Arbour, Sinha, Kennedy and
    Ramdas (arXiv 2103.06476), its rho such that it is tightest at ``TIGHTEST_AT``. It rests on a central
    limit theorem. Over 2000 looks it missed the mean in 3 to 4 % of simulations with normal values and with
    pairs of which every fifth differs, and in 13 to 16 % with values that are as skewed as a lognormal, or of
    which one in 25 is not zero: give it differences or log ratios of blocks, not single rare events. The
    bounds are infinite below ``FIRST_LOOK`` values, and where all values are equal, as nothing is known of
    their spread then.
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
    """For each block but the first, B minus A, weighted by the inverse propensity.

    Unbiased whichever side was drawn.

    The mean of the blocks before is subtracted first. That does not move the average, as it
    is known before the coin falls, and keeps the values from jumping between plus and minus the whole level.
    The first block only gives the level.
    """
    total = 0.0
    for count, block in enumerate(blocks):
        if count:
            rest = (block.value - total / count) / block.propensity
            yield rest if block.side == "b" else -rest
        total += block.value
