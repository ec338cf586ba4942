"""Tiny GGUF files, written with the library from tiny checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from gguf import GGMLQuantizationType as Kind

from fimserver.cards import MODELS, Card
from fimserver.hashing import sha256
from tests.tiny import MARKERS, make_card

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    """llama.cpp's name of one of transformers' tensors."""
    module, _, kind = name.rpartition(".")
    if module in NAMES:
        return f"{NAMES[module]}.{kind}"
    _, _, layer, part = module.split(".", 3)
    return f"blk.{layer}.{NAMES[part]}.{kind}"


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Channels of each head as llama.cpp's converter orders them for the architecture llama."""
    halves = weight.view(heads, 2, -1, *weight.shape[1:])
    return halves.transpose(1, 2).reshape(weight.shape)


def write_gguf(
    checkpoint: Path,
    path: Path,
    kind: Kind = Kind.F32,
    pre: str = "gpt-2",
    tokens: tuple[str, ...] = MARKERS,
    tensors_a_file: int = 0,
    **changes: Any,
) -> Path:
    """Convert a tiny checkpoint; ``changes`` replace metadata (``None`` leaves a key out), dots as double underscores."""
    config = transformers.AutoConfig.from_pretrained(checkpoint)
    architecture = config.model_type
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, config=config, dtype=torch.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=tensors_a_file)
    extra = {key.replace("__", "."): value for key, value in changes.items()}
    _write_sizes(writer, config, extra)
    _write_tokenizer(writer, pre, tokens)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if architecture == "llama" and (".q_proj." in name or ".k_proj." in name):
            heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
            tensor = interleaved(tensor, heads)  # noqa: PLW2901
        values = tensor.numpy().astype(np.float32)
        used = kind if tensor.dim() == 2 else Kind.F32
        writer.add_tensor(gguf_name(name), gguf.quants.quantize(values, used), raw_dtype=used)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _write_sizes(writer: Any, config: Any, extra: dict[str, Any]) -> None:
    name = config.model_type
    values = {
        "general.name": "Tiny",
        f"{name}.block_count": config.num_hidden_layers,
        f"{name}.context_length": config.max_position_embeddings,
        f"{name}.embedding_length": config.hidden_size,
        f"{name}.feed_forward_length": config.intermediate_size,
        f"{name}.attention.head_count": config.num_attention_heads,
        f"{name}.attention.head_count_kv": config.num_key_value_heads,
        f"{name}.attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        f"{name}.attention.key_length": int(
            getattr(config, "head_dim", 0) or config.hidden_size // config.num_attention_heads
        ),
        f"{name}.rope.freq_base": float(config.rope_parameters["rope_theta"]),
    }
    for key, value in (values | extra).items():
        if value is None:
            continue
        add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)]
        add(key, value)


def _write_tokenizer(writer: Any, pre: str, markers: tuple[str, ...]) -> None:
    """Nano's vocabulary with the markers after it."""
    described = json.loads((MODELS / "nano" / "tokenizer.json").read_text("utf-8"))
    by_id = {i: text for text, i in described["model"]["vocab"].items()}
    special = {token["id"]: token["content"] for token in described["added_tokens"]} | {
        8192 + i: text for i, text in enumerate(markers)
    }
    every = by_id | special
    tokens = [every.get(i, f"[PAD{i}]") for i in range(max(every) + 1)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if i in special else 1 if i in by_id else 5 for i in range(len(tokens))])
    writer.add_token_merges(
        [" ".join(pair) if isinstance(pair, list) else pair for pair in described["model"]["merges"]]
    )


def gguf_card(path: Path, architecture: str, **changes: Any) -> Card:
    """A card for one GGUF file in its folder."""
    return make_card(architecture, files={path.name: sha256(path)}, **changes)
