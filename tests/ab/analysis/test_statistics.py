import math
import os

import numpy as np
import pytest
from scipy import stats

from fimserver.ab.analysis.statistics import (
    DRAWS,
    MIN_CLUSTERS,
    bootstrap,
    clusters,
    geometric_ratio,
    holm,
    mean_difference,
    sign_test,
    unseen,
)

SIMULATIONS = int(os.environ.get("AB_SIMULATIONS", "200"))
REDRAWS = DRAWS if SIMULATIONS >= 1000 else 1000
SLACK = 3 * math.sqrt(0.95 * 0.05 / SIMULATIONS)
GROUPS = 36
SPEEDUP = 1.8
SPREAD = math.sqrt(0.5**2 + 0.4**2)  # of the logarithm of a time: between groups, within
NINETY_FIFTH = math.exp(stats.norm.ppf(0.95) * SPREAD)


def routes(seed, speedup=SPEEDUP, rates=((2, 6), (3, 5))):
    """Two made-up routes over files of unequal size: (groups, exact of both, milliseconds of both)."""
    rng = np.random.default_rng(seed)
    index = np.repeat(np.arange(GROUPS), rng.geometric(1 / 8, GROUPS))
    rows = len(index)
    exact = [(rng.random(rows) < rng.beta(*rate, GROUPS)[index]).astype(float) for rate in rates]
    level = rng.normal(0, 0.4, GROUPS)[index]
    times = [np.exp(level + rng.normal(0, 0.3, GROUPS)[index] + rng.normal(0, 0.4, rows)) for _ in range(2)]
    return [f"file{i}" for i in index], exact, (100 * times[0], 100 * times[1] / speedup)


def percentile_difference(a, b, share, drawn):
    of_a, of_b = (drawn.quantiles(values, [share])[:, 0] for values in (a, b))
    return drawn.interval(of_b - of_a)


# of each: what is compared, how, and the truth
ESTIMATES = {
    "difference of exact": ("exact", mean_difference, 3 / 8 - 2 / 8),
    "geometric ratio of times": ("times", geometric_ratio, SPEEDUP),
    "difference of p50": (
        "times",
        lambda a, b, drawn: percentile_difference(a, b, 0.5, drawn),
        100 / SPEEDUP - 100,
    ),
    "difference of p95": (
        "times",
        lambda a, b, drawn: percentile_difference(a, b, 0.95, drawn),
        (100 / SPEEDUP - 100) * NINETY_FIFTH,
    ),
}


def coverage(columns, estimate, truth, *, by_group):
    inside = 0
    for seed in range(SIMULATIONS):
        groups, exact, times = routes(seed)
        drawn = bootstrap(groups if by_group else [str(i) for i in range(len(groups))], seed, REDRAWS)
        found = estimate(*(exact if columns == "exact" else times), drawn)
        inside += found.low <= truth <= found.high
    return inside / SIMULATIONS


@pytest.mark.parametrize("name", ESTIMATES)
def test_intervals_hold_a_known_difference_as_often_as_they_say(name):
    assert 0.95 - SLACK <= coverage(*ESTIMATES[name], by_group=True) < 0.995


@pytest.mark.parametrize("name", ["difference of exact", "geometric ratio of times"])
def test_drawing_rows_instead_of_their_groups_fails_that(name):
    assert coverage(*ESTIMATES[name], by_group=False) < 0.95 - SLACK - 0.05


def test_an_arm_against_itself_differs_at_the_nominal_rate_only():
    misled = {"exact": 0, "times": 0, "p95": 0, "sign": 0}
    for seed in range(SIMULATIONS):
        groups, exact, times = routes(seed, speedup=1.0, rates=((3, 5), (3, 5)))
        drawn = bootstrap(groups, seed, REDRAWS)
        found = {"exact": (mean_difference(*exact, drawn), 0), "times": (geometric_ratio(*times, drawn), 1)}
        found["p95"] = percentile_difference(*times, 0.95, drawn), 0
        for name, (interval, nothing) in found.items():
            misled[name] += not interval.low <= nothing <= interval.high
        first = np.unique(groups, return_index=True)[1]  # the test wants independent pairs
        misled["sign"] += sign_test((times[1] - times[0])[first]) < 0.05
    assert all(count / SIMULATIONS <= 0.05 + SLACK for count in misled.values()), misled


class TestAgainstScipy:
    values = np.random.default_rng(5).lognormal(0, 0.5, 120)
    singles = tuple(map(str, range(120)))

    def test_the_draws_of_single_rows_are_those_of_a_plain_bootstrap(self):
        ours = bootstrap(self.singles, seed=1).means(self.values)
        theirs = stats.bootstrap(
            (self.values,), np.mean, n_resamples=DRAWS, method="percentile", rng=np.random.default_rng(2)
        )
        assert ours[1:].std() == pytest.approx(theirs.standard_error, rel=0.05)
        # the Monte Carlo error of a 2.5 % point of 4000 draws is 0.042 standard errors: within 4 of it
        assert np.quantile(ours[1:], [0.025, 0.975]) == pytest.approx(
            theirs.confidence_interval, abs=0.24 * theirs.standard_error
        )

    def test_the_interval_of_a_mean_of_many_rows_is_that_of_normal_theory(self):
        values = np.random.default_rng(7).normal(3, 1, 120)
        found = bootstrap(self.singles, seed=1).interval(bootstrap(self.singles, seed=1).means(values))
        error = stats.sem(values)
        theory = stats.t.interval(0.95, len(values) - 1, loc=values.mean(), scale=error)
        assert found.value == pytest.approx(values.mean())
        assert (found.low, found.high) == pytest.approx(theory, abs=0.2 * error)

    @pytest.mark.parametrize(("plus", "minus"), [(1, 9), (9, 1), (5, 5), (0, 12), (40, 61)])
    def test_the_sign_test_is_the_binomial_one_on_discordant_pairs(self, plus, minus):
        differences = [1.0] * plus + [-2.5] * minus + [0.0] * 30
        assert sign_test(differences) == pytest.approx(stats.binomtest(plus, plus + minus, 0.5).pvalue)


class TestDraws:
    def test_quantiles_are_those_of_the_rows_drawn(self):
        rng = np.random.default_rng(3)
        groups, values = [f"g{i % 7}" for i in range(50)], rng.normal(size=50).round(1)
        drawn = bootstrap(groups, seed=4, draws=200)
        for counts, found in zip(drawn.weights, drawn.quantiles(values, [0.1, 0.5, 0.95, 1.0]), strict=True):
            rows = np.repeat(values, counts[drawn.groups.index])
            assert found == pytest.approx(np.quantile(rows, [0.1, 0.5, 0.95, 1.0]))

    def test_means_are_those_of_the_rows_drawn(self):
        groups, values = [f"g{i % 5}" for i in range(23)], np.arange(23.0) ** 2
        drawn = bootstrap(groups, seed=4, draws=50)
        rows = [np.repeat(values, counts[drawn.groups.index]).mean() for counts in drawn.weights]
        assert drawn.means(values) == pytest.approx(rows)

    def test_the_sample_comes_first_and_as_many_groups_are_drawn_as_there_are(self):
        drawn = bootstrap(["x", "y", "x", "z"], draws=300)
        assert drawn.weights.shape == (301, 3)
        assert (drawn.weights[0] == 1).all()
        assert (drawn.weights.sum(axis=1) == 3).all()
        assert drawn.means([1.0, 2.0, 3.0, 6.0])[0] == 3.0

    def test_a_draw_is_the_same_for_a_seed_and_another_for_another(self):
        groups = [str(i) for i in range(30)]
        assert (bootstrap(groups, 1).weights == bootstrap(groups, 1).weights).all()
        assert (bootstrap(groups, 1).weights != bootstrap(groups, 2).weights).any()

    def test_many_single_rows_are_drawn_in_pieces_alike(self):
        drawn = bootstrap([str(i) for i in range(3000)], draws=500)
        assert (drawn.weights.sum(axis=1) == 3000).all()
        assert drawn.weights[1:].var() == pytest.approx(1.0, rel=0.02)  # about Poisson


class TestFewGroups:
    @pytest.mark.parametrize("count", range(1, MIN_CLUSTERS))
    def test_too_few_groups_have_a_value_without_bounds(self, count):
        groups = [str(i % count) for i in range(60)]
        found = mean_difference(np.zeros(60), np.arange(60.0), bootstrap(groups))
        assert found.value == pytest.approx(29.5)
        assert math.isnan(found.low)
        assert math.isnan(found.high)
        assert math.isnan(unseen(count))

    def test_enough_groups_have_bounds(self):
        groups = [str(i % MIN_CLUSTERS) for i in range(60)]
        found = mean_difference(np.zeros(60), np.arange(60.0), bootstrap(groups))
        assert found.low < found.value < found.high

    def test_one_group_that_outweighs_all_others_leaves_no_bounds(self):
        groups = ["x"] * 1000 + [str(i) for i in range(20)]
        found = mean_difference(np.zeros(1020), np.arange(1020.0), bootstrap(groups))
        assert found.value == pytest.approx(509.5)
        assert math.isnan(found.low)

    def test_one_large_group_counts_for_less_than_its_rows(self):
        even, uneven = (
            clusters([str(i % 10) for i in range(100)]),
            clusters(["x"] * 91 + [str(i) for i in range(9)]),
        )
        assert even.effective == pytest.approx(10)
        assert uneven.effective == pytest.approx(100**2 / (91**2 + 9))

    def test_a_number_that_some_draw_does_not_have_has_no_bounds(self):
        drawn = bootstrap([str(i) for i in range(10)])
        with np.errstate(divide="ignore", invalid="ignore"):
            found = drawn.interval(drawn.totals(np.ones(10)) / drawn.totals([1.0] + [0.0] * 9))
        assert found.value == 10
        assert math.isnan(found.low)

    def test_what_no_group_showed_may_still_be_there(self):
        assert 0.05 < unseen(60) < 0.07
        assert (1 - unseen(60)) ** 60 == pytest.approx(0.025)


@pytest.mark.parametrize(
    ("raw", "adjusted"),
    [
        ((), ()),
        ((0.04,), (0.04,)),
        ((0.01, 0.04, 0.03, 0.005), (0.03, 0.06, 0.06, 0.02)),
        ((0.2, 0.9, 0.6), (0.6, 1.0, 1.0)),
        ((0.02, 0.02), (0.04, 0.04)),
    ],
)
def test_holm_as_computed_by_hand(raw, adjusted):
    assert holm(raw) == pytest.approx(adjusted)


@pytest.mark.parametrize(
    ("differences", "p"), [([], 1.0), ([0, 0], 1.0), ([1] + [-1] * 9, 22 / 1024), ([2, 2, 2], 0.25)]
)
def test_the_sign_test_as_computed_by_hand(differences, p):
    assert sign_test(differences) == pytest.approx(p)
