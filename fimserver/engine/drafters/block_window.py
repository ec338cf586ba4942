"""Window of the diffusion drafter by a small network that was trained for the target (``BlockNetwork``)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from fimserver.engine.drafters.cut_head import cut_head, words_of
from fimserver.engine.drafters.nets import BlockNetwork, Merge, normed
from fimserver.engine.forward.attention import attend_all
from fimserver.engine.forward.fused import FusedModel
from fimserver.engine.forward.int8 import Int8Linear, quantize_weight
from fimserver.engine.forward.kv import KVBuffer
from fimserver.engine.forward.layers import Linear
from fimserver.engine.forward.linear import linear
from fimserver.engine.forward.prefix_cache import PrefixCache
from fimserver.engine.speculation.drafts import DecodeState

CANDIDATES = 32  # tokens of a slot that the sampler scores again
SEEN = 512  # last keys of the text that a window reads: all are right about 2 % more tokens, and cost as much
_ROWS = 16  # for which products are packed


class BlockWindow:
    """Runs the network on the target's hidden state, keys and values, in the arithmetic of the target."""

    def __init__(self, net: BlockNetwork, network: FusedModel, cache: PrefixCache) -> None:
        self.net = net.to(network.device, network.dtype)
        self.network = network
        self.cache = cache
        self.longest = net.shape.window
        self.words = words_of(network, net.words)
        self.head = cut_head(network, self.words, net.shape.hidden)
        self.sampler = Sampler(self) if net.shape.sampler else None
        product = _product_like(network)
        self.stack = net.stack_of(product)
        self.stack.attention = attend_all
        net.layers = nn.ModuleList()  # the stack has copies
        net.add_module("see", _Product(product([net.see])))

    def predict(self, state: DecodeState, slots: Sequence[int | None]) -> torch.Tensor:
        assert state.hidden is not None  # set after the prefill
        start = len(state.prompt) + len(state.ids) - 1
        rows = len(slots) + 1
        device = self.network.device
        tokens = [state.ids[-1], *(slot or 0 for slot in slots)]
        masked = torch.tensor([False, *(slot is None for slot in slots)], device=device)
        embedded = self.network.embed(torch.tensor(tokens, device=device))
        x = self.net.inputs(state.hidden[None], embedded[None], masked[None])[0]
        every_key = x.new_zeros(rows, 0)  # a bias that ``attend_all`` does not read
        borrowed = _Borrowed(self.cache.kv, self.net.shape.borrowed, start, rows)
        out = self.net.run(self.stack, x, self.network.rope(start, rows), every_key, borrowed)[1:]
        logits = self.head(out)
        known = next((i for i, slot in enumerate(slots) if slot is None), len(slots))
        if self.sampler and known < len(slots):
            logits[known:] = self.sampler.informed(out[known:], logits[known:], embedded[known])
        return logits


class Sampler:
    """Scores the likeliest tokens of each slot again, given the one before it (``BlockNetwork.after``).

    What each word adds as the token before, and what it gains, are tables, so that a slot costs some vectors
    of the sampler's width.
    """

    def __init__(self, window: BlockWindow) -> None:
        net = window.net
        count = len(window.words.ids) if window.words else window.network.vocab_size
        every = torch.arange(count, device=window.network.device)
        self.from_slot, self.from_token = net.inward.chunk(2, 1)  # (s, d)
        embedded = window.network.embed(window.words.ids if window.words else every)
        self.given = self._given(embedded)  # (n, s)
        self.gained = window.head(net.outward.T.contiguous()).T.contiguous()  # (n, s)

    def informed(self, x: torch.Tensor, logits: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        """Return logits (n, W) of slots that also depend on the likeliest token of the slot before.

        ``x`` (n, d) are the inputs of the head, ``before`` (d,) the embedding of the token before the first
        slot. Tokens that are not among the ``CANDIDATES`` likeliest are ruled out.
        """
        scores, found = logits.topk(min(CANDIDATES, logits.shape[-1]))
        own = F.linear(normed(x), self.from_slot)
        given = self._given(before)
        informed = list[torch.Tensor]()
        for score, columns, slot in zip(scores, found, own, strict=True):
            informed.append(torch.addmv(score, self.gained.index_select(0, columns), F.silu(slot + given)))
            likeliest = columns[informed[-1].argmax(0, keepdim=True)]
            given = self.given.index_select(0, likeliest)[0]
        return torch.full_like(logits, -torch.inf).scatter_(1, found, torch.stack(informed))

    def _given(self, embedded: torch.Tensor) -> torch.Tensor:
        return F.linear(normed(embedded), self.from_token)


def _product_like(network: FusedModel) -> Merge:
    """Return how to make products of linear layers: in int8 for a target in int8, else in its dtype."""
    if isinstance(network.head, Int8Linear):
        return lambda modules: Int8Linear(*quantize_weight(module.weight for module in modules))
    return lambda modules: linear(list(modules), _ROWS, pack=network.pack)


class _Product(nn.Module):
    """A product in the place of a linear layer."""

    def __init__(self, product: Linear) -> None:
        super().__init__()
        self.product = product

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.product(x)


class _Borrowed:
    """The target's last ``SEEN`` keys and values before ``start``, then the window's own.

    These are written into the target's buffer, so that no key is copied; the next pass overwrites them.
    """

    def __init__(self, kv: KVBuffer, layers: Sequence[int], start: int, rows: int) -> None:
        self.kv = kv
        self.layers = layers
        self.first = max(0, start - SEEN)
        kv.place(start, start + rows)

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, index: int, /
    ) -> tuple[torch.Tensor, torch.Tensor]:
        # A masked row that holds NaN would make the target's output NaN.
        keys, values = (t.nan_to_num(0.0, 0.0, 0.0) for t in (keys, values))
        every_key, every_value = self.kv.update(keys, values, self.layers[index])
        return every_key[:, :, self.first :], every_value[:, :, self.first :]
