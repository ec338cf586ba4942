"""Policies: rules that choose a route from the estimates of both. ``POLICIES`` is the registry."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import NamedTuple

from fimserver.types import ROUTES, Route

READING_MS = 300.0  # time to read a suggestion
LONG = 16  # lexemes above which ``length`` chooses dllm
EXPLORED = 0.10  # share of choices that ``bandit`` draws uniformly, so that both routes stay known
DRAWS = 64
BETTER_THAN_EVEN = 0.5


class RouteEstimate(NamedTuple):
    """Estimate of one route. ``keep``: share of the expected characters that the user keeps."""

    ms: float
    in_time: float  # probability of an answer before the deadline
    keep: float
    answers: float  # number of answers that ``keep`` is based on, including the weight of the prior


class PolicyInput(NamedTuple):
    """Input of a policy. ``rate``: recent kept characters per millisecond, reading time included."""

    lexemes: float
    chars: float
    sides: Mapping[Route, RouteEstimate]
    rate: float
    random: random.Random

    def value(self, route: Route, keep: float | None = None) -> float:
        """Kept characters minus the value of the time they take."""
        side = self.sides[route]
        kept = (side.keep if keep is None else keep) * self.chars * side.in_time
        return kept - self.rate * (side.ms + READING_MS)


class RouteChoice(NamedTuple):
    """A route and the probability with which it was chosen."""

    route: Route
    propensity: float = 1.0


Policy = Callable[[PolicyInput], RouteChoice]


def always_ar(_: PolicyInput) -> RouteChoice:
    """Always choose ar: the baseline of the other policies."""
    return RouteChoice("ar")


def length(facts: PolicyInput) -> RouteChoice:
    """Choose dllm for middles that are expected to be long."""
    return RouteChoice("dllm" if facts.lexemes > LONG else "ar")


def latency(facts: PolicyInput) -> RouteChoice:
    """Choose the fastest route among those that answer in time, or among all if none does."""
    in_time = [route for route in ROUTES if facts.sides[route].in_time >= BETTER_THAN_EVEN]
    return RouteChoice(min(in_time or ROUTES, key=lambda route: facts.sides[route].ms))


def expected_value(facts: PolicyInput) -> RouteChoice:
    """Maximise kept characters per millisecond in the long run.

    The ratio of two sums is maximised not by the larger ratio each time, but by the larger difference between
    kept characters and time, with the time priced at the rate reached so far (Dinkelbach 1967, Management
    Science 13).
    """
    return RouteChoice(max(ROUTES, key=facts.value))


def bandit(facts: PolicyInput) -> RouteChoice:
    """``expected_value`` with keep rates drawn from their posterior (Thompson sampling).

    A share ``EXPLORED`` of the choices is uniform.
    """
    wins = sum(_drawn(facts, "dllm") > _drawn(facts, "ar") for _ in range(DRAWS))
    dllm = EXPLORED / 2 + (1 - EXPLORED) * wins / DRAWS
    return RouteChoice("dllm", dllm) if facts.random.random() < dllm else RouteChoice("ar", 1 - dllm)


def _drawn(facts: PolicyInput, route: Route) -> float:
    side = facts.sides[route]
    kept = side.keep * side.answers
    lost = (1 - side.keep) * side.answers
    return facts.value(route, facts.random.betavariate(max(kept, 0.01), max(lost, 0.01)))


TIMELESS = frozenset({"always_ar", "length"})  # policies that need no predicted times
POLICIES: Mapping[str, Policy] = {
    "always_ar": always_ar,
    "length": length,
    "latency": latency,
    "expected_value": expected_value,
    "bandit": bandit,
}
