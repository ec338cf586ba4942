"""Rejection sampling for drafted tokens: the output has the target's distribution for any drafts.

A rule gets the target's probabilities p after each drafted token, the probabilities q that each token was
drawn from, and ``uniform``, its only source of randomness. Its output, continued by the target, has the
target's joint distribution. Comparisons are written ``u < ratio``, so that NaN never accepts.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch

from fimserver.engine.sampling import require_finite
from fimserver.errors import NonFiniteError

Uniform = Callable[[], float]  # numbers in [0, 1), each independent of all before
# How far from 1 the sum of a drafter's row may be; the row is then divided by it. A float32 softmax over 150
# 000 tokens is within 1e-5.
ROUNDING = 1e-4


class Verdict(NamedTuple):
    """The number of accepted tokens of draft ``branch``, and the next token.

    ``token`` is drawn from the residual, or is the bonus token.
    """

    accepted: int
    token: int
    branch: int = 0


def probabilities(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the softmax of logits (n, V) in float64; at temperature 0 it is one-hot at the first maximum.

    Raises ``NonFiniteError`` on NaN or +infinity, and on a row that is all -infinity.
    """
    logits = require_finite(logits).double()
    best = logits.amax(-1, keepdim=True)
    if not bool((best > -torch.inf).all()):
        raise NonFiniteError("every token of a row is forbidden (-infinity); allow at least one")
    if temperature <= 0:
        return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).double()
    return ((logits - best) / temperature).softmax(-1)


def verify_tokens(
    target: torch.Tensor, draft: torch.Tensor | None, tokens: Sequence[int], uniform: Uniform
) -> Verdict:
    """Accept tokens in turn with min(1, p/q), replace the first rejected one (arXiv 2211.17192, algorithm 1).

    ``target`` (n+1, V). ``draft`` (n, V): row i is the distribution that ``tokens[i]`` was drawn from given
    the tokens before it; the draft may be cut where these decide, but not where the token cut off does.
    ``None`` stands for one-hot rows: exact for tokens chosen in any way, but they are accepted with p alone.
    A row of ``draft`` that is not a distribution, or gives its token no probability, ends the draft before
    that token. Raises ``NonFiniteError`` if a row of ``target`` is not a distribution.
    """
    return recursive_rejection((target,), (draft,), (tokens,), uniform)


def verify_block(
    target: torch.Tensor, draft: torch.Tensor | None, tokens: Sequence[int], uniform: Uniform
) -> Verdict:
    """Accept a prefix of the draft as a block (arXiv 2403.10444), on average no shorter than token by token.

    Arguments, conditions and errors are those of ``verify_tokens``. A prefix of weight w = min(1, w' p/q) is
    accepted, alone or as part of a longer one, with probability w; the longer ones account for
    sum(min(w p, q)). Prefixes are tried from the longest to the shortest, which is equivalent to the paper's
    order, as its random numbers are independent.
    """
    _require_distributions(target)
    rows: list[tuple[torch.Tensor, torch.Tensor]] = []
    weights = [1.0]
    for depth, token in enumerate(tokens):
        p = _distribution(target[depth])
        q = _proposal(draft, depth, token, p)
        if q is None:
            break
        rows.append((p, q))
        # Product first: 0 times an overflowing ratio would be NaN. Weight first: min(1, NaN) is 1.
        weights.append(min(weights[-1] * float(p[token]) / float(q[token]), 1.0))
    depth = len(rows)
    rest = target[depth]
    chance = weights[depth]
    while depth and not uniform() < chance:
        depth -= 1
        rest, chance = _block_rest(weights[depth], *rows[depth])
    return Verdict(depth, sample(rest, uniform))


def _block_rest(weight: float, p: torch.Tensor, q: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Return the weights (V,) of the token after a block that ends here, and the probability that it does."""
    rest = (weight * p - q).clamp(min=0)
    mass = float(rest.sum())
    return (rest, mass / (1 - weight + mass)) if mass > 0 else (p, 0.0)


def recursive_rejection(
    targets: Sequence[torch.Tensor],
    drafts: Sequence[torch.Tensor | None],
    tokens: Sequence[Sequence[int]],
    uniform: Uniform,
) -> Verdict:
    """Try the surviving drafts in turn at each depth, each against the residual that the one before it left.

    Recursive rejection of SpecInfer (arXiv 2305.09781) and SpecTr (arXiv 2310.15141), for K >= 1 drafts of
    any lengths n_k: ``targets[k]`` (n_k+1, V), ``drafts[k]`` (n_k, V) or ``None``, ``tokens[k]`` (n_k,);
    otherwise like ``verify_tokens``. ``branch`` is one of the drafts that begin with the accepted tokens; if
    several do, they have the same KV rows, so any of them will do.

    The rule is exact if each row of q is the distribution of its token given all tokens that the rule has
    read before it: those of every draft at lesser depths, and those of earlier drafts at this depth. By
    induction: let p' be the distribution that the next token must have. x ~ q is accepted with min(1, p'/q);
    if it is rejected, the token must have the distribution norm(max(p'-q, 0)). Which drafts survive depends
    on no deeper token, so deeper tokens keep the distributions of their rows.

    - Independent chains, and tokens that are independent given the prefix (one-pass drafters): each row is
      its token's distribution for any surviving draft. If two chains have the same token, both are tried; p'
      gives a rejected token probability 0.
    - Deterministic drafts, with distinct children or not: q is one-hot; x is accepted with p'(x), else p'
      loses x alone.
    - Siblings drawn without replacement: exact if q is the remaining distribution when the token was drawn.
    - One *drawn* token that several drafts share is one draw: all but the first of these drafts must give it
      as one-hot, or p' would be reduced twice for one draw.

    Survivors that have ended (or whose q is not a distribution) have no child at this depth and leave p' as
    it is: only the others are tried, and if none is accepted, the token is drawn from the residual. If one is
    accepted, the drafts that ended before it are dropped. If all have ended, p' is p: the bonus token.
    """
    for target in targets:
        _require_distributions(target)
    alive = list(range(len(targets)))  # the drafts that begin with the accepted tokens
    depth = 0
    while True:
        p = _distribution(targets[alive[0]][depth])
        going = {k: tokens[k][depth] for k in alive if depth < len(tokens[k])}
        proposals = {
            k: (x, q) for k, x in going.items() if (q := _proposal(drafts[k], depth, x, p)) is not None
        }
        token, rest = _try_in_turn(p, proposals, uniform)
        if token is None:
            return Verdict(depth, sample(rest, uniform), alive[0])
        alive = [k for k, (x, _) in proposals.items() if x == token]
        depth += 1


def _try_in_turn(
    p: torch.Tensor, proposals: Mapping[int, tuple[int, torch.Tensor]], uniform: Uniform
) -> tuple[int | None, torch.Tensor]:
    """Return the first accepted token, if any, and the residual (V,) of ``p`` after those before it."""
    for token, q in proposals.values():
        if uniform() < float(p[token]) / float(q[token]):
            return token, p
        rest = (p - q).clamp(min=0)
        mass = rest.sum()
        # Without mass, p equals q up to rounding, and the rejection was due to rounding as well.
        p = rest / mass if bool(mass > 0) else p
    return None, p


def _proposal(draft: torch.Tensor | None, depth: int, token: int, p: torch.Tensor) -> torch.Tensor | None:
    """Return the distribution q (V,) that ``token`` was drawn from; ``None`` if it cannot be such a draw."""
    if not 0 <= token < len(p):
        return None
    if draft is None:
        return torch.zeros_like(p).index_fill_(0, torch.tensor(token, device=p.device), 1.0)
    if depth >= len(draft) or draft.shape[-1] != len(p):
        return None
    q = draft[depth].to(p)
    total = float(q.sum())
    is_distribution = abs(total - 1) <= ROUNDING and bool((q >= 0).all())
    return q / total if is_distribution and float(q[token]) > 0 else None


def _distribution(row: torch.Tensor) -> torch.Tensor:
    """Normalise a checked row of the target in float64."""
    row = row.double()
    return row / row.sum()


def sample(weights: torch.Tensor, uniform: Uniform) -> int:
    """Draw a token in proportion to ``weights`` (V,) from one number (inverse CDF); never one of weight 0."""
    # Only tokens with weight are searched: a parallel cumsum need not be monotone, so that a search over all
    # tokens could find one of weight 0.
    support = weights.nonzero().squeeze(-1)
    cumulative = weights[support].double().cumsum(0)
    return int(support[bisect_right((cumulative / cumulative[-1]).cpu().numpy(), uniform())])


def _require_distributions(target: torch.Tensor) -> None:
    """Raise ``NonFiniteError`` unless every row of (n, V) is finite, not negative, and has a positive sum."""
    total = require_finite(target.sum(-1, dtype=torch.float64))
    if not bool((target >= 0).all()) or not bool((total > 0).all()):
        raise NonFiniteError(
            "a row of the model's probabilities is negative or all zero: its weights are damaged, download"
            " the model again"
        )
