"""Knows the forward pass of dense Qwen2, Qwen3 and Llama networks in the fewest kernels. Knows nothing of loading.

Why it exists: at 7 M parameters on a CPU the library's forward spends most of its time outside the matrix products,
and those repack the weights at every call (figures: README, Speed). ``tests/engine/test_lean.py`` holds it
to the native class.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from fimserver.engine.kv import KVBuffer
from fimserver.engine.network import NativeNetwork

Linear = Callable[[torch.Tensor], torch.Tensor]
PACK_LIMIT_BYTES = 1 << 30  # packing keeps a second copy of the weights


class _Layer(NamedTuple):
    input_norm: torch.Tensor
    qkv: Linear
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    out: Linear
    mlp_norm: torch.Tensor
    gate_up: Linear
    down: Linear


def fits(model: Any) -> bool:
    """Whether ``LeanNetwork`` computes what this model computes."""
    config = model.config
    return (
        config.model_type in {"qwen2", "qwen3", "llama"}
        and config.hidden_act == "silu"
        and set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}
        and getattr(config, "pretraining_tp", 1) == 1
        and not getattr(model, "_hf_hook", None)  # spread or offloaded by accelerate
        and model.dtype in {torch.float32, torch.bfloat16}
        and all(
            type(m) is torch.nn.Linear and type(m.weight.data) is torch.Tensor  # not quantised
            for name, m in model.named_modules()
            if name.endswith("_proj")
        )
    )


class LeanNetwork:
    """The same weights as ``model``, decoded at ``rows`` rows a pass. ``full`` stays with the native class."""

    def __init__(self, model: Any, capacity: int, rows: int) -> None:
        config, body = model.config, model.model
        self.model = model
        self.size = int(model.lm_head.weight.shape[0])
        self.device = torch.device(body.embed_tokens.weight.device)
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = int(body.layers[0].self_attn.head_dim)
        self.eps = float(config.rms_norm_eps)
        self.scale = float(body.layers[0].self_attn.scaling)
        self.embedding, self.final_norm = body.embed_tokens.weight, body.norm.weight
        size = sum(p.numel() * p.element_size() for p in model.parameters())
        has_onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        pack = self.device.type == "cpu" and size <= PACK_LIMIT_BYTES and has_onednn
        self.head = _linear([model.lm_head], rows, pack=pack)
        self.layers = [_layer(layer, rows, pack=pack) for layer in body.layers]
        positions = torch.arange(capacity, device=self.device)[None]
        cos, sin = body.rotary_emb(self.embedding[:1, None], positions)
        self.cos, self.sin = cos[0, :, None], sin[0, :, None]  # (capacity, 1, D)

    def cached(self, ids: torch.Tensor, mask: torch.Tensor, kv: KVBuffer, logits_of: torch.Tensor) -> torch.Tensor:
        here = slice(kv.start, kv.start + len(ids))
        cos, sin = self.cos[here], self.sin[here]
        x: torch.Tensor = self.embedding[ids]  # (M, d)
        bias = torch.zeros(mask.shape, dtype=x.dtype, device=x.device).masked_fill_(~mask, -torch.inf)
        for index, layer in enumerate(self.layers):
            x = x + self._attend(x, layer, (cos, sin), bias, kv, index)
            gate, up = layer.gate_up(self._norm(x, layer.mlp_norm)).chunk(2, -1)
            x = x + layer.down(F.silu(gate) * up)
        if len(logits_of) == 0:
            return x.new_empty(0, self.size)
        return self.head(self._norm(x[logits_of], self.final_norm))

    def full(self, ids: torch.Tensor, logits_of: torch.Tensor) -> torch.Tensor:
        return NativeNetwork(self.model, self.device).full(ids, logits_of)

    def _attend(
        self,
        x: torch.Tensor,
        layer: _Layer,
        rope: tuple[torch.Tensor, torch.Tensor],
        bias: torch.Tensor,
        kv: KVBuffer,
        index: int,
    ) -> torch.Tensor:
        qkv = layer.qkv(self._norm(x, layer.input_norm)).view(len(x), -1, self.head_dim)  # (M, q + k + v heads, D)
        q, k, v = torch.split(qkv, [self.heads, self.kv_heads, self.kv_heads], dim=1)
        if layer.q_norm is not None and layer.k_norm is not None:
            q, k = self._norm(q, layer.q_norm), self._norm(k, layer.k_norm)
        qk = _rotate(torch.cat([q, k], 1), *rope)
        q, k = qk[:, : self.heads], qk[:, self.heads :]
        keys, values = kv.update(k.transpose(0, 1)[None], v.transpose(0, 1)[None], index)
        out = F.scaled_dot_product_attention(
            q.transpose(0, 1)[None], keys, values, attn_mask=bias, scale=self.scale, enable_gqa=True
        )
        return layer.out(out[0].transpose(0, 1).reshape(len(x), -1))

    def _norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, (x.shape[-1],), weight, self.eps)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding, half-split convention; x (M, heads, D)."""
    low, high = x.chunk(2, -1)
    return x * cos + torch.cat([-high, low], -1) * sin


def _layer(layer: Any, rows: int, *, pack: bool) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    q_norm, k_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
    return _Layer(
        layer.input_layernorm.weight,
        _linear([attention.q_proj, attention.k_proj, attention.v_proj], rows, pack=pack),
        q_norm.weight if q_norm else None,
        k_norm.weight if k_norm else None,
        _linear([attention.o_proj], rows, pack=pack),
        layer.post_attention_layernorm.weight,
        _linear([mlp.gate_proj, mlp.up_proj], rows, pack=pack),
        _linear([mlp.down_proj], rows, pack=pack),
    )


def _linear(modules: list[Any], rows: int, *, pack: bool) -> Linear:
    """One product for several linears over the same input; ``pack`` lays the weights out for ``rows`` rows once."""
    weight = torch.cat([m.weight for m in modules]) if len(modules) > 1 else modules[0].weight
    bias = torch.cat([m.bias for m in modules]) if modules[0].bias is not None else None
    if not pack:
        return lambda x: F.linear(x, weight, bias)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), rows)  # noqa: SLF001 - no public name exists
    product = torch.ops.mkldnn._linear_pointwise  # noqa: SLF001
    return lambda x: product(x, packed, bias, "none", [], "")
