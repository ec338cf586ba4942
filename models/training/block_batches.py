"""Block drafter at many anchors of packed texts: drawn, run and scored by tensor operations alone, for a GPU.

An anchor is the last known token of a text; the slots after it learn what the frozen coder itself would write
there, as long as the text goes on in the same way (``anchors.py`` has the same for nano).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from fimserver.engine.drafters.nets import BlockNetwork, BlockShape
from fimserver.engine.forward.attention import attend, attend_by_products
from fimserver.engine.forward.layers import bias_of
from models.training import losses
from models.training.canvas_batches import Read, TextBatch
from models.training.canvas_data import FIRST_DRAFT
from models.training.canvas_model import Coder
from models.training.target import Rope

GAMMA = 4.0  # decay of the weight of later slots
PLAIN_WEIGHT = 0.3  # of the loss without the sampler, which chooses the tokens that the sampler scores
QUERY_RMS = 1.0  # of the queries of new layers, whose scores then do not saturate


@dataclass(frozen=True)
class Base:
    """A frozen coder with what a drafter of some of its tokens needs.

    ``rope``: cosines and sines (positions, D). ``words``: ids, ascending, of the tokens that are drafted;
    ``head``: their rows of the coder's head; ``place``: for each token, its place in ``words``, or -1.
    """

    coder: Coder
    rope: Rope
    words: torch.Tensor
    head: torch.Tensor
    place: torch.Tensor

    @classmethod
    def of(cls, coder: Coder, rope: Rope, words: torch.Tensor) -> Base:
        words = words.to(coder.device)
        place = torch.full((len(coder.head),), -1, device=coder.device)
        place[words] = torch.arange(len(words), device=coder.device)
        cos, sin = (t.to(coder.device, coder.dtype) for t in rope)
        return cls(coder, (cos, sin), words, coder.head[words].contiguous(), place)


class Anchors(NamedTuple):
    """Last known tokens: numbers of their texts in the batch, and their places, both (N,)."""

    row: torch.Tensor
    at: torch.Tensor


class Followed(NamedTuple):
    """What follows N anchors in W slots.

    ``own`` (N, W): what the coder writes there, as places in the drafter's words, -1 for others. ``reached``
    (N, W): whether the text has all that the coder would have written before. ``learn`` (N, W): reached, and
    all tokens up to and with this one can be drafted. ``before`` (N, W): places of the tokens before.
    """

    own: torch.Tensor
    reached: torch.Tensor
    learn: torch.Tensor
    before: torch.Tensor


def draw_anchors(batch: TextBatch, most: int, generator: torch.Generator | None = None) -> Anchors:
    """Up to ``most`` anchors in prefix and middle of a batch, at random; ``None``: all, in order."""
    at = torch.arange(batch.ids.shape[1])
    usable = (at >= batch.prefix_at[:, None] + FIRST_DRAFT) & (at <= batch.length[:, None] - 2)
    row, place = usable.nonzero(as_tuple=True)
    if generator is None:
        return Anchors(row[:most], place[:most])
    chosen = torch.randperm(len(row), generator=generator)[:most].sort().values
    return Anchors(row[chosen], place[chosen])


def follow(base: Base, batch: TextBatch, seen: Read, anchors: Anchors, window: int) -> Followed:
    """The coder's own tokens after every anchor, while the text agrees with them."""
    last = batch.ids.shape[1] - 1
    before = anchors.at[:, None] + torch.arange(window, device=anchors.at.device)
    inside = before <= (batch.length - 2)[anchors.row][:, None]
    before = before.clamp(max=last)
    row = anchors.row[:, None]
    own = seen.own[row, before]
    same = own == batch.ids[row, (before + 1).clamp(max=last)]
    reached = inside & F.pad(same[:, :-1], (1, 0), value=True).cumprod(1).bool()
    place = base.place[own]
    return Followed(place, reached, reached & (place >= 0).cumprod(1).bool(), before)


class _Texts:
    """Keys and values of the text before each anchor, then those of its slots."""

    def __init__(self, kv: Sequence[torch.Tensor], row: torch.Tensor) -> None:
        self.kv = kv
        self.row = row

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, index: int, /
    ) -> tuple[torch.Tensor, torch.Tensor]:
        text = self.kv[index]
        joined = [
            torch.cat([part[self.row], new.to(part.dtype)], 2)
            for part, new in zip(text, (keys, values), strict=True)
        ]
        return joined[0], joined[1]


def outputs(net: BlockNetwork, base: Base, batch: TextBatch, seen: Read, anchors: Anchors) -> torch.Tensor:
    """Inputs of the head (N, W, d) for all slots, masked all."""
    coder = base.coder
    width = net.shape.window + 1
    place = torch.arange(width, device=anchors.at.device)
    masked = (place > 0).expand(len(anchors.at), -1)
    token = coder.embedding[batch.ids[anchors.row, anchors.at]].float()
    hidden = seen.hidden[anchors.row, anchors.at - 1].float()
    x = net.inputs(hidden, token[:, None].expand(-1, width, -1), masked)
    positions = (anchors.at[:, None] + place).flatten()
    rope = base.rope[0][positions, None], base.rope[1][positions, None]
    text = torch.arange(batch.ids.shape[1], device=anchors.at.device) < anchors.at[:, None]
    mask = F.pad(text, (0, width), value=True)[:, None, None]
    bias = bias_of(mask, coder.dtype).expand(-1, net.shape.kv_heads, width, -1)
    stack = net.stack(x.shape[0] * width, pack=False)
    # Their inputs are products, which have the coder's type; rms_norm is slow if its weight has another.
    stack.layers = tuple(
        layer._replace(q_norm=_cast(layer.q_norm, coder.dtype), k_norm=_cast(layer.k_norm, coder.dtype))
        for layer in stack.layers
    )
    stack.attention = attend_by_products if coder.dtype == torch.bfloat16 else attend
    kv = _Texts([seen.kv[index] for index in net.shape.borrowed], anchors.row)
    return net.run(stack, x.flatten(0, 1), rope, bias, kv).view(len(x), width, -1)[:, 1:]


def _cast(weight: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    return None if weight is None else weight.to(dtype)


def losses_of(
    net: BlockNetwork, base: Base, batch: TextBatch, seen: Read, anchors: Anchors, *, streak: bool
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss of all slots that can be learned, and counts of what a draft would have had right.

    The loss is the KL divergence from the coder's own law over the words; with ``streak``, the expected
    accepted length (arXiv 2511.00606) as well.
    """
    followed = follow(base, batch, seen, anchors, net.shape.window)
    learn = followed.learn
    where = learn.flatten().nonzero()[:, 0]  # the one value of a step that the host waits for
    text = anchors.row.repeat_interleave(learn.shape[1])[where]
    before = followed.before.flatten()[where]
    own = followed.own.flatten()[where]
    out = outputs(net, base, batch, seen, anchors)
    plain = out.flatten(0, 1).index_select(0, where)
    rows = [plain]
    if net.shape.sampler:
        rows.append(net.after(plain, base.coder.embedding[batch.ids[text, before]].float()))
    with torch.no_grad():
        law = F.linear(seen.hidden[text, before], base.head).float().softmax(-1)
    total = out.new_zeros((), dtype=torch.float32)
    measures: dict[str, torch.Tensor] = {}
    for name, weight, some in zip(("", "plain_"), (1.0, PLAIN_WEIGHT), rows[::-1], strict=False):
        logits = F.linear(some, base.head).float()
        value = losses.divergence(logits, law)
        total = total + weight * losses.decayed(_spread(value, where, learn), learn, GAMMA)
        if streak and not name:
            chosen = logits.log_softmax(-1).gather(1, own[:, None])[:, 0]
            total = total + losses.streak(_spread(chosen, where, learn), learn)
        right = _spread((logits.detach().argmax(-1) == own).float(), where, learn)
        measures |= {f"{name}{key}": count for key, count in _counts(right, followed.reached).items()}
    return total, measures


def _counts(right: torch.Tensor, reached: torch.Tensor) -> dict[str, torch.Tensor]:
    """By slot (W,): how often all before it were right, and how often it was right as well."""
    run = right.cumprod(1)
    before = F.pad(run[:, :-1], (1, 0), value=1.0) * reached
    return {"reached": before.sum(0), "right": run.sum(0)}


def _spread(values: torch.Tensor, where: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Values (n,) back to their flat places (n,) in the shape of ``like``; 0 elsewhere."""
    flat = values.new_zeros(like.numel()).index_copy(0, where, values)
    return flat.view(like.shape)


@torch.no_grad()
def new_block(base: Base, shape: BlockShape, kept: torch.Tensor, seen: Read) -> BlockNetwork:
    """An untrained network, whose attention starts as that of the layers that it borrows from.

    Queries are scaled so that scores over the keys of ``seen`` have about the size ``QUERY_RMS``.
    """
    net = BlockNetwork(shape).to(base.coder.device)
    net.words = kept[base.words.cpu()].int().to(base.coder.device)
    queries = shape.heads * shape.head_dim
    layers: list[Any] = list(net.layers)
    for layer, index in zip(layers, shape.borrowed, strict=True):
        frozen = base.coder.layers[index]
        attention = layer.self_attn
        attention.q_proj.weight.copy_(frozen.qkv[:queries])
        attention.v_proj.weight.copy_(frozen.qkv[-shape.kv_heads * shape.head_dim :])
        attention.o_proj.weight.copy_(frozen.out)
        layer.input_layernorm.weight.copy_(frozen.input_norm)
        layer.post_attention_layernorm.weight.copy_(frozen.mlp_norm)
        keys = seen.kv[index][0].float()
        spread = (keys - keys.mean((0, 2), keepdim=True)).norm(dim=-1).mean()
        attention.q_norm.weight.fill_(float(QUERY_RMS * shape.head_dim**0.5 / spread))
        attention.k_norm.weight.fill_(float(spread / shape.head_dim**0.5))
    net.norm.weight.copy_(base.coder.final_norm)
    return net
