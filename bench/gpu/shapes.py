"""Shapes of networks, and the bytes and operations that their passes need at least."""

from __future__ import annotations

from dataclasses import dataclass

BYTES = 2  # of a bf16 number


@dataclass(frozen=True)
class Shape:
    """A dense Qwen2 network, as its config.json has it."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocab: int
    tied: bool

    @property
    def block_weights(self) -> int:
        """Numbers in the matrices of all layers."""
        heads = 2 * self.heads + 2 * self.kv_heads
        return self.layers * self.hidden * (heads * self.head_dim + 3 * self.mlp)

    @property
    def head_weights(self) -> int:
        return self.hidden * self.vocab

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights in memory."""
        return BYTES * (self.block_weights + self.head_weights * (1 if self.tied else 2))

    @property
    def kv_bytes(self) -> int:
        """Bytes of the keys and values of one position."""
        return 2 * BYTES * self.layers * self.kv_heads * self.head_dim


QWEN_05B = Shape("0.5B", 896, 24, 14, 2, 64, 4864, 151936, tied=True)
QWEN_15B = Shape("1.5B", 1536, 28, 12, 2, 128, 8960, 151936, tied=True)
QWEN_7B = Shape("7B", 3584, 28, 28, 4, 128, 18944, 152064, tied=False)  # Dream-7B has the same
TOY = Shape("toy", 64, 2, 8, 2, 16, 96, 512, tied=True)
TOY_WIDE = Shape("toy wide", 96, 2, 8, 2, 16, 128, 512, tied=False)


@dataclass(frozen=True)
class Ceilings:
    """Measured peak rates of the device."""

    bytes_per_ms: float
    flops_per_ms: float

    def floor_ms(
        self,
        shape: Shape,
        rows: int,
        context: int,
        logits: int,
        branches: int = 1,
        weight_bytes: float = BYTES,
    ) -> float:
        """Least time of a pass of ``rows`` rows a branch over ``context`` keys, ``logits`` of them wanted.

        The larger of what has to be read and what has to be multiplied. ``weight_bytes``: of one weight.
        """
        every = rows * branches
        read = weight_bytes * (shape.block_weights + (shape.head_weights if logits else 0))
        read += branches * context * shape.kv_bytes
        flops = 2 * every * shape.block_weights + 2 * logits * branches * shape.head_weights
        flops += 4 * every * context * shape.heads * shape.head_dim * shape.layers
        return max(read / self.bytes_per_ms, flops / self.flops_per_ms)
