"""Knows which masked slots a denoising step commits. Knows nothing of models or of the canvas.

A schedule gets the proposals for n masked slots, from left to right, and returns the indices (into those n) to commit: at least one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from fimserver.engine.sampling import SlotProposals

Schedule = Callable[[SlotProposals], list[int]]


def threshold(level: float = 0.9, limit: int = 64) -> Schedule:
    """All slots whose probability reaches ``level``, at most ``limit``, and always the best (Fast-dLLM, 2505.22618)."""

    def commit(candidates: SlotProposals) -> list[int]:
        order = _best_first(candidates.probability)[:limit]
        passed = [i for i in order if float(candidates.probability[i]) >= level]
        return passed or order[:1]

    return commit


def leftmost(level: float = 0.9) -> Schedule:
    """The leftmost slot, and with it all others whose probability reaches ``level``: what is shown grows at every step."""

    def commit(candidates: SlotProposals) -> list[int]:
        sure = [i for i in _best_first(candidates.probability) if i > 0 and float(candidates.probability[i]) >= level]
        return [0, *sure]

    return commit


def factor(f: float = 1.0) -> Schedule:
    """The first r slots with confidence of rank r at least 1 - f / (r + 1) (Fast-dLLM, factor decoding)."""

    def commit(candidates: SlotProposals) -> list[int]:
        order = _best_first(candidates.probability)
        rank = 1
        while rank < len(order) and float(candidates.probability[order[rank]]) >= 1 - f / (rank + 2):
            rank += 1
        return order[:rank]

    return commit


def entropy_bound(gamma: float = 0.1) -> Schedule:
    """The k slots of lowest entropy with the sum of all but the largest at most ``gamma`` (EB-sampler, 2505.24857)."""

    def commit(candidates: SlotProposals) -> list[int]:
        order = _best_first(-candidates.entropy)
        total, k = float(candidates.entropy[order[0]]), 1
        while k < len(order) and total <= gamma:
            total += float(candidates.entropy[order[k]])
            k += 1
        return order[:k]

    return commit


def entropy(count: int = 1) -> Schedule:
    """The ``count`` slots of lowest entropy (Dream)."""
    return lambda candidates: _best_first(-candidates.entropy)[:count]


def margin(count: int = 1) -> Schedule:
    """The ``count`` slots with the largest gap between the two likeliest tokens (Dream, top-k margin)."""
    return lambda candidates: _best_first(candidates.margin)[:count]


def fixed(count: int = 1) -> Schedule:
    """The ``count`` likeliest slots (LLaDA, low-confidence remasking)."""
    return lambda candidates: _best_first(candidates.probability)[:count]


SCHEDULES: Mapping[str, Callable[..., Schedule]] = {
    "threshold": threshold,
    "leftmost": leftmost,
    "factor": factor,
    "entropy_bound": entropy_bound,
    "entropy": entropy,
    "margin": margin,
    "fixed": fixed,
}


def _best_first(confidence: torch.Tensor) -> list[int]:
    """Indices by falling confidence; ties keep their order from left to right."""
    return [int(i) for i in confidence.sort(descending=True, stable=True).indices]
