"""Canvas length for models that were not trained to find it: how many slots to start with.

Calibrated search (CAL, arXiv 2602.00476): the mean confidence of a fully masked canvas of n slots, divided by
the bias that every n has, is highest near the right length.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from fimserver.engine.canvas import CanvasForward
from fimserver.types import Deadline

LENGTHS = (2, 4, 6, 8, 12, 16, 24, 32, 48, 64)


def bias(slots: int) -> float:
    """Mean confidence of ``slots`` masks that does not depend on the context (CAL, fitted on Dream)."""
    return 1.00 * math.exp(-1.77 * slots) + 0.56 * math.exp(-0.06 * slots) + 0.24


def search_length(
    canvas: CanvasForward,
    mask: int,
    forbidden: Sequence[int],
    limit: int,
    deadline: Deadline,
    patience: int = 3,
    at_least: int = 0,
) -> int:
    """Try ``LENGTHS`` up to ``limit``, one forward each; stop after ``patience`` worse ones in a row.

    Returns the best.

    ``at_least``: shorter ones are not tried.
    """
    tried = [n for n in LENGTHS if at_least <= n <= limit] or [min(limit, LENGTHS[-1])]
    best = tried[0]
    best_score = -1.0
    worse = 0
    for slots in tried:
        if deadline.spent() or worse >= patience:
            break
        logits = canvas.predict([mask] * slots).float().clone()
        logits[:, list(forbidden)] = -torch.inf
        score = float(logits.softmax(-1).amax(-1).mean()) / bias(slots)
        best, best_score, worse = (slots, score, 0) if score > best_score else (best, best_score, worse + 1)
    return best
