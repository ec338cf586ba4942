"""Reduces the target's head to a drafter's tokens; the whole one takes a fifth of a small coder's pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

from fimserver.engine.forward.int8 import Int8Linear, quantize_weight
from fimserver.engine.forward.network import Network

_ROWS = 32  # columns of the head's matrix that are read at a time, each as long as the vocabulary


def cut_head(
    network: Network, words: torch.Tensor | None, width: int
) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function from what the head of ``network`` sees, (N, width), to its logits (N, V) of ``words`` (ids).

    Those of other tokens are -infinity. ``words`` ``None``: the head itself.
    """
    if words is None:
        return network.head
    weight = head_rows(network, words, width)
    product = (
        Int8Linear(*quantize_weight([weight]))
        if isinstance(network.head, Int8Linear)
        else lambda x: F.linear(x, weight)
    )

    def cut(x: torch.Tensor) -> torch.Tensor:
        logits = x.new_full((len(x), network.vocab_size), -torch.inf)
        return logits.index_copy_(1, words, product(x))

    return cut


@torch.no_grad()
def head_rows(network: Network, words: torch.Tensor, width: int) -> torch.Tensor:
    """Return the rows (n, width) of the head's matrix for ``words``, by products with unit vectors."""
    units = torch.split(torch.eye(width, device=network.device, dtype=network.dtype), _ROWS)
    return torch.cat([network.head(some)[:, words] for some in units]).T.contiguous()
