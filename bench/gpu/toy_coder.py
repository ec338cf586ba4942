"""A tiny random coder, held-out texts and an adapter, in the form of the real ones."""

from __future__ import annotations

from pathlib import Path

import torch

TOY_MARKERS = 500  # the first id that is no text
TOY_PAD = 505
VOCAB, HIDDEN, LAYERS, HEADS, KV_HEADS, MLP = 512, 64, 2, 4, 2, 96
TEXTS, PROMPT, MIDDLE = 12, 40, 12
RANK = 4


def write_toy(folder: Path) -> tuple[Path, Path]:
    """Write the files; returns the folder and the adapter's path."""
    _write_weights(folder / "cut.gguf")
    _write_texts(folder / "valid.safetensors")
    adapter = folder / "adapter.safetensors"
    _write_adapter(adapter)
    (folder / "toy").touch()
    return folder, adapter


def _write_weights(path: Path) -> None:
    import gguf

    draw = torch.Generator().manual_seed(0)
    size = HIDDEN // HEADS
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(MLP)
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_context_length(4096)
    writer.add_rope_freq_base(1e6)

    def add(name: str, *shape: int) -> None:
        numbers = torch.ones(shape) if "norm" in name else 0.05 * torch.randn(shape, generator=draw)
        writer.add_tensor(name, numbers.numpy())

    add("token_embd.weight", VOCAB, HIDDEN)
    add("output_norm.weight", HIDDEN)
    for layer in range(LAYERS):
        for name, rows in (("q", HEADS * size), ("k", KV_HEADS * size), ("v", KV_HEADS * size)):
            add(f"blk.{layer}.attn_{name}.weight", rows, HIDDEN)
            add(f"blk.{layer}.attn_{name}.bias", rows)
        add(f"blk.{layer}.attn_output.weight", HIDDEN, HIDDEN)
        add(f"blk.{layer}.attn_norm.weight", HIDDEN)
        add(f"blk.{layer}.ffn_norm.weight", HIDDEN)
        add(f"blk.{layer}.ffn_gate.weight", MLP, HIDDEN)
        add(f"blk.{layer}.ffn_up.weight", MLP, HIDDEN)
        add(f"blk.{layer}.ffn_down.weight", HIDDEN, MLP)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_texts(path: Path) -> None:
    """Prompts of a suffix, a prefix and a marker between them."""
    from safetensors.torch import save_file

    length = PROMPT + MIDDLE
    ids = torch.randint(TOY_MARKERS, (TEXTS, length), generator=torch.Generator().manual_seed(1))
    ids[:, PROMPT // 4] = TOY_MARKERS
    tensors = {
        "ids": ids.flatten().to(torch.uint16),
        "starts": length * torch.arange(TEXTS + 1),
        "prompt": torch.full((TEXTS,), PROMPT, dtype=torch.int32),
        "prefix_at": torch.full((TEXTS,), PROMPT // 4 + 1, dtype=torch.int32),
        "kept": torch.arange(VOCAB, dtype=torch.int32),
    }
    save_file(tensors, path, {"base": "toy"})


def _write_adapter(path: Path) -> None:
    from fimserver.engine.forward.adapter import CanvasAdapter, save_adapter

    draw = torch.Generator().manual_seed(2)

    def some(*shape: int) -> torch.Tensor:
        return 0.1 * torch.randn(shape, generator=draw)

    size = HIDDEN // HEADS
    products = {
        "qkv": (HIDDEN, (HEADS + 2 * KV_HEADS) * size),
        "out": (HIDDEN, HIDDEN),
        "gate_up": (HIDDEN, 2 * MLP),
        "down": (MLP, HIDDEN),
    }
    branches = {
        f"{layer}.{name}": (some(RANK, inward), some(outward, RANK))
        for layer in range(LAYERS)
        for name, (inward, outward) in products.items()
    }
    sampler = some(8, 2 * HIDDEN), some(HIDDEN, 8)
    save_adapter(CanvasAdapter("toy", (1, 2, 8), (0.05, 1.0), some(HIDDEN), branches, sampler), path)
