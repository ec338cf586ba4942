"""Router: chooses the route of a request and says why.

A policy weighs the length predicted from the text around the cursor, the time predicted from each model's
measured costs, and the keep rate of earlier answers. A pinned route is used without weighing.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from fimserver.host.routing.chances import Chances
from fimserver.host.routing.latency import TOKENS_PER_LEXEME, LatencyModel, LatencySample
from fimserver.host.routing.length_model import LengthPrediction, expected, mean_chars, mean_lexemes
from fimserver.host.routing.policies import (
    POLICIES,
    READING_MS,
    TIMELESS,
    PolicyInput,
    RouteChoice,
    RouteEstimate,
    length,
)
from fimserver.host.routing.stand_in import WEIGHING, without_stand_in
from fimserver.lengths import BUCKETS, LABELS, LIMITS
from fimserver.types import ROUTES, Decision, Features, Request, Route, RoutePin, other

# Prior of the kept share of a middle, by bucket: Qwen2.5-Coder-7B, and DreamCoder-7B with DreamOn, on single-
# and multi-line infilling (arXiv 2602.01326, table 1); the bucket in the middle is interpolated.
PUBLISHED: Mapping[Route, Sequence[float]] = {
    "ar": (0.926, 0.926, 0.756, 0.587, 0.587),
    "dllm": (0.921, 0.921, 0.780, 0.638, 0.638),
}
LEVEL_ANSWERS = 20.0  # weight of the published level of both routes
DIFFERENCE_ANSWERS = 200.0  # weight of the published difference between them
RATE_SHARE = 0.02  # weight of a new answer in the running rate
ONE_LINE = 0.15  # below this probability of several lines, a middle is limited to one line
TAIL = 0.05  # share of middles that may be longer than their token limit
MOST_TOKENS_PER_LEXEME = 2  # in ordinary code
LINE_LEXEMES = 12.0  # of a line that is not the first of several
NO_DEADLINE_MS = 120_000.0
TRIPPED_S = 300.0


class KeepCounts(NamedTuple):
    """Answers of one length bucket: their number, and the sum of their kept shares."""

    answers: float
    kept: float


KeptSource = Callable[[Route, str], Sequence[KeepCounts]]  # takes route and model: one per bucket, or empty


class RoutingRequest(NamedTuple):
    """A request and the state of the engines. A route that is not in ``models`` cannot run."""

    request: Request
    pin: RoutePin
    left_ms: float
    models: Mapping[Route, str]
    rows: Mapping[Route, int]  # uncached rows of the prompt
    broken: str = ""  # why a route cannot run
    length: LengthPrediction | None = None  # ``None``: not predicted yet


class Router:
    """Chooses routes for one host and learns from its answers. Used by one thread at a time."""

    def __init__(
        self,
        policy: str = "expected_value",
        costs: LatencyModel | None = None,
        kept: KeptSource = lambda _route, _model: (),
        seed: int = 0,
        expect: Callable[[Features | None, Request], LengthPrediction] = expected,
        chances: Chances | None = None,
    ) -> None:
        self.policy = policy
        self.costs = costs or LatencyModel()
        self.chances = chances or Chances()
        self._kept = kept
        self._expect = expect
        self._random = random.Random(seed)
        self._kept_chars = self._spent_ms = 0.0  # running means of predictions
        self._tripped: dict[Route, tuple[str, float]] = {}

    def trip(self, route: Route, why: str) -> None:
        """Exclude a route that cannot run for ``TRIPPED_S`` (circuit breaker)."""
        self._tripped[route] = (why, time.monotonic() + TRIPPED_S)

    def tripped(self, route: Route) -> str:
        """Return why a route is excluded now, or an empty string."""
        why, until = self._tripped.get(route, ("", 0.0))
        return why if time.monotonic() < until else ""

    def expect(self, request: Request) -> LengthPrediction:
        """Predict the length of a middle."""
        return self._expect(request.features, request)

    def decide(self, asked: RoutingRequest) -> Decision:
        """Choose the route of a request, with the reason."""
        expect = asked.length or self.expect(asked.request)
        known = dict[Route, tuple[float, ...]]()
        lexemes = _lexemes(asked.request)
        for route, model in asked.models.items():
            cost = self.costs.cost(cost_name(route, model))
            if cost.known and route in asked.rows:
                known[route] = cost.by_length(asked.rows[route], lexemes)
        times = {route: _mean(expect.probabilities, ms) for route, ms in known.items()}
        base = Decision("ar", "", "", expect.lexemes, expect.bucket, times)
        if asked.pin != "auto":
            return replace(base, route=asked.pin, why="asked for")
        if self.policy in WEIGHING and (alone := without_stand_in(asked.models)):
            return replace(base, route=alone.route, why=alone.why)
        if len(asked.models) == 1:
            (route,) = asked.models
            return replace(base, route=route, why=f"{other(route)} cannot run here: {asked.broken}")
        return self._weighed(base, expect, asked, known)

    def learn(self, decision: Decision, model: str, seen: LatencySample) -> None:
        """Learn from the cost of an answer."""
        self.costs.learn(cost_name(decision.route, model), seen, decision.predicted_ms.get(decision.route))

    def _weighed(
        self,
        base: Decision,
        expect: LengthPrediction,
        asked: RoutingRequest,
        known: Mapping[Route, tuple[float, ...]],
    ) -> Decision:
        seen = {
            route: self._kept(route, asked.models[route]) or [KeepCounts(0.0, 0.0)] * len(LABELS)
            for route in ROUTES
        }
        sides = {route: _side(route, expect, seen, known.get(route, ()), asked.left_ms) for route in ROUTES}
        facts = PolicyInput(expect.lexemes, expect.chars, sides, self._rate(expect, sides), self._random)
        measured = len(known) == len(ROUTES) or self.policy in TIMELESS
        choice = POLICIES[self.policy](facts) if measured else length(facts)
        self._spend(facts, choice)
        words = self.policy if measured else "length (latency is not measured yet)"
        return replace(
            base,
            route=choice.route,
            why=_why(words, expect, sides, choice),
            policy=self.policy,
            keep={route: side.keep for route, side in sides.items()},
            propensity=choice.propensity,
        )

    def _rate(self, expect: LengthPrediction, sides: Mapping[Route, RouteEstimate]) -> float:
        """Recent kept characters per millisecond; for the first request, that of its better route."""
        if self._spent_ms:
            return self._kept_chars / self._spent_ms
        return max(
            side.keep * side.in_time * expect.chars / (side.ms + READING_MS) for side in sides.values()
        )

    def _spend(self, facts: PolicyInput, choice: RouteChoice) -> None:
        side = facts.sides[choice.route]
        share = RATE_SHARE if self._spent_ms else 1.0
        self._kept_chars += share * (side.keep * side.in_time * facts.chars - self._kept_chars)
        self._spent_ms += share * (side.ms + READING_MS - self._spent_ms)


def _side(
    route: Route,
    expect: LengthPrediction,
    seen: Mapping[Route, Sequence[KeepCounts]],
    ms: tuple[float, ...],
    left_ms: float,
) -> RouteEstimate:
    """Estimate a route. ``ms``: predicted times by length bucket, empty if not measured yet."""
    rates = [keep_rate(route, bucket, {each: seen[each][bucket] for each in ROUTES}) for bucket in BUCKETS]
    chars = [p * count for p, count in zip(expect.probabilities, mean_chars(), strict=True)]
    keep, weight = (_mean(chars, values) / sum(chars) for values in zip(*rates, strict=True))
    in_time = [float(each <= left_ms) for each in ms] or [1.0] * len(LABELS)
    return RouteEstimate(
        _mean(expect.probabilities, ms) if ms else 0.0, _mean(expect.probabilities, in_time), keep, weight
    )


def keep_rate(route: Route, bucket: int, seen: Mapping[Route, KeepCounts]) -> tuple[float, float]:
    """Return the kept share of a route in one length bucket, and the number of answers it is based on.

    The level that both routes share adapts after about 20 answers; the difference between routes only after
    about 200, as a difference of a few points is within the noise of a hundred answers.
    """
    published = {each: PUBLISHED[each][bucket] for each in ROUTES}
    common = sum(published.values()) / len(published)
    kept, answers = (
        sum(values) for values in zip(*((s.kept, s.answers) for s in seen.values()), strict=True)
    )
    level = (common * LEVEL_ANSWERS + kept) / (LEVEL_ANSWERS + answers)
    prior = min(1.0, level * published[route] / common)
    weight = DIFFERENCE_ANSWERS + seen[route].answers
    return (prior * DIFFERENCE_ANSWERS + seen[route].kept) / weight, weight


def fit(request: Request, length: LengthPrediction | None = None) -> Request:
    """Set the stop rule, the token limit and the initial canvas slots by the expected length.

    ``length``: the prediction; ``None``: predict here. A request without features stays unchanged.
    """
    if request.features is None:
        return request
    expect = length or expected(request.features, request)
    one_line = request.features.right_text or expect.multi_line < ONE_LINE
    stop = "line" if request.sampling.stop == "auto" and one_line else request.sampling.stop
    longest = _quantile(expect.probabilities, 1 - TAIL)
    tokens = (
        request.sampling.max_tokens
        if longest is None
        else min(request.sampling.max_tokens, longest * MOST_TOKENS_PER_LEXEME)
    )
    return replace(request.with_sampling(stop=stop, max_tokens=tokens), canvas_tokens=round(expect.lexemes))


def _lexemes(request: Request) -> tuple[float, ...]:
    """Expected lexemes of a middle of each bucket, within the limits of the request."""
    most = request.sampling.max_tokens / TOKENS_PER_LEXEME
    most = min(most, LINE_LEXEMES) if request.sampling.stop == "line" else most
    return tuple(min(count, most) for count in mean_lexemes())


def cost_name(route: Route, model: str) -> str:
    """Key of a model on a route in ``LatencyModel``."""
    return f"{route}/{model}"


def _mean(probabilities: Sequence[float], values: Sequence[float]) -> float:
    return sum(p * value for p, value in zip(probabilities, values, strict=True))


def _quantile(probabilities: Sequence[float], share: float) -> int | None:
    """Limit in lexemes that this share of middles does not exceed; ``None`` if in the last bucket."""
    below = 0.0
    for limit, probability in zip(LIMITS, probabilities, strict=False):
        below += probability
        if below >= share:
            return limit
    return None


def _why(
    words: str, expect: LengthPrediction, sides: Mapping[Route, RouteEstimate], choice: RouteChoice
) -> str:
    """Describe the estimates of both routes and the choice in one line."""
    each = [
        f"{route}{f' {side.ms:.0f} ms,' if side.ms else ''} keeps {side.keep:.0%}"
        for route, side in sides.items()
    ]
    drawn = "" if choice.propensity == 1.0 else f", drawn with {choice.propensity:.2f}"
    return (
        f"about {expect.lexemes:.0f} lexemes ({LABELS[expect.bucket]}); {'; '.join(each)}: {choice.route} by"
        f" {words}{drawn}"
    )
