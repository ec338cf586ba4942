"""Frozen causal coder with a low-rank adapter that acts on canvas rows alone (gated LoRA, arXiv 2507.11851).

Text rows run through the frozen weights, causally, once, without gradients. Canvas rows see the keys and
values of the text before them and every row of their own canvas, and carry the adapter in every product.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

PRODUCTS = ("qkv", "out", "gate_up", "down")
Product = Callable[[int, str, torch.Tensor], torch.Tensor]  # layer, name of the product, (N, in) -> (N, out)


class Layer(NamedTuple):
    """The frozen weights of one layer, products over the same input joined."""

    input_norm: torch.Tensor
    qkv: torch.Tensor
    qkv_bias: torch.Tensor | None
    out: torch.Tensor
    mlp_norm: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor


class Clean(NamedTuple):
    """Output of the frozen coder for a text.

    Keys and values (layers, 2, kv heads, T, D), last hidden states (T, d).
    """

    kv: torch.Tensor
    hidden: torch.Tensor


@dataclass(frozen=True)
class Canvases:
    """Canvases after one text, row after row.

    ``ids`` (R,) with -1 for a mask, ``positions`` (R,) in the text, ``mask`` (R, T + R) true where a row may
    look.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor


class Adapter(torch.nn.Module):
    """Low-rank branches of all products and the embedding of the mask; fp32 masters."""

    def __init__(
        self,
        sizes: Mapping[str, tuple[int, int]],
        layers: int,
        mask: torch.Tensor,
        ranks: Mapping[str, int],
        scale: float,
        sampler: int = 0,
    ) -> None:
        """``sizes`` (in, out) of each product; ``mask`` (d,) is what the mask's embedding starts as.

        ``sampler``: width of the network that adds what the token before a place says about it (the sampler
        head of arXiv 2507.11851); 0: none.
        """
        super().__init__()
        self.scale = scale
        width = len(mask)
        self.sampler = torch.nn.ParameterDict()
        if sampler:
            inward = torch.nn.init.normal_(torch.empty(sampler, 2 * width), std=(2 * width) ** -0.5)
            self.sampler["inward"] = torch.nn.Parameter(inward)
            self.sampler["outward"] = torch.nn.Parameter(torch.zeros(width, sampler))
        self.mask = torch.nn.Parameter(mask.float().clone())
        self.down = torch.nn.ParameterDict()
        self.up = torch.nn.ParameterDict()
        for index in range(layers):
            for name, rank in ranks.items():
                size_in, size_out = sizes[name]
                down = torch.empty(rank, size_in)
                torch.nn.init.normal_(down, std=size_in**-0.5)
                self.down[f"{index}_{name}"] = torch.nn.Parameter(down)
                self.up[f"{index}_{name}"] = torch.nn.Parameter(torch.zeros(size_out, rank))

    def cast(self, dtype: torch.dtype) -> Callable[[int, str], tuple[torch.Tensor, torch.Tensor] | None]:
        """The branches in the type of the products, ``up`` scaled; gradients reach the masters."""
        pairs = {
            key: (down.to(dtype), (self.up[key] * self.scale).to(dtype)) for key, down in self.down.items()
        }
        return lambda index, name: pairs.get(f"{index}_{name}")

    def after(self, hidden: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        """Hidden states (N, d) of rows, given embeddings (N, d) of the tokens before what they predict."""
        if not self.sampler:
            return hidden
        return sample_after(hidden, before, self.sampler["inward"], self.sampler["outward"])


def sample_after(
    hidden: torch.Tensor, before: torch.Tensor, inward: torch.Tensor, outward: torch.Tensor
) -> torch.Tensor:
    """What a sampler makes of hidden states and embeddings (N, d); matrices (width, 2 d) and (d, width)."""
    size = before.float().square().mean(-1, keepdim=True).sqrt().clamp(min=1e-6).to(before.dtype)
    both = torch.cat([hidden, before / size], -1)
    return hidden + F.silu(both @ inward.to(hidden.dtype).T) @ outward.to(hidden.dtype).T


class Coder:
    """A dense Qwen2 or Llama network of transformers, its weights joined and frozen."""

    def __init__(self, model: Any, device: str, dtype: torch.dtype) -> None:
        config, body = model.config, model.model
        self.device, self.dtype = device, dtype
        self.heads, self.kv_heads = int(config.num_attention_heads), int(config.num_key_value_heads)
        self.head_dim, self.eps = int(body.layers[0].self_attn.head_dim), float(config.rms_norm_eps)
        self.embedding = self._move(body.embed_tokens.weight)
        self.head = self.embedding if config.tie_word_embeddings else self._move(model.lm_head.weight)
        self.final_norm = self._move(body.norm.weight)
        self.layers = [self._layer(layer) for layer in body.layers]
        self._rope = body.rotary_emb.to(device)

    def _move(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.detach().to(self.device, self.dtype)

    def _layer(self, layer: Any) -> Layer:
        attention, mlp = layer.self_attn, layer.mlp
        three = [attention.q_proj, attention.k_proj, attention.v_proj]
        bias = None if three[0].bias is None else self._move(torch.cat([m.bias for m in three]))
        return Layer(
            self._move(layer.input_layernorm.weight),
            self._move(torch.cat([m.weight for m in three])),
            bias,
            self._move(attention.o_proj.weight),
            self._move(layer.post_attention_layernorm.weight),
            self._move(torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])),
            self._move(mlp.down_proj.weight),
        )

    def tensors(self) -> Iterator[torch.Tensor]:
        """All frozen weights, in a fixed order."""
        yield from (self.embedding, self.head, self.final_norm)
        for layer in self.layers:
            yield from (tensor for tensor in layer if tensor is not None)

    def fingerprint(self) -> str:
        """SHA-256 of the frozen weights in memory."""
        digest = hashlib.sha256()
        for tensor in self.tensors():
            digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def adapter(self, ranks: Mapping[str, int], scale: float, seed: int, sampler: int = 0) -> Adapter:
        """A new adapter, which changes nothing yet but the mask's embedding."""
        sizes = {
            name: (getattr(self.layers[0], name).shape[1], getattr(self.layers[0], name).shape[0])
            for name in PRODUCTS
        }
        torch.manual_seed(seed)
        mask = self.embedding.float().mean(0).cpu()
        return Adapter(sizes, len(self.layers), mask, ranks, scale, sampler).to(self.device)

    @torch.no_grad()
    def clean(self, ids: Sequence[int], past: torch.Tensor | None = None) -> Clean:
        """One causal pass of the frozen coder over ``ids``, after the keys and values ``past``."""
        start = 0 if past is None else past.shape[3]
        positions = torch.arange(start, start + len(ids), device=self.device)
        stored: list[torch.Tensor] = []

        def attend(index: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            keys, values = k.transpose(0, 1), v.transpose(0, 1)  # (kv heads, T, D)
            if past is not None:
                keys, values = torch.cat([past[index, 0], keys], 1), torch.cat([past[index, 1], values], 1)
            stored.append(torch.stack([keys, values]))
            mask = torch.ones(len(ids), keys.shape[1], dtype=torch.bool, device=self.device).tril(start)
            return self._attention(q, keys, values, self._bias(mask))

        x = self.embedding[torch.tensor(ids, device=self.device)]
        hidden = self.run(x, positions, attend, self.frozen)
        return Clean(torch.stack(stored), hidden)

    def denoise(self, adapter: Adapter, texts: Sequence[Clean], canvases: Sequence[Canvases]) -> torch.Tensor:
        """Last hidden states (N, d) of all rows of all canvases, each list behind its text."""
        branch = adapter.cast(self.dtype)
        counts = [len(c.ids) for c in canvases]
        biases = [self._bias(c.mask) for c in canvases]
        ids, positions = torch.cat([c.ids for c in canvases]), torch.cat([c.positions for c in canvases])
        x = torch.where((ids < 0)[:, None], adapter.mask.to(self.dtype), self.embedding[ids.clamp(min=0)])

        def attend(index: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            outs = []
            parts = zip(*(torch.split(t, counts) for t in (q, k, v)), texts, biases, strict=True)
            for q_part, k_part, v_part, text, bias in parts:
                keys = torch.cat([text.kv[index, 0], k_part.transpose(0, 1)], 1)
                values = torch.cat([text.kv[index, 1], v_part.transpose(0, 1)], 1)
                outs.append(self._attention(q_part, keys, values, bias))
            return torch.cat(outs)

        def product(index: int, name: str, rows: torch.Tensor) -> torch.Tensor:
            pair = branch(index, name)
            base = self.frozen(index, name, rows)
            return base if pair is None else torch.addmm(base, rows @ pair[0].T, pair[1].T)

        return self.run(x, positions, attend, product)

    def logits(self, hidden: torch.Tensor, words: torch.Tensor | None = None) -> torch.Tensor:
        """Logits (N, V) in fp32, or those of some words alone."""
        return F.linear(hidden, self.head if words is None else self.head[words]).float()

    def run(
        self, x: torch.Tensor, positions: torch.Tensor, attend: Callable[..., torch.Tensor], product: Product
    ) -> torch.Tensor:
        cos, sin = (t[0, :, None] for t in self._rope(x[None], positions[None]))  # (N, 1, D)
        for index, layer in enumerate(self.layers):
            qkv = product(index, "qkv", self._norm(x, layer.input_norm)).view(len(x), -1, self.head_dim)
            q, k, v = torch.split(qkv, [self.heads, self.kv_heads, self.kv_heads], 1)
            out = attend(index, _rotate(q, cos, sin), _rotate(k, cos, sin), v)
            x = x + product(index, "out", out)
            gate, up = product(index, "gate_up", self._norm(x, layer.mlp_norm)).chunk(2, -1)
            x = x + product(index, "down", F.silu(gate) * up)
        return self._norm(x, self.final_norm)

    def frozen(self, index: int, name: str, rows: torch.Tensor) -> torch.Tensor:
        layer = self.layers[index]
        return F.linear(rows, getattr(layer, name), layer.qkv_bias if name == "qkv" else None)

    def _norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, (x.shape[-1],), weight, self.eps)

    def _bias(self, mask: torch.Tensor) -> torch.Tensor:
        """Scores' bias (1, heads a group * M, extent).

        Query heads that share keys are more rows of the same product.
        """
        bias = torch.zeros(mask.shape, dtype=self.dtype, device=self.device).masked_fill_(~mask, -torch.inf)
        return bias.repeat(self.heads // self.kv_heads, 1)[None]

    def _attention(
        self, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        """Rows (M, heads, D) over keys and values (kv heads, extent, D); returns (M, heads * D)."""
        rows = len(q)
        grouped = (
            q.view(rows, self.kv_heads, -1, self.head_dim)
            .permute(1, 2, 0, 3)
            .reshape(1, self.kv_heads, -1, self.head_dim)
        )
        out = F.scaled_dot_product_attention(grouped, keys[None], values[None], attn_mask=bias[None])
        return out.view(self.kv_heads, -1, rows, self.head_dim).permute(2, 0, 1, 3).reshape(rows, -1)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding, half-split convention; x (N, heads, D)."""
    low, high = x.chunk(2, -1)
    return x * cos + torch.cat([-high, low], -1) * sin
