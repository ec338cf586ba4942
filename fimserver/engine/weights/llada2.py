"""Maps LLaDA 2.0 (arXiv 2512.15745) to GLM-4 MoE networks of transformers: configuration and tensor names.

Both route by sigmoid scores within the best groups of experts, with a bias that affects the selection but not
the weights, normalise queries and keys, and rotate a part of each head.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from fimserver.cards import Card
from fimserver.errors import LoadError

# Transformers' name of a field -> LLaDA 2's.
_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "moe_intermediate_size": "moe_intermediate_size",
    "num_hidden_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "num_key_value_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "rms_norm_eps": "rms_norm_eps",
    "max_position_embeddings": "max_position_embeddings",
    "n_routed_experts": "num_experts",
    "num_experts_per_tok": "num_experts_per_tok",
    "n_shared_experts": "num_shared_experts",
    "n_group": "n_group",
    "topk_group": "topk_group",
    "routed_scaling_factor": "routed_scaling_factor",
    "first_k_dense_replace": "first_k_dense_replace",
}
_ROTARY = ("rope_theta", "partial_rotary_factor")
# Fields of LLaDA 2 with the only supported values; the first one is the default.
_ONLY: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "score_function": ("sigmoid",),
    "moe_router_enable_expert_bias": (True,),
    "norm_topk_prob": (True,),
    "use_qk_norm": (True,),
    "use_bias": (False,),
    "use_qkv_bias": (False,),
    "norm_head": (False, None),
    "tie_word_embeddings": (False,),
    "rope_scaling": (None,),
    "sliding_window": (None,),
    "num_nextn_predict_layers": (0, None),
}
_NAMES = (
    (re.compile(r"^model\.word_embeddings\."), "model.embed_tokens."),
    (re.compile(r"\.attention\.dense\."), ".self_attn.o_proj."),
    (re.compile(r"\.attention\.query_layernorm\."), ".self_attn.q_norm."),
    (re.compile(r"\.attention\.key_layernorm\."), ".self_attn.k_norm."),
    (re.compile(r"\.mlp\.gate\.expert_bias$"), ".mlp.gate.e_score_correction_bias"),
)
_JOINED = ".attention.query_key_value."


def glm4_moe_fields(card: Card, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of GLM-4 MoE's configuration from LLaDA 2's. Raises ``LoadError``."""
    if missing := next((name for name in (*_SIZES.values(), *_ROTARY) if raw.get(name) is None), None):
        raise LoadError(f"{card.name}: config.json has no {missing}: it cannot be read as glm4_moe")
    for name, known in _ONLY.items():
        if raw.get(name, known[0]) not in known:
            raise LoadError(
                f"{card.name}: config.json has {name} = {raw[name]!r}, which is not supported here"
            )
    rotary = {name: float(raw[name]) for name in _ROTARY}
    return {ours: raw[theirs] for ours, theirs in _SIZES.items()} | {
        "rope_parameters": {"rope_type": "default"} | rotary,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "norm_topk_prob": True,
        "use_qk_norm": True,
    }


def glm4_moe_tensors(config: Any, tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors under transformers' names; queries, keys and values are split into views."""
    sizes = [n * config.head_dim for n in (config.num_attention_heads, *[config.num_key_value_heads] * 2)]
    for name, tensor in tensors.items():
        if _JOINED in name and len(tensor) == sum(sizes):
            for part, rows in zip("qkv", _rows(tensor, sizes), strict=True):
                yield name.replace(_JOINED, f".self_attn.{part}_proj."), rows
            continue
        for pattern, ours in _NAMES:
            name = pattern.sub(ours, name)  # noqa: PLW2901 - rules apply in turn
        yield name, tensor


def _rows(tensor: torch.Tensor, sizes: Sequence[int]) -> Iterator[torch.Tensor]:
    """Yield consecutive views of ``sizes`` rows."""
    start = 0
    for size in sizes:
        yield tensor[start : start + size]
        start += size
