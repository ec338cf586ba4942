"""Forward pass of dense Qwen2, Qwen3 and Llama networks in few kernels; it agrees with transformers.

On a CPU, small models spend most of transformers' forward outside the products (docs/benchmarks.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from fimserver.engine.forward.graphs import Graphs
from fimserver.engine.forward.kv import KVBuffer, UnkeptKV
from fimserver.engine.forward.layers import (
    GatedMlp,
    Layer,
    LayerKV,
    Linear,
    Mlp,
    ModelShape,
    Part,
    Stack,
    Wrap,
    bias_of,
    filled,
)
from fimserver.engine.forward.linear import is_plain, is_quantised, linear
from fimserver.engine.forward.network import NativeNetwork, Network
from fimserver.engine.forward.static_pass import StaticPasses
from fimserver.errors import LoadError

PACK_LIMIT_BYTES = 1 << 30  # packing keeps a second copy of the weights


def fits(model: Any) -> bool:
    """Whether ``FusedModel`` supports this model of transformers."""
    config = model.config
    return (
        config.model_type in MLPS
        and config.hidden_act == "silu"
        and set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}
        and getattr(config, "pretraining_tp", 1) == 1
        and not getattr(model, "_hf_hook", None)  # accelerate split it over devices or offloaded it
        and model.dtype in {torch.float32, torch.bfloat16}
        and all(
            type(m) is torch.nn.Linear and (is_plain(m) or is_quantised(m))
            for name, m in model.named_modules()
            if name.endswith("_proj")
        )
    )


class FusedWeights(NamedTuple):
    """The parts of a model that a forward pass needs, in whatever format it was stored."""

    embed: Callable[[torch.Tensor], torch.Tensor]  # ids (…) -> (…, d)
    stack: Stack
    final_norm: torch.Tensor
    head: Linear
    vocab_size: int
    # Number of positions T -> cosines and sines (T, 1, D).
    rotary: Callable[[int], tuple[torch.Tensor, torch.Tensor]]


class FusedModel:
    """A ``Network`` that runs in few kernels. ``whole`` runs bidirectional passes, which are not cached."""

    def __init__(
        self, weights: FusedWeights, capacity: int, whole: Network | None = None, *, pack: bool = False
    ) -> None:
        self.weights = weights
        self.whole = whole
        self.pack = pack
        self.capacity = capacity
        self.vocab_size = weights.vocab_size
        self.device = weights.final_norm.device
        self.dtype = weights.final_norm.dtype
        self.hidden = torch.empty(0)
        self.stack = weights.stack
        self.final_norm = weights.final_norm
        self.head = weights.head
        self.embed = weights.embed
        self.cos, self.sin = weights.rotary(capacity)
        self.static: StaticPasses | None = None
        self.joins = False  # whether rows of several texts may run as one pass (``passes.py``)

    @property
    def kv_bytes(self) -> int:
        """Bytes of the keys and values of one token."""
        sizes = self.stack.sizes
        return 2 * len(self.stack.layers) * sizes.kv_heads * sizes.head_dim * self.final_norm.element_size()

    def use_graphs(self, graphs: Graphs) -> StaticPasses:
        """Run cached passes through ``graphs``, over static buffers, from now on."""
        self.static = StaticPasses(self.run_at, self.vocab_size, self.final_norm, graphs)
        return self.static

    def wrapped(self, wrap: Wrap, embed: Callable[[torch.Tensor], torch.Tensor] | None = None) -> FusedModel:
        """Return the network with every product replaced by ``wrap(layer, name, product)``, weights shared.

        ``embed``: replaces the embeddings, if given. Both networks use the same KV buffer, so that some rows
        of a text can go through one and some through the other.
        """
        weights = self.weights._replace(stack=self.stack.wrapped(wrap), embed=embed or self.embed)
        return FusedModel(weights, self.capacity, self.whole, pack=self.pack)

    def forward(
        self, ids: torch.Tensor, mask: torch.Tensor, kv: KVBuffer | UnkeptKV, logits_of: torch.Tensor
    ) -> torch.Tensor:
        if self.static is not None and isinstance(kv, KVBuffer):
            hidden, logits = self.static.forward(ids, mask, kv, logits_of)
        else:
            rope = self.rope(kv.start, ids.shape[1], len(ids))
            hidden, logits = self._compute(ids, rope, mask, kv, logits_of)
        self.hidden = hidden if len(logits_of) else self.hidden
        return logits

    def _compute(
        self,
        ids: torch.Tensor,
        rope: tuple[torch.Tensor, torch.Tensor],
        mask: torch.Tensor,
        kv: LayerKV,
        logits_of: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        count, rows = ids.shape
        least = self.static.product_rows if self.static else 0
        x = self.embed(ids.flatten())  # (B * M, d)
        x = self.stack.run(x, rope, bias_of(mask, x.dtype), kv, least)
        if len(logits_of) == 0:
            return x.new_empty(count, 0, x.shape[-1]), x.new_empty(count, 0, self.vocab_size)
        hidden = self.stack.norm(x.view(count, rows, -1)[:, logits_of], self.final_norm)
        logits = self.head(filled(hidden.flatten(0, 1), least))[: count * len(logits_of)]
        return hidden, logits.view(count, len(logits_of), -1)

    def forward_parts(self, parts: Sequence[Part]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Run parts in one pass: hidden states (B, R, d) and logits (B, R, V) of the wanted rows of each."""
        ropes = [self.rope(part.start, part.ids.shape[1], len(part.ids), part.positions) for part in parts]
        rope = torch.cat([cos for cos, _ in ropes]), torch.cat([sin for _, sin in ropes])
        x = self.embed(torch.cat([part.ids.flatten() for part in parts]))
        texts = [(part.ids.numel(), bias_of(part.mask, x.dtype), part.kv) for part in parts]
        states = torch.split(self.stack.run_parts(x, rope, texts), [count for count, _, _ in texts])
        wanted = [
            state.view(*part.ids.shape, -1)[:, part.logits_of].flatten(0, 1)
            for state, part in zip(states, parts, strict=True)
        ]
        hidden = self.stack.norm(torch.cat(wanted), self.final_norm)
        shapes = [(len(part.ids), len(part.logits_of)) for part in parts]
        sizes = [branches * rows for branches, rows in shapes]
        logits = torch.split(self.head(hidden), sizes)
        outputs = zip(shapes, torch.split(hidden, sizes), logits, strict=True)
        return [
            (state.view(*shape, state.shape[-1]), scores.view(*shape, self.vocab_size))
            for shape, state, scores in outputs
        ]

    def run_at(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor,
        kv: LayerKV,
        logits_of: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self._compute(ids, self.rope(0, 0, 1, positions.flatten()), mask, kv, logits_of)

    def forward_at(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor,
        kv: KVBuffer,
        logits_of: torch.Tensor,
    ) -> torch.Tensor:
        """Run ``forward`` on ids (1, M) whose text ``positions`` (M,) differ from their KV rows."""
        if self.static is not None:
            self.hidden, logits = self.static.forward(ids, mask, kv, logits_of, positions)
        else:
            self.hidden, logits = self.run_at(ids, positions, mask, kv, logits_of)
        return logits

    def forward_bidirectional(self, ids: torch.Tensor, logits_of: torch.Tensor) -> torch.Tensor:
        if self.whole is None:
            raise LoadError("this network has no bidirectional pass: use --network native")
        logits = self.whole.forward_bidirectional(ids, logits_of)
        self.hidden = self.whole.hidden
        return logits

    def rope(
        self, start: int, rows: int, count: int = 1, positions: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cosines and sines (count * rows, 1, D) at ``positions`` (rows,), or from ``start`` on."""
        here = slice(start, start + rows) if positions is None else positions
        if count == 1:
            return self.cos[here], self.sin[here]
        return self.cos[here].repeat(count, 1, 1), self.sin[here].repeat(count, 1, 1)


def fuse(model: Any, capacity: int, rows: int) -> FusedModel:
    """Build a ``FusedModel`` on the weights of a class of transformers; ``rows``: the rows to pack for."""
    body = model.model
    table = body.embed_tokens.weight
    pack = packs(model, table.device)

    def rotary(positions: int) -> tuple[torch.Tensor, torch.Tensor]:
        cos, sin = body.rotary_emb(table[:1, None], torch.arange(positions, device=table.device)[None])
        return cos[0, :, None], sin[0, :, None]

    weights = FusedWeights(
        lambda ids: table[ids],
        native_stack(model.config, body.layers, rows, pack=pack),
        body.norm.weight,
        linear([model.lm_head], rows, pack=pack),
        int(model.lm_head.weight.shape[0]),
        rotary,
    )
    return FusedModel(weights, capacity, NativeNetwork(model, table.device), pack=pack)


def native_stack(config: Any, layers: Sequence[Any], rows: int, *, pack: bool) -> Stack:
    """Build a ``Stack`` from decoder layers of transformers; ``config``: that of their model."""
    mlp = MLPS[config.model_type]
    fused = [_layer(layer, mlp(layer.mlp, rows, pack), rows, pack=pack) for layer in layers]
    return Stack(fused, ModelShape.of(config, layers[0]))


def packs(model: Any, device: torch.device) -> bool:
    """Whether to keep a second copy of the weights, packed for oneDNN's matrix products."""
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    has_onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    plain = all(map(is_plain, (m for m in model.modules() if isinstance(m, torch.nn.Linear))))
    return device.type == "cpu" and plain and size <= PACK_LIMIT_BYTES and has_onednn


def _layer(layer: Any, mlp: Mlp, rows: int, *, pack: bool) -> Layer:
    attention = layer.self_attn
    q_norm = getattr(attention, "q_norm", None)
    k_norm = getattr(attention, "k_norm", None)
    return Layer(
        layer.input_layernorm.weight,
        linear([attention.q_proj, attention.k_proj, attention.v_proj], rows, pack=pack),
        q_norm.weight if q_norm else None,
        k_norm.weight if k_norm else None,
        linear([attention.o_proj], rows, pack=pack),
        layer.post_attention_layernorm.weight,
        mlp,
    )


def _gated_mlp(mlp: Any, rows: int, pack: bool) -> Mlp:
    return GatedMlp(
        linear([mlp.gate_proj, mlp.up_proj], rows, pack=pack), linear([mlp.down_proj], rows, pack=pack)
    )


# By ``model_type`` of the configuration: builds the ``Mlp`` of a layer from its module, rows and pack.
MLPS: Mapping[str, Callable[[Any, int, bool], Mlp]] = {
    "qwen2": _gated_mlp,
    "qwen3": _gated_mlp,
    "llama": _gated_mlp,
}
