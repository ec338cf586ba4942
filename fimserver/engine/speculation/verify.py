"""Verifiers: turn the logits of a pass over drafts into tokens of the middle.

``GumbelMaxVerifier`` is the default: the text is a function of prompt, seed and weights, and a draft is
accepted as far as it equals that text. ``RejectionSampler`` keeps the distribution of the text instead
(``rejection_sampling.py``).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch

from fimserver.engine.sampling import Words, choose, choose_rows, hashed, require_finite
from fimserver.engine.speculation.drafts import DecodeState, Draft, Pick
from fimserver.engine.speculation.rejection_sampling import (
    Uniform,
    Verdict,
    probabilities,
    recursive_rejection,
    sample,
    verify_block,
    verify_tokens,
)
from fimserver.types import Request


class Accepted(NamedTuple):
    """The accepted draft tokens and one token of the target. ``branch``: the one with their KV rows."""

    tokens: list[int]
    branch: int


class Verifier(Protocol):
    """Decides which draft tokens are accepted.

    ``adaptive``: the length of a draft may depend on its tokens.
    """

    adaptive: bool

    def picker(self, request: Request) -> Pick:
        """Return the function by which drafters and target of a request choose tokens from logits."""
        ...

    def accept(self, logits: torch.Tensor, drafts: Sequence[Draft], state: DecodeState) -> Accepted:
        """Accept tokens by logits (B, M, V) of the last id and the drafts after it, one draft per branch."""
        ...


class GumbelMaxVerifier:
    """Accepts a token that equals argmax(logits / T + G(seed, position)) (arXiv 2408.07978).

    At temperature 0 it is greedy.
    """

    adaptive = True

    def __init__(self, *, at_once: bool | None = None) -> None:
        """``at_once``: choose the tokens of all rows of a pass together; ``None``: on a GPU alone.

        A GPU is then waited for once. On a CPU, choosing in rows that no draft reaches would cost more time.
        """
        self.at_once = at_once

    def picker(self, request: Request) -> Pick:
        temperature = request.sampling.temperature
        seed = request.sampling.seed
        return lambda logits, offset, words=None: (
            choose_rows(logits[None], temperature, seed, offset, words)[0],
            None,
        )

    def accept(self, logits: torch.Tensor, drafts: Sequence[Draft], state: DecodeState) -> Accepted:
        sampling = state.request.sampling
        at_once = logits.is_cuda if self.at_once is None else self.at_once
        chosen: list[list[int]] | None = None
        if at_once:
            chosen = choose_rows(logits, sampling.temperature, sampling.seed, len(state.ids))
        else:
            require_finite(logits)
        alive = list(range(len(drafts)))
        branch = 0
        tokens = list[int]()
        for row in range(logits.shape[1]):
            token = (
                chosen[branch][row]
                if chosen
                else choose(logits[branch, row], sampling.temperature, sampling.seed, len(state.ids) + row)
            )
            tokens.append(token)
            alive = [b for b in alive if row < len(drafts[b].tokens) and drafts[b].tokens[row] == token]
            if not alive:
                break
            branch = alive[0]
        return Accepted(tokens, branch)


Rule = Callable[
    [Sequence[torch.Tensor], Sequence[torch.Tensor | None], Sequence[Sequence[int]], Uniform], Verdict
]


class RejectionSampler:
    """Accepts with probability min(1, p / q), else draws from the residual (``rejection_sampling.py``).

    The text has the target's distribution.
    """

    adaptive = False

    def __init__(self, rule: Rule) -> None:
        self.rule = rule

    def picker(self, request: Request) -> Pick:
        draws = random.Random(hashed(request.sampling.seed, "draw"))

        def pick(
            logits: torch.Tensor,
            offset: int,  # noqa: ARG001 - Pick
            words: Words | None = None,
        ) -> tuple[list[int], torch.Tensor | None]:
            if request.sampling.temperature <= 0:
                best = logits.argmax(-1)
                return (words.ids[best] if words else best).tolist(), None
            drawn_from = probabilities(logits, request.sampling.temperature)
            if words:
                whole = drawn_from.new_zeros(len(drawn_from), words.vocab_size)
                drawn_from = whole.index_copy_(1, words.ids, drawn_from)
            return [sample(row, draws.random) for row in drawn_from], drawn_from

        return pick

    def accept(self, logits: torch.Tensor, drafts: Sequence[Draft], state: DecodeState) -> Accepted:
        targets = [
            probabilities(
                logits[b, : len(drafts[b].tokens) + 1 if drafts else 1], state.request.sampling.temperature
            )
            for b in range(len(drafts) or 1)
        ]
        uniform = random.Random(hashed(state.request.sampling.seed, f"accept/{len(state.ids)}")).random
        if not drafts:
            return Accepted([sample(targets[0][0], uniform)], 0)
        verdict = self.rule(targets, [d.marginals for d in drafts], [d.tokens for d in drafts], uniform)
        return Accepted([*drafts[verdict.branch].tokens[: verdict.accepted], verdict.token], verdict.branch)


def _first(rule: Callable[..., Verdict]) -> Rule:
    """Make a rule for several drafts from one for a single draft: it verifies the first."""
    return lambda targets, drafts, tokens, uniform: rule(targets[0], drafts[0], tokens[0], uniform)


VERIFIERS: Mapping[str, Callable[[], Verifier]] = {
    "keyed": GumbelMaxVerifier,
    "token": lambda: RejectionSampler(_first(verify_tokens)),
    "block": lambda: RejectionSampler(_first(verify_block)),
    "recursive": lambda: RejectionSampler(recursive_rejection),
}
