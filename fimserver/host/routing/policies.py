"""Knows rules that pick a route from what is expected of each. Knows nothing of where the expectations come from.

``POLICIES`` is the place for another rule.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import NamedTuple

from fimserver.types import ROUTES, Route

READING_MS = 300.0  # what looking at a suggestion costs its reader
LONG = 16  # lexemes from which a middle is worth a canvas
EXPLORED = 0.10  # of choices that ``bandit`` draws evenly, so that either route stays known
DRAWS = 64
BETTER_THAN_EVEN = 0.5


class RouteEstimate(NamedTuple):
    """What is expected of one route. ``keep`` is the share of the expected characters that the user keeps."""

    ms: float
    in_time: float  # probability of an answer before the deadline
    keep: float
    answers: float  # that ``keep`` rests on, the prior's weight among them


class PolicyInput(NamedTuple):
    """What a policy may look at. ``rate``: kept characters per millisecond of late, reading included."""

    lexemes: float
    chars: float
    sides: Mapping[Route, RouteEstimate]
    rate: float
    random: random.Random

    def value(self, route: Route, keep: float | None = None) -> float:
        """Kept characters less what its time is worth."""
        side = self.sides[route]
        kept = (side.keep if keep is None else keep) * self.chars * side.in_time
        return kept - self.rate * (side.ms + READING_MS)


class RouteChoice(NamedTuple):
    """A route, and the probability with which it was to be chosen."""

    route: Route
    propensity: float = 1.0


Policy = Callable[[PolicyInput], RouteChoice]


def fixed(_: PolicyInput) -> RouteChoice:
    """Always ar: what the others are measured against."""
    return RouteChoice("ar")


def length(facts: PolicyInput) -> RouteChoice:
    """Dllm for what is expected to be long."""
    return RouteChoice("dllm" if facts.lexemes > LONG else "ar")


def latency(facts: PolicyInput) -> RouteChoice:
    """The fastest of those that answer in time; the fastest of all where none does."""
    in_time = [route for route in ROUTES if facts.sides[route].in_time >= BETTER_THAN_EVEN]
    return RouteChoice(min(in_time or ROUTES, key=lambda route: facts.sides[route].ms))


def expected_value(facts: PolicyInput) -> RouteChoice:
    """Most kept characters per millisecond in the long run.

    The ratio of two sums is not made largest by taking the larger ratio each time, but by the larger difference between
    kept characters and time, the time priced at the rate reached so far (Dinkelbach 1967, Management Science 13).
    """
    return RouteChoice(max(ROUTES, key=facts.value))


def bandit(facts: PolicyInput) -> RouteChoice:
    """The same with keep rates drawn from what is known of them (Thompson sampling), a tenth of choices drawn evenly."""
    wins = sum(_drawn(facts, "dllm") > _drawn(facts, "ar") for _ in range(DRAWS))
    dllm = EXPLORED / 2 + (1 - EXPLORED) * wins / DRAWS
    return RouteChoice("dllm", dllm) if facts.random.random() < dllm else RouteChoice("ar", 1 - dllm)


def _drawn(facts: PolicyInput, route: Route) -> float:
    side = facts.sides[route]
    kept, lost = side.keep * side.answers, (1 - side.keep) * side.answers
    return facts.value(route, facts.random.betavariate(max(kept, 0.01), max(lost, 0.01)))


TIMELESS = frozenset({"fixed", "length"})  # those that need no times
POLICIES: Mapping[str, Policy] = {
    "fixed": fixed,
    "length": length,
    "latency": latency,
    "expected_value": expected_value,
    "bandit": bandit,
}
