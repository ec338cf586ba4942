import math
import os
import random

import pytest

from fimserver.confidence_sequence import (
    FIRST_LOOK,
    TimeBlock,
    block_differences,
    running_interval,
    running_intervals,
)

SIMULATIONS = int(os.environ.get("AB_SIMULATIONS", "200"))
LOOKS = 2000
ALPHA = 0.05
AT_MOST = ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / SIMULATIONS)

DRAWS = {
    "normal": (lambda r: r.gauss(0.3, 1.0), 0.3),
    "pairs of which every fifth differs": (lambda r: r.choices((-1, 0, 1), (8, 80, 12))[0], 0.04),
    "differences of long-tailed times": (lambda r: r.lognormvariate(0, 1) - r.lognormvariate(0, 1), 0.0),
}


def misses(draw, mean, bounds):
    """The share of runs in which somebody who looks after every value sees an interval without the mean."""
    found = 0
    for seed in range(SIMULATIONS):
        rng = random.Random(seed)
        found += any(not i.low <= mean <= i.high for i in bounds(draw(rng) for _ in range(LOOKS)))
    return found / SIMULATIONS


def fixed(values):
    """What may be looked at once only."""
    for interval in running_intervals(values):
        half = 0.0 if interval.count < FIRST_LOOK else 1.96 / math.sqrt(interval.count)
        yield type(interval)(
            interval.value, interval.value - (half or math.inf), interval.value + (half or math.inf), 0
        )


@pytest.mark.parametrize("name", DRAWS)
def test_whoever_looks_after_every_value_is_misled_at_most_at_the_stated_rate(name):
    assert misses(*DRAWS[name], running_intervals) <= AT_MOST


def test_a_fixed_interval_looked_at_after_every_value_fails_that_by_far():
    assert misses(*DRAWS["normal"], fixed) > 4 * AT_MOST


def test_it_narrows_to_the_mean_as_theory_has_it():
    rng = random.Random(1)
    found = running_interval([rng.gauss(5.0, 2.0) for _ in range(2000)])
    assert found.count == 2000
    assert found.low < 5.0 < found.high
    assert found.high - found.low == pytest.approx(2 * 1.63 * 1.96 * 2.0 / math.sqrt(2000), rel=0.06)


def test_a_smaller_error_takes_a_wider_interval():
    values = [float(i % 7) for i in range(100)]
    strict, loose = running_interval(values, alpha=0.01), running_interval(values, alpha=0.2)
    assert strict.low < loose.low < loose.value < loose.high < strict.high


@pytest.mark.parametrize(
    "values",
    [[], [1.0], [1.0, 2.0], [float(i) for i in range(FIRST_LOOK - 1)], [3.0] * 500],
    ids=["none", "one", "two", "too few", "all equal"],
)
def test_what_tells_nothing_of_the_spread_has_no_bounds(values):
    found = running_interval(values)
    assert (found.low, found.high, found.count) == (-math.inf, math.inf, len(values))
    assert found.value == pytest.approx(sum(values) / len(values)) if values else math.isnan(found.value)


def test_it_is_the_last_of_the_running_ones():
    values = [float(i * i % 11) for i in range(50)]
    assert running_interval(values) == list(running_intervals(values))[-1]


def test_large_levels_do_not_drown_the_spread():
    values = [1e9 + i % 2 for i in range(1000)]
    small = running_interval([float(i % 2) for i in range(1000)])
    found = running_interval(values)
    assert found.high - found.low == pytest.approx(small.high - small.low, rel=1e-6)


def test_blocks_are_weighted_by_the_probability_of_who_served():
    blocks = [
        TimeBlock("a", 10.0, 0.5),
        TimeBlock("b", 14.0, 0.5),
        TimeBlock("a", 9.0, 0.5),
        TimeBlock("b", 12.0, 0.25),
    ]
    assert list(block_differences(blocks)) == pytest.approx(
        [(14 - 10) / 0.5, -(9 - 12) / 0.5, (12 - 11) / 0.25]
    )


@pytest.mark.parametrize("share_of_b", [0.5, 0.1])
def test_the_difference_of_blocks_is_right_whoever_serves_more(share_of_b):
    inside, middle = 0, 0.0
    for seed in range(100):
        rng = random.Random(seed)
        sides = rng.choices("ab", (1 - share_of_b, share_of_b), k=400)
        blocks = [
            TimeBlock(
                s, rng.gauss(32.0 if s == "b" else 30.0, 3.0), share_of_b if s == "b" else 1 - share_of_b
            )
            for s in sides
        ]
        found = running_interval(block_differences(blocks))
        inside += found.low <= 2.0 <= found.high
        middle += found.value / 100
    assert inside >= 93
    assert middle == pytest.approx(2.0, abs=0.25)
