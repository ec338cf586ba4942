"""Knows how a pass over drafts becomes tokens of the middle, rule by rule. Knows nothing of where drafts come from.

``Verifier`` is the seam. ``GumbelMaxVerifier`` is the default: the text is a function of prompt, seed and weights, so a draft stands as
far as it says the same. ``RejectionSampler`` keeps the distribution instead, by the rules of ``rules.py``.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch

from fimserver.engine.drafts import DecodeState, Draft, Pick
from fimserver.engine.rejection_sampling import (
    Uniform,
    Verdict,
    probabilities,
    recursive_rejection,
    sample,
    verify_block,
    verify_tokens,
)
from fimserver.engine.sampling import choose, hashed, require_finite
from fimserver.types import Request


class Accepted(NamedTuple):
    """Tokens that a pass gave: drafted ones that stand, then one of the target's own. ``branch`` holds their rows."""

    tokens: list[int]
    branch: int


class Verifier(Protocol):
    """One rule of acceptance. ``adaptive``: drafts may be cut by what they say without changing the distribution of the text."""

    adaptive: bool

    def picker(self, request: Request) -> Pick:
        """How a token is chosen from logits in this request, by drafters and by the target."""
        ...

    def accept(self, logits: torch.Tensor, drafts: Sequence[Draft], state: DecodeState) -> Accepted:
        """From logits (B, M, V) of a pass over the last id and the drafts after it, a branch each."""
        ...


class GumbelMaxVerifier:
    """token = argmax(logits / T + G(seed, position)); accept what equals it (arXiv 2408.07978). Greedy is its limit."""

    adaptive = True

    def picker(self, request: Request) -> Pick:
        return lambda logits, offset: (choose(logits, request.temperature, request.seed, offset), None)

    def accept(self, logits: torch.Tensor, drafts: Sequence[Draft], state: DecodeState) -> Accepted:
        require_finite(logits)
        chosen = logits.argmax(-1).tolist() if state.request.temperature <= 0 else None
        alive = list(range(len(drafts)))
        branch, tokens = 0, list[int]()
        for row in range(logits.shape[1]):
            token = chosen[branch][row] if chosen else state.pick(logits[branch, row], len(state.ids) + row)[0]
            tokens.append(token)
            alive = [b for b in alive if row < len(drafts[b].tokens) and drafts[b].tokens[row] == token]
            if not alive:
                break
            branch = alive[0]
        return Accepted(tokens, branch)


Rule = Callable[[Sequence[torch.Tensor], Sequence[torch.Tensor | None], Sequence[Sequence[int]], Uniform], Verdict]


class RejectionSampler:
    """Accept with min(1, p / q), else the residual: the distribution of the text is the target's, whatever the drafts."""

    adaptive = False

    def __init__(self, rule: Rule) -> None:
        self.rule = rule

    def picker(self, request: Request) -> Pick:
        draws = random.Random(hashed(request.seed, "draw"))

        def pick(logits: torch.Tensor, offset: int) -> tuple[int, torch.Tensor | None]:  # noqa: ARG001 - the seam
            if request.temperature <= 0:
                return int(logits.argmax()), None
            distribution = probabilities(logits[None], request.temperature)[0]
            return sample(distribution, draws.random), distribution

        return pick

    def accept(self, logits: torch.Tensor, drafts: Sequence[Draft], state: DecodeState) -> Accepted:
        targets = [
            probabilities(logits[b, : len(drafts[b].tokens) + 1 if drafts else 1], state.request.temperature)
            for b in range(len(drafts) or 1)
        ]
        uniform = random.Random(hashed(state.request.seed, f"accept/{len(state.ids)}")).random
        if not drafts:
            return Accepted([sample(targets[0][0], uniform)], 0)
        verdict = self.rule(targets, [d.marginals for d in drafts], [d.tokens for d in drafts], uniform)
        return Accepted([*drafts[verdict.branch].tokens[: verdict.accepted], verdict.token], verdict.branch)


def _first(rule: Callable[..., Verdict]) -> Rule:
    """A rule for one draft, as a rule for several: the others are not looked at."""
    return lambda targets, drafts, tokens, uniform: rule(targets[0], drafts[0], tokens[0], uniform)


VERIFIERS: Mapping[str, Callable[[], Verifier]] = {
    "keyed": GumbelMaxVerifier,
    "token": lambda: RejectionSampler(_first(verify_tokens)),
    "block": lambda: RejectionSampler(_first(verify_block)),
    "recursive": lambda: RejectionSampler(recursive_rejection),
}
