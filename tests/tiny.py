"""Tiny random checkpoints in the layout of real ones: config, tensor names, tokenizer files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer

from fimserver.cards import MODELS, Card

SIZES = {
    "vocab_size": 8320,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 2048,
}
CONFIGS: dict[str, Any] = {
    "qwen2": lambda: transformers.Qwen2Config(**SIZES, num_key_value_heads=2, intermediate_size=96),
    "qwen3": lambda: transformers.Qwen3Config(**SIZES, num_key_value_heads=2, intermediate_size=96, head_dim=16),
    "llama": lambda: transformers.LlamaConfig(**SIZES, num_key_value_heads=4, intermediate_size=96),
    "mistral": lambda: transformers.MistralConfig(**SIZES, num_key_value_heads=2, intermediate_size=96, sliding_window=None),
    "starcoder2": lambda: transformers.Starcoder2Config(
        **SIZES, num_key_value_heads=2, intermediate_size=96, sliding_window=None
    ),
    "gpt_bigcode": lambda: transformers.GPTBigCodeConfig(
        vocab_size=8320, n_embd=64, n_layer=2, n_head=4, n_inner=96, n_positions=2048, multi_query=True
    ),
    "gemma": lambda: transformers.GemmaConfig(**SIZES, num_key_value_heads=1, intermediate_size=96, head_dim=16),
    "granite": lambda: transformers.GraniteConfig(**SIZES, num_key_value_heads=2, intermediate_size=96, logits_scaling=4.0),
    "deepseek_v2": lambda: transformers.DeepseekV2Config(
        **SIZES, num_key_value_heads=4, intermediate_size=96, moe_intermediate_size=32, n_routed_experts=4, n_shared_experts=1,
        num_experts_per_tok=2, first_k_dense_replace=1, kv_lora_rank=16, q_lora_rank=None, qk_nope_head_dim=16,
        qk_rope_head_dim=8, v_head_dim=16, n_group=1, topk_group=1,
    ),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
        **SIZES, num_key_value_heads=2, intermediate_size=96, head_dim=16, moe_intermediate_size=32, num_experts=4,
        num_experts_per_tok=2,
    ),
}  # fmt: skip
MARKERS = ("<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<eos>", "<bos>", "<|mask|>", "<|expand|>")


def make_card(architecture: str, **changes: Any) -> Card:
    """A card for a tiny checkpoint; ``changes`` replace whole fields."""
    fim = {
        "layout": "psm",
        "prefix": "<fim_prefix>",
        "suffix": "<fim_suffix>",
        "middle": "<fim_middle>",
        "stops": ("<eos>",),
    }
    fields: dict[str, Any] = {
        "name": "tiny",
        "hub": "someone/tiny",
        "licence": "MIT",
        "osi": True,
        "parameters_m": 1.0,
        "architecture": architecture,
        "prompt_tokens": 256,
        "max_new_tokens": 48,
        "fim": fim,
    }
    return Card.model_validate(fields | changes)


DREAM_CANVAS: dict[str, Any] = {
    "attention": "full",
    "mask": "<|mask|>",
    "shift": True,
    "start": "<bos>",
    "after_suffix": "<eos>",
    "length": "fixed",
    "initial_tokens": 8,
    "max_tokens": 24,
    "schedule": "entropy",
}
DREAMON_CANVAS = DREAM_CANVAS | {"length": "expand", "expand": "<|expand|>", "delete": "<eos>"}


def make_checkpoint(folder: Path, architecture: str, seed: int = 0, **changes: Any) -> Path:
    """Write a random model of ``architecture`` (``Dream``: native Qwen2 tensors, the original's config) and a tokenizer.

    ``changes`` replace fields of its config.
    """
    torch.manual_seed(seed)
    native = "qwen2" if architecture == "Dream" else architecture
    config = CONFIGS[native]()
    for name, value in changes.items():
        setattr(config, name, value)
    config.initializer_range = 0.2  # far from uniform, so that a random model has opinions
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    if architecture == "Dream":
        _as_dream(folder)
    _write_tokenizer(folder)
    return folder


def write_checkpoint(folder: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    """Write tensors of other names than transformers', their config, and a tokenizer."""
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    _write_tokenizer(folder)


def _write_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(MODELS / "nano" / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in MARKERS])
    tokenizer.save(str(folder / "tokenizer.json"))


def copy_checkpoint(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


def _as_dream(folder: Path) -> None:
    """The original's config.json (reference: DreamLM/Dream): remote-code class names and a flat rope_theta."""
    config = json.loads((folder / "config.json").read_text())
    rope = config.pop("rope_parameters", {})
    config |= {
        "model_type": "Dream",
        "architectures": ["DreamModel"],
        "auto_map": {
            "AutoConfig": "configuration_dream.DreamConfig",
            "AutoModel": "modeling_dream.DreamModel",
        },
        "rope_theta": rope.get("rope_theta", 1e6),
        "mask_token_id": 8197,
    }
    (folder / "config.json").write_text(json.dumps(config))
