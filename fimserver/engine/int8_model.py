"""The fused network of an int8 checkpoint."""

from __future__ import annotations

import torch

from fimserver.engine.forward.attention import multiplies_bf16
from fimserver.engine.forward.fused import FusedWeights
from fimserver.engine.forward.int8 import Int8Linear
from fimserver.engine.forward.layers import GatedMlp, Layer, ModelShape, Stack
from fimserver.engine.weights.int8_cache import Int8Checkpoint, Int8Shape


def int8_weights(checkpoint: Int8Checkpoint) -> FusedWeights:
    """Build the fused network; matrices that are not packed yet are copied in oneDNN's layout."""
    shape = checkpoint.shape
    tensors = checkpoint.tensors
    embedding = tensors["embedding"]
    sizes = ModelShape(shape.heads, shape.kv_heads, shape.head_dim, shape.eps, shape.head_dim**-0.5)
    layers = [_layer(checkpoint, index) for index in range(shape.layers)]
    return FusedWeights(
        lambda ids: embedding[ids].float(),
        Stack(layers, sizes, bf16_attention=multiplies_bf16()),
        _own(checkpoint, "norm"),
        _linear(checkpoint, "head"),
        len(embedding),
        lambda positions: rotary(shape, positions),
    )


def rotary(shape: Int8Shape, positions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cosines and sines (T, 1, D) of plain rotary embeddings (arXiv 2104.09864), half-split."""
    inverse = 1.0 / shape.theta ** (torch.arange(0, shape.head_dim, 2).float() / shape.head_dim)
    angles = torch.outer(torch.arange(positions).float(), inverse).repeat(1, 2)[:, None]
    return angles.cos(), angles.sin()


def _layer(checkpoint: Int8Checkpoint, index: int) -> Layer:
    norms = checkpoint.shape.qk_norm
    return Layer(
        _own(checkpoint, f"{index}.input_norm"),
        _linear(checkpoint, f"{index}.qkv"),
        _own(checkpoint, f"{index}.q_norm") if norms else None,
        _own(checkpoint, f"{index}.k_norm") if norms else None,
        _linear(checkpoint, f"{index}.out"),
        _own(checkpoint, f"{index}.mlp_norm"),
        GatedMlp(_linear(checkpoint, f"{index}.gate_up"), _linear(checkpoint, f"{index}.down")),
    )


def _linear(checkpoint: Int8Checkpoint, name: str) -> Int8Linear:
    bias = _own(checkpoint, f"{name}.bias") if f"{name}.bias" in checkpoint.tensors else None
    values = checkpoint.packed.get(name) or checkpoint.tensors[f"{name}.values"]
    return Int8Linear(values, _own(checkpoint, f"{name}.scales"), bias)


def _own(checkpoint: Int8Checkpoint, name: str) -> torch.Tensor:
    """Copy a small tensor, so that it does not keep its file mapped."""
    return checkpoint.tensors[name].clone()
