"""Maps LLaDA (arXiv 2502.09992) to Llama networks of transformers: configuration and tensor names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fimserver.cards import Card
from fimserver.errors import LoadError

# Regular expressions over LLaDA's tensor names, and transformers' names. ``ff_proj`` is the gate.
KEYS: Mapping[str, str] = {
    r"^model\.transformer\.wte\.": "model.embed_tokens.",
    r"^model\.transformer\.ln_f\.": "model.norm.",
    r"^model\.transformer\.ff_out\.": "lm_head.",
    r"^model\.transformer\.blocks\.(\d+)\.attn_norm\.": r"model.layers.\1.input_layernorm.",
    r"^model\.transformer\.blocks\.(\d+)\.ff_norm\.": r"model.layers.\1.post_attention_layernorm.",
    r"^model\.transformer\.blocks\.(\d+)\.q_proj\.": r"model.layers.\1.self_attn.q_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.k_proj\.": r"model.layers.\1.self_attn.k_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.v_proj\.": r"model.layers.\1.self_attn.v_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.attn_out\.": r"model.layers.\1.self_attn.o_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.ff_proj\.": r"model.layers.\1.mlp.gate_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.up_proj\.": r"model.layers.\1.mlp.up_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.ff_out\.": r"model.layers.\1.mlp.down_proj.",
}
# Transformers' name of a field -> LLaDA's.
_SIZES = {
    "vocab_size": "embedding_size",
    "hidden_size": "d_model",
    "intermediate_size": "mlp_hidden_size",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "num_key_value_heads": "n_kv_heads",
    "rms_norm_eps": "rms_norm_eps",
    "max_position_embeddings": "max_sequence_length",
    "rope_theta": "rope_theta",
}
# Fields of LLaDA with the values that make it a Llama network; the first one is the default.
_ONLY: Mapping[str, tuple[Any, ...]] = {
    "block_type": ("llama",),
    "activation_type": ("silu",),
    "layer_norm_type": ("rms",),
    "rope": (True,),
    "alibi": (False,),
    "attention_layer_norm": (False,),
    "clip_qkv": (None,),
    "include_bias": (False,),
    "include_qkv_bias": (False,),
    "input_emb_norm": (False,),
    "multi_query_attention": (None, False),
    "scale_logits": (False,),
    "weight_tying": (False,),
    "block_group_size": (1,),
    "rope_scaling": (None,),
}


def llama_fields(card: Card, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of Llama's configuration from LLaDA's. Raises ``LoadError``."""
    if missing := next((name for name in _SIZES.values() if raw.get(name) is None), None):
        raise LoadError(f"{card.name}: config.json has no {missing}: it cannot be read as llama")
    for name, known in _ONLY.items():
        if raw.get(name, known[0]) not in known:
            raise LoadError(
                f"{card.name}: config.json has {name} = {raw[name]!r}, which is not supported here"
            )
    fields = {ours: raw[theirs] for ours, theirs in _SIZES.items()}
    theta = float(fields.pop("rope_theta"))
    return fields | {
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
    }
