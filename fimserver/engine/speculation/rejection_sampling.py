"""Rejection sampling for drafted tokens: what is emitted has the target's distribution, whatever was drafted.

A rule gets the target's probabilities p after each drafted token, the probabilities q that each token was
drawn from, and ``uniform``, its only source of chance. Its output, completed by the target itself, has the
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
# How far from 1 a drafter's row may sum: a float32 softmax over 150 000 tokens is within 1e-5. It is divided
# by its sum.
ROUNDING = 1e-4


class Verdict(NamedTuple):
    """So many tokens of draft ``branch`` are accepted.

    ``token`` follows, from the residual or as the bonus token.
    """

    accepted: int
    token: int
    branch: int = 0


def probabilities(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Softmax of each row of (n, V) logits in float64; at temperature 0 one-hot at the first maximum.

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
    """Accept tokens in turn with min(1, p/q), replace the first rejected (arXiv 2211.17192, algorithm 1).

    ``target`` (n+1, V); ``draft`` (n, V), row i the distribution that ``tokens[i]`` was drawn from given the
    tokens before it, at a length that may depend on these but not on the token cut off there. Or ``draft`` is
    ``None``, a one-hot q: exact for any tokens of any length, however they were chosen, but they are accepted
    with p alone. A row of ``draft`` that is no distribution, or gives its token no probability, ends the
    draft before that token. Raises ``NonFiniteError`` if a row of ``target`` is no distribution.
    """
    return recursive_rejection((target,), (draft,), (tokens,), uniform)


def verify_block(
    target: torch.Tensor, draft: torch.Tensor | None, tokens: Sequence[int], uniform: Uniform
) -> Verdict:
    """Accept the longest prefix of the draft as a block (arXiv 2403.10444).

    Never shorter on average than token by token.

    Arguments, conditions and errors as ``verify_tokens``. A prefix of weight w = min(1, w' p/q) is accepted,
    itself or as part of a longer one, with chance w: the longer ones have sum(min(w p, q)) of it, and the
    draft may end at any prefix, since the rest is settled there. From the end backwards, since the paper
    draws all its numbers independently.
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
    """Distribution (V,) of the token after a block that ends here, and the chance that it ends here."""
    rest = (weight * p - q).clamp(min=0)
    mass = float(rest.sum())
    return (rest, mass / (1 - weight + mass)) if mass > 0 else (p, 0.0)


def recursive_rejection(
    targets: Sequence[torch.Tensor],
    drafts: Sequence[torch.Tensor | None],
    tokens: Sequence[Sequence[int]],
    uniform: Uniform,
) -> Verdict:
    """Try the surviving drafts in turn at each depth, each against what the one before it left of the target.

    SpecInfer (arXiv 2305.09781), SpecTr (arXiv 2310.15141). K >= 1 drafts of any lengths n_k: ``targets[k]``
    (n_k+1, V), ``drafts[k]`` (n_k, V) or ``None``, ``tokens[k]`` (n_k,); otherwise as ``verify_tokens``.
    ``branch`` is one draft that begins with the accepted tokens; where several do, they share cache and rows,
    so any of them would do.

    Exact if each row of q is the distribution of its token given all that the rule looks at before it: every
    draft's tokens at lesser depths, and the earlier drafts' tokens at this one. By induction: p' is the
    distribution that the next token must still have; x ~ q is accepted with min(1, p'/q), and if rejected,
    norm(max(p'-q, 0)) is the distribution that the token must still have. Choosing a survivor looks at no
    deeper token, so that the deeper tokens keep the distributions that their rows say.

    - Independent chains, and tokens that are independent given the prefix (one-pass drafters): each row is
      its token's distribution,
      whichever draft survives. Two chains that happen on the same token are both tried; p' has none of a
      rejected token.
    - Deterministic drafts, children distinct or not: q one-hot; x is accepted with p'(x), else p' loses x and
      nothing more.
    - Siblings drawn without replacement: if q is what was left when the token was drawn.
    - One *drawn* token that several drafts share is one draw, not several: all but the first of these drafts
      must give it as one-hot, or p' would be lowered a second time by a draw that was never made.

    Survivors that have ended (or whose q is no distribution) while others go on have no child here: trying
    nothing leaves p' as it is, so only the others are tried, and if none is accepted the token comes from
    what they left of p. If one is accepted, those that ended before it are out. If all have ended, p' is p:
    the bonus token.
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
    """The first accepted token, if any, and what the ones before it left of ``p``, (V,)."""
    for token, q in proposals.values():
        if uniform() < float(p[token]) / float(q[token]):
            return token, p
        rest = (p - q).clamp(min=0)
        mass = rest.sum()
        # No mass: p is q up to rounding, so that a rejection is rounding too.
        p = rest / mass if bool(mass > 0) else p
    return None, p


def _proposal(draft: torch.Tensor | None, depth: int, token: int, p: torch.Tensor) -> torch.Tensor | None:
    """The distribution q that ``token`` was drawn from, (V,) like ``p``.

    ``None`` if there cannot have been such a draw.
    """
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
    """A checked row of the target, float64 with sum 1."""
    row = row.double()
    return row / row.sum()


def sample(weights: torch.Tensor, uniform: Uniform) -> int:
    """Draw a token in proportion to (V,) ``weights`` from one number (inverse CDF); never one of weight 0."""
    # Only tokens with weight: a parallel cumsum need not be monotone, so searching all could land on one
    # without.
    support = weights.nonzero().squeeze(-1)
    cumulative = weights[support].double().cumsum(0)
    return int(support[bisect_right((cumulative / cumulative[-1]).cpu().numpy(), uniform())])


def _require_distributions(target: torch.Tensor) -> None:
    """Raise ``NonFiniteError`` unless every row of (n, V) is finite and not negative, and has a sum."""
    total = require_finite(target.sum(-1, dtype=torch.float64))
    if not bool((target >= 0).all()) or not bool((total > 0).all()):
        raise NonFiniteError(
            "a row of the model's probabilities is negative or all zero; its weights or logits are broken"
        )
