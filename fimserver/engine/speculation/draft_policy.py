"""Draft policy: which drafters to ask in a round, and how many of their tokens to verify.

Acceptance rates by grade, the time of drafters and the time of passes are measured while serving. The policy
changes how long an answer takes, never its text.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fimserver.engine.forward.pass_cost import PassCosts, Shape
from fimserver.engine.speculation.drafts import Draft, cut_draft
from fimserver.lengths import common_prefix

_PRIOR_WEIGHT = 2.0  # trials that the prior counts for; it takes a grade of n as a chance of about n tenths
_MEMORY = 200.0  # number of trials after which older ones lose weight
_SMOOTHING = 0.2
_TRIALS = 3  # times a drafter is asked before its cost decides
_RETRIAL = 32  # rounds after which a drafter that did not pay is tried again
_CHEAP = 0.01  # share of a pass's time below which a drafter is always asked
_CHEAP_IF_SILENT = 0.05  # the same for one that proposed nothing last time: it says itself when it can draft


class DraftPlan(NamedTuple):
    """The drafts to verify in one pass, cut to its shape, and the expected number of tokens."""

    shape: Shape
    drafts: tuple[Draft, ...]
    expected: float


class Survival:
    """Acceptance rates by source and grade of a token, given that all tokens before it were accepted."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, int], list[float]] = {}

    def along(self, draft: Draft) -> list[float]:
        """Return for each token the probability that it and all before it are accepted."""
        alive = 1.0
        chances = []
        for grade in draft.grades:
            right, tried = self._seen.get((draft.source, grade)) or self._of(draft.source, grade)
            alive *= right / tried
            chances.append(alive)
        return chances

    def learn(self, draft: Draft, accepted: int) -> None:
        """Count the first ``accepted`` tokens as accepted and the next one, if any, as rejected."""
        for place, grade in enumerate(draft.grades[: accepted + 1]):
            seen = self._of(draft.source, grade)
            fade = min(1.0, _MEMORY / (seen[1] + 1))
            seen[0] = (seen[0] + (place < accepted)) * fade
            seen[1] = (seen[1] + 1) * fade

    def _of(self, source: str, grade: int) -> list[float]:
        prior = (min(9, max(0, grade)) + 0.5) / 10
        return self._seen.setdefault((source, grade), [prior * _PRIOR_WEIGHT, _PRIOR_WEIGHT])


@dataclass
class DrafterCost:
    """Moving averages of one drafter: its time, and the expected tokens of a pass with its drafts alone.

    ``pass_share``: time of that pass by that of plain decoding.
    """

    ms: float = 0.0
    expected: float = 1.0
    pass_share: float = 1.0
    asked: int = 0
    rested: int = 0  # rounds since it was asked
    silent: bool = False  # it proposed nothing when it was asked last


class DraftPolicy:
    """Chooses for each round which drafters to ask and which shape to verify."""

    def __init__(self, costs: PassCosts) -> None:
        self.costs = costs
        self.survival = Survival()
        self.accounts: dict[str, DrafterCost] = defaultdict(DrafterCost)
        self.switched_off = 0  # times that a drafter was not asked because it was not expected to pay

    def plan(self, drafts: Sequence[Draft], max_draft_tokens: int) -> DraftPlan:
        """Choose the shape and drafts, of up to ``max_draft_tokens``, with most expected tokens per ms."""
        costs = self.costs.ms
        best = DraftPlan(self.costs.plain, (), 1.0)
        best_rate = 1.0 / costs[self.costs.plain]
        ranked = sorted(
            ((self.survival.along(draft), draft) for draft in drafts), key=lambda pair: -sum(pair[0])
        )
        gains = _gains(ranked[: self.costs.branches])
        for shape, ms in costs.items():
            branches, rows = shape
            if branches <= len(gains):
                expected = 1.0 + sum(gains[branches - 1][: min(rows - 1, max_draft_tokens)])
                if expected / ms > best_rate:
                    best = DraftPlan(shape, tuple(d for _, d in ranked[:branches]), expected)
                    best_rate = expected / ms
        cut = min(best.shape[1] - 1, max_draft_tokens)
        return best._replace(drafts=tuple(cut_draft(draft, cut) for draft in best.drafts if cut > 0))

    def asks(self, name: str, so_far: DraftPlan) -> bool:
        """Whether asking this drafter too is expected to give more tokens per ms than the plan ``so_far``."""
        account = self.accounts[name]
        account.rested += 1
        ms = self.costs.ms[so_far.shape]
        cheap = _CHEAP_IF_SILENT if account.silent else _CHEAP
        if account.asked < _TRIALS or account.rested > _RETRIAL or account.ms < cheap * ms:
            return True
        pass_ms = account.pass_share * self.costs.ms[self.costs.plain]
        pays = account.expected / (account.ms + pass_ms) > so_far.expected / ms
        self.switched_off += not pays
        return pays

    def asked(self, name: str, ms: float, drafts: Sequence[Draft]) -> None:
        """Record that a drafter took ``ms`` to propose these drafts."""
        account = self.accounts[name]
        alone = self.plan(drafts, self.costs.longest)
        pass_share = self.costs.ms[alone.shape] / self.costs.ms[self.costs.plain]
        share = 1.0 if account.asked == 0 else _SMOOTHING
        account.ms += share * (ms - account.ms)
        account.expected += share * (alone.expected - account.expected)
        account.pass_share += share * (pass_share - account.pass_share)
        account.asked += 1
        account.silent = not drafts
        account.rested = 0

    def learn(self, plan: DraftPlan, new: Sequence[int], ms: float | None) -> None:
        """Record that a pass gave the tokens ``new`` and took ``ms``; ``None`` if it ran with others."""
        if ms is not None:
            self.costs.observe(plan.shape, ms)
        for draft in plan.drafts:
            self.survival.learn(draft, common_prefix(draft.tokens, new))


def _gains(ranked: Sequence[tuple[list[float], Draft]]) -> list[list[float]]:
    """Return the expected tokens that each depth adds, for the first 1, 2, … drafts merged into a tree."""
    depths = [0.0] * max((len(draft.tokens) for _, draft in ranked), default=0)
    nodes: set[tuple[int, ...]] = set()
    totals = []
    for survival, draft in ranked:
        for depth, alive in enumerate(survival):
            if (node := draft.tokens[: depth + 1]) not in nodes:
                nodes.add(node)
                depths[depth] = min(1.0, depths[depth] + alive)  # siblings exclude each other
        totals.append(list(depths))
    return totals
