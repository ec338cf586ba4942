"""Canvas length for models that were not trained to find it, by calibrated search (CAL, arXiv 2602.00476).

The mean confidence of a fully masked canvas of n slots, divided by the bias of n, is highest near the right
length.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Generator, Sequence

import torch

from fimserver.engine.denoising.canvas import CanvasForward, predicting
from fimserver.engine.denoising.draws import columns
from fimserver.engine.forward.passes import Pass, until_spent
from fimserver.types import Deadline

LENGTHS = (2, 4, 6, 8, 12, 16, 24, 32, 48, 64)
Bias = Callable[[int], float]  # of a number of slots


def bias(slots: int) -> float:
    """Return the part of the mean confidence of ``slots`` masks that depends on their number alone (CAL)."""
    return 1.00 * math.exp(-1.77 * slots) + 0.56 * math.exp(-0.06 * slots) + 0.24


def bias_of(table: Sequence[float]) -> Bias:
    """Return a bias that interpolates ``table``, given for the first ``LENGTHS``, and is constant beyond."""

    def measured(slots: int) -> float:
        right = min(bisect_left(LENGTHS, slots), len(table) - 1)
        left = max(0, right - 1)
        if right == left or slots >= LENGTHS[right]:
            return table[right]
        part = max(0.0, (slots - LENGTHS[left]) / (LENGTHS[right] - LENGTHS[left]))
        return table[left] + part * (table[right] - table[left])

    return measured


def masked_confidence(
    canvas: CanvasForward, slots: int, mask: int, forbidden: Sequence[int]
) -> Generator[Pass, None, float]:
    """Run ``slots`` masks; return the mean probability of the likeliest tokens."""
    logits = (yield from predicting(canvas, [mask] * slots)).float().clone()
    logits.index_fill_(1, columns(tuple(forbidden), logits.device), -torch.inf)
    return float(logits.softmax(-1).amax(-1).mean())


def search_length(
    canvas: CanvasForward,
    mask: int,
    forbidden: Sequence[int],
    limit: int,
    deadline: Deadline,
    patience: int = 3,
    at_least: int = 0,
    curve: Bias = bias,
) -> Generator[Pass, None, int]:
    """Try ``LENGTHS`` up to ``limit``, one pass each, until ``patience`` consecutive ones are worse.

    Returns the best length so far when the deadline passes. ``at_least``: the shortest length to try.
    ``curve``: the bias of each length.
    """
    tried = [n for n in LENGTHS if at_least <= n <= limit] or [min(limit, LENGTHS[-1])]
    best = tried[0]
    best_score = -1.0
    worse = 0
    for slots in tried:
        if deadline.spent() or worse >= patience:
            break
        sure = yield from until_spent(masked_confidence(canvas, slots, mask, forbidden), deadline)
        if sure is None:
            break
        score = sure / curve(slots)
        best, best_score, worse = (slots, score, 0) if score > best_score else (best, best_score, worse + 1)
    return best
