"""Losses of drafters.

They are means over windows (N, W). ``logq``: log probabilities of the right tokens; ``learn``: mask of the
slots to learn, a run from the first masked slot to the end of the window or of the text.
"""

from __future__ import annotations

import torch

NAMES = ("ce", "kl", "tv", "streak", "ce-streak")


def decayed(values: torch.Tensor, learn: torch.Tensor, gamma: float) -> torch.Tensor:
    """Mean of values (N, W) with weight exp(-r / gamma) on the blank slot of rank r.

    Early ones decide what is accepted. 0 if there is nothing to learn.
    """
    weights = torch.exp((1 - learn.cumsum(-1)) / gamma) * learn
    return (values.masked_fill(~learn, 0) * weights).sum() / weights.sum().clamp(min=1e-6)


def cross_entropy(logq: torch.Tensor, learn: torch.Tensor, gamma: float) -> torch.Tensor:
    """``ce``: -log q_j(y_j)."""
    return decayed(-logq, learn, gamma)


def total_variation(q: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """``tv`` of distributions (…, V), (…): 1 less it is what rejection sampling accepts."""
    return (q - p).abs().sum(-1) / 2


def divergence(logits: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """``kl`` of logits and the target's distributions (…, V), (…).

    Every draw of the target teaches at once, where ``ce`` sees its likeliest token alone.
    """
    values: torch.Tensor = (torch.special.xlogy(p, p) - p * logits.log_softmax(-1)).sum(-1)
    return values


def survival(logq: torch.Tensor, learn: torch.Tensor) -> torch.Tensor:
    """Probability (N, W) that a drawn draft is right up to and with each blank slot; 0 elsewhere."""
    return torch.exp(logq.masked_fill(~learn, 0).cumsum(-1)) * learn


def streak(logq: torch.Tensor, learn: torch.Tensor) -> torch.Tensor:
    """``streak``: the negative expected accepted length, -sum_j prod_{i <= j} q_i(y_i) (arXiv 2511.00606).

    The value itself, not its logarithm, which trains as stably and gains less. Flat where nothing is right
    yet: it starts from weights that cross entropy has trained.
    """
    return -survival(logq, learn).sum(-1).mean()


def streak_of_ce(logq: torch.Tensor, learn: torch.Tensor) -> torch.Tensor:
    """``ce-streak``, the form of the paper's release.

    -log q_j(y_j), weighted with the survival up to j, held constant.
    """
    logq = logq.masked_fill(~learn, 0)
    reached = torch.exp(logq.detach().cumsum(-1) - logq.detach()) * learn
    return -(reached * logq).sum(-1).mean()
