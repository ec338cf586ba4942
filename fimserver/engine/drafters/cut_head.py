"""Reduces the target's head to a drafter's tokens; the whole one takes a fifth of a small coder's pass."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from fimserver.engine.forward.int8 import Int8Linear
from fimserver.engine.forward.layers import Linear
from fimserver.engine.forward.network import Network
from fimserver.engine.sampling import Words
from fimserver.errors import LoadError

_ROWS = 32  # columns of the head's matrix that are read at a time, each as long as the vocabulary


def words_of(network: Network, ids: torch.Tensor | None) -> Words | None:
    """Return the tokens whose ``ids`` are in a drafter's file; ``None``: all.

    Raises ``LoadError`` if the target has no such tokens.
    """
    if ids is None:
        return None
    if not bool((ids[1:] > ids[:-1]).all() & (ids[0] >= 0) & (ids[-1] < network.vocab_size)):
        raise LoadError(
            "the drafter's words are not in ascending order, or not of this model: train the drafter again"
        )
    return Words(ids.long().to(network.device), network.vocab_size)


def cut_head(network: Network, words: Words | None, width: int) -> Linear:
    """Return the head of ``network`` for ``words``: from (N, width) to logits (N, n), as the head gives them.

    ``words`` ``None``: the head itself.
    """
    if words is None:
        return network.head
    if isinstance(network.head, Int8Linear):
        return network.head.cut(words.ids)
    weight = head_rows(network, words.ids, width)
    return lambda x: F.linear(x, weight)


@torch.no_grad()
def head_rows(network: Network, words: torch.Tensor, width: int) -> torch.Tensor:
    """Return the rows (n, width) of the head's matrix for ``words`` (ids), by products with unit vectors."""
    units = torch.split(torch.eye(width, device=network.device, dtype=network.dtype), _ROWS)
    return torch.cat([network.head(some)[:, words] for some in units]).T.contiguous()
