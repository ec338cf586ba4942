"""Forward pass of a drafter at many anchors of many texts at once.

A drafter that is used sees exactly the same: the hidden state that gave the last known token, its embedding,
and the keys and values before it.
"""

from __future__ import annotations

import torch

from fimserver.engine.drafters.nets import BlockNetwork, Heads
from fimserver.engine.forward.layers import bias_of
from models.training.anchors import Batch
from models.training.target import Frozen, Seen


class BorrowedKV:
    """Keys and values of the text, one layer of the target for each layer of the drafter.

    Those of the slots follow.
    """

    def __init__(self, layers: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        self.layers = layers

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, index: int, /
    ) -> tuple[torch.Tensor, torch.Tensor]:
        text_keys, text_values = self.layers[index]
        return torch.cat([text_keys.to(keys.dtype), keys], 2), torch.cat(
            [text_values.to(values.dtype), values], 2
        )


def taught(net: Heads | BlockNetwork, seen: Seen, batch: Batch) -> Batch:
    """Return a batch with the tokens of the target as targets, if they are known.

    If the drafter has ``words``, targets are indices into them.
    """
    batch = batch if seen.own is None else batch.as_written(seen.own)
    return batch if net.words is None else batch.within(net.words)


def outputs(net: Heads | BlockNetwork, target: Frozen, seen: Seen, batch: Batch) -> torch.Tensor:
    """Inputs of the target's head (B, A, W, d) for the tokens after every anchor of the batch."""
    if isinstance(net, Heads):
        return heads_outputs(net, target, seen, batch)
    return block_outputs(net, target, seen, batch.at, *batch.slots(net.shape.window))


def heads_outputs(net: Heads, target: Frozen, seen: Seen, batch: Batch) -> torch.Tensor:
    """Return the outputs (K, …, d) of the heads after every anchor."""
    token = target.embed(batch.ids.gather(1, batch.at))  # (B, A, d)
    x: torch.Tensor = net(_before(seen.hidden, batch.at).flatten(0, 1), token.flatten(0, 1))
    return x.transpose(0, 1).reshape(*batch.at.shape, *x.shape[::2])


def block_outputs(
    net: BlockNetwork, target: Frozen, seen: Seen, at: torch.Tensor, slots: torch.Tensor, masked: torch.Tensor
) -> torch.Tensor:
    """Outputs of the block drafter for slots (B, A, W + 1), after the last known tokens ``at`` (B, A).

    All windows of a row are one sequence after the text; the attention bias separates them.
    """
    count, anchors, width = slots.shape
    x = net.inputs(
        _before(seen.hidden, at).flatten(0, 1), target.embed(slots).flatten(0, 1), masked.flatten(0, 1)
    )
    positions = (at[..., None] + torch.arange(width, device=at.device)).flatten(1)  # (B, M), M = A * (W + 1)
    mask = visible(at, width, seen.hidden.shape[1])
    stack = net.stack(len(x) * width, pack=False)
    kv = BorrowedKV([seen.layers[i] for i in net.shape.borrowed])
    x = net.run(stack, x.flatten(0, 1), target.rope(positions), bias_of(mask, x.dtype), kv)
    return x.view(count, anchors, width, -1)[:, :, 1:]


def visible(at: torch.Tensor, width: int, extent: int) -> torch.Tensor:
    """Return the attention mask (B, 1, M, extent + M) of slots.

    A slot sees the text before its anchor ``at`` (B, A), and its own window.
    """
    count, anchors = at.shape
    slots = anchors * width
    text = (
        torch.arange(extent, device=at.device) < at.repeat_interleave(width, 1)[..., None]
    )  # (B, M, extent)
    window = torch.arange(slots, device=at.device) // width
    own = (window[:, None] == window).expand(count, slots, slots)
    return torch.cat([text, own], 2)[:, None]


def _before(hidden: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Hidden states (B, A, d) of the rows that gave the tokens ``at`` (B, A)."""
    return hidden.gather(1, (at - 1)[..., None].expand(-1, -1, hidden.shape[2]))
