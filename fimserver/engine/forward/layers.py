"""Decoder layers of dense Qwen2, Qwen3 and Llama networks, in few kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch.nn import functional as F

from fimserver.engine.forward.attention import attend, fold_bias, one_kernel
from fimserver.engine.forward.chunk_rows import ChunkRows, attend_by_chunk, chunk_rows
from fimserver.engine.forward.competition import adapt_threads
from fimserver.engine.forward.kv import KVBuffer

Linear = Callable[[torch.Tensor], torch.Tensor]  # (N, in) -> (N, out)
Bias = torch.Tensor | list[ChunkRows]  # of a pass that attends all at once, or chunk by chunk
Wrap = Callable[
    [int, str, Linear], Linear
]  # layer, name of the product (qkv, out, gate_up, down), the product


class Mlp(Protocol):
    """The MLP of a layer."""

    def __call__(self, x: torch.Tensor, /) -> torch.Tensor:
        """Compute from normed hidden states (N, d) what is added to the residual stream (N, d)."""
        ...

    def wrapped(self, wrap: Wrap, index: int, /) -> Mlp:
        """Return the same MLP with every product replaced by ``wrap(index, name, product)``."""
        ...


@dataclass(frozen=True)
class GatedMlp:
    """Dense SwiGLU MLP (arXiv 2002.05202); gate and up are one product."""

    gate_up: Linear
    down: Linear

    def __call__(self, x: torch.Tensor, /) -> torch.Tensor:
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(F.silu(gate) * up)

    def wrapped(self, wrap: Wrap, index: int, /) -> GatedMlp:
        return GatedMlp(wrap(index, "gate_up", self.gate_up), wrap(index, "down", self.down))


class Layer(NamedTuple):
    """The weights of one layer, with products over the same input merged."""

    input_norm: torch.Tensor
    qkv: Linear
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    out: Linear
    mlp_norm: torch.Tensor
    mlp: Mlp

    def wrapped(self, wrap: Wrap, index: int) -> Layer:
        """Return the same layer with every product replaced by ``wrap(index, name, product)``."""
        qkv = wrap(index, "qkv", self.qkv)
        out = wrap(index, "out", self.out)
        return self._replace(qkv=qkv, out=out, mlp=self.mlp.wrapped(wrap, index))


class LayerKV(Protocol):
    """The part of a KV buffer that a layer uses."""

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, index: int, /
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store rows (B, heads, M, D) of layer ``index``; return keys and values (B, heads, extent, D)."""
        ...


class Part(NamedTuple):
    """The rows of one text within a pass: ids (B, M) from position ``start`` on, and the keys that they see.

    ``positions`` (M,): positions in the text, if they are not consecutive from ``start`` on.
    """

    ids: torch.Tensor
    mask: torch.Tensor  # (M, extent)
    kv: LayerKV
    start: int
    logits_of: torch.Tensor  # (R,)
    positions: torch.Tensor | None = None


class ModelShape(NamedTuple):
    """Sizes and constants of a network that its weights do not show."""

    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    scale: float

    @classmethod
    def of(cls, config: Any, layer: Any) -> ModelShape:
        heads = config.num_attention_heads
        kv_heads = config.num_key_value_heads
        return cls(
            heads,
            kv_heads,
            int(layer.self_attn.head_dim),
            float(config.rms_norm_eps),
            float(layer.self_attn.scaling),
        )


class Stack:
    """All decoder layers of a network, from hidden states to hidden states."""

    def __init__(self, layers: Sequence[Layer], sizes: ModelShape, *, bf16_attention: bool = False) -> None:
        """``bf16_attention``: passes of many rows attend in bf16 for any dtype of the hidden states."""
        self.layers = tuple(layers)
        self.sizes = sizes
        self.attention = attend
        self.bf16_attention = bf16_attention

    def wrapped(self, wrap: Wrap) -> Stack:
        """Return the same layers with every product replaced by ``wrap(layer, name, product)``."""
        layers = [layer.wrapped(wrap, index) for index, layer in enumerate(self.layers)]
        return Stack(layers, self.sizes, bf16_attention=self.bf16_attention)

    def run(
        self,
        x: torch.Tensor,
        rope: tuple[torch.Tensor, torch.Tensor],
        bias: torch.Tensor,
        kv: LayerKV,
        least: int = 0,
    ) -> torch.Tensor:
        """Run x (B * M, d) through all layers.

        ``rope``: cosines and sines (B * M, 1, D). ``bias`` (…, M, extent): added to the scores. ``least``:
        number of rows in a product, if there are fewer: with the same kernel, they have the same bits.
        """
        cos, sin = (filled(each, least) for each in rope)
        return self.run_parts(filled(x, least), (cos, sin), [(len(x), bias, kv)])[: len(x)]

    def run_parts(
        self,
        x: torch.Tensor,
        rope: tuple[torch.Tensor, torch.Tensor],
        parts: Sequence[tuple[int, torch.Tensor, LayerKV]],
    ) -> torch.Tensor:
        """Run the concatenated rows of several texts; ``parts``: number of rows, bias and KV of each text.

        Rows after those of the last text attend to nothing.
        """
        groups = self.sizes.heads // self.sizes.kv_heads
        folded = [(n, self._folded(bias, kv, groups), kv) for n, bias, kv in parts]
        rope = rope[0], _signed(rope[1])
        with one_kernel(x.device):
            for index, layer in enumerate(self.layers):
                adapt_threads()
                x = x + self._attend(x, layer, rope, folded, index)
                x = x + layer.mlp(self.norm(x, layer.mlp_norm))
        return x

    def norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, (x.shape[-1],), weight, self.sizes.eps)

    def _attend(
        self,
        x: torch.Tensor,
        layer: Layer,
        rope: tuple[torch.Tensor, torch.Tensor],
        parts: Sequence[tuple[int, Bias, LayerKV]],
        index: int,
    ) -> torch.Tensor:
        heads, kv_heads, head_dim, _, _ = self.sizes
        qkv = layer.qkv(self.norm(x, layer.input_norm)).view(
            len(x), -1, head_dim
        )  # (B * M, q + k + v heads, D)
        qk = qkv[:, : heads + kv_heads]
        if layer.q_norm is not None and layer.k_norm is not None:
            qk = torch.cat(
                [self.norm(qk[:, :heads], layer.q_norm), self.norm(qk[:, heads:], layer.k_norm)], 1
            )
        sizes = [count for count, _, _ in parts]
        count = sum(sizes)
        rotated = torch.split(_rotate(qk, *rope)[:count], sizes)
        texts = zip(rotated, torch.split(qkv[:count, heads + kv_heads :], sizes), parts, strict=True)
        seen = [self._see(qk, v, bias, kv, index) for qk, v, (_, bias, kv) in texts]
        return layer.out(filled(seen[0] if len(seen) == 1 else torch.cat(seen), len(x)))

    def _folded(self, bias: torch.Tensor, kv: LayerKV, groups: int) -> Bias:
        if isinstance(kv, KVBuffer) and kv.chunk:
            return chunk_rows(bias, kv, groups, bf16=self.bf16_attention)
        return fold_bias(bias, groups, bf16=self.bf16_attention)

    def _see(
        self, rotated: torch.Tensor, v: torch.Tensor, bias: Bias, kv: LayerKV, index: int
    ) -> torch.Tensor:
        """Attend in one text: ``rotated`` (N, q + k heads, D), ``v`` (N, kv heads, D) to (N, heads * D)."""
        heads, kv_heads, head_dim, _, scale = self.sizes
        rows = len(rotated) if isinstance(bias, list) else bias.shape[-2] * kv_heads // heads
        rotated = rotated.view(-1, rows, heads + kv_heads, head_dim)
        v = v.view(-1, rows, kv_heads, head_dim)
        keys, values = kv.update(rotated[:, :, heads:].transpose(1, 2), v.transpose(1, 2), index)
        q = rotated[:, :, :heads]
        if isinstance(bias, list):
            return attend_by_chunk(self.attention, q, keys, values, bias, scale).flatten(0, 1)
        if getattr(kv, "apart", False):  # each text in the shape that it has alone
            one = [slice(entry, entry + 1) for entry in range(len(q))]
            out = [self.attention(q[n], keys[n], values[n], bias[n], scale) for n in one]
            return torch.cat(out).flatten(0, 1)
        return self.attention(q, keys, values, bias, scale).flatten(0, 1)


def filled(x: torch.Tensor, least: int) -> torch.Tensor:
    """Append zeros to rows x (N, …) up to ``least`` rows."""
    return torch.cat([x, x.new_zeros(least - len(x), *x.shape[1:])]) if len(x) < least else x


def bias_of(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return an attention bias: 0 where ``mask`` is true, minus infinity elsewhere."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -torch.inf)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate x (M, heads, D) (rotary embedding, half-split convention); ``sin``: from ``_signed``."""
    halves = x.reshape(*x.shape[:-1], 2, -1)
    swapped = halves.flip(-2).view(x.shape)
    return torch.addcmul(x * cos, swapped, sin)


def _signed(sin: torch.Tensor) -> torch.Tensor:
    """Negate the first half of sines (…, D), as ``_rotate`` needs it."""
    low, high = sin.chunk(2, -1)
    return torch.cat([-low, high], -1)
