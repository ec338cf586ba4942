"""Exact int8 products on a CPU, with a scale per output channel of the weights and per activation row.

oneDNN sums the products in int32, so that the bits of a row do not depend on the number of rows in a pass.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

import torch

from fimserver.engine.forward.packed import Packed, pack

LARGEST = 127  # of weights and activations; -128 is not used
_ZERO = 128  # zero point: activations are unsigned, as oneDNN's fast kernels are for uint8 x int8 alone
_SMALLEST_SCALE = 1e-30  # keeps the scale of a row of zeros above 0
_PROBE_WIDTH = 512


class Int8Linear:
    """A linear layer with an int8 matrix and an optional bias; fp32 in, fp32 out."""

    def __init__(
        self, values: torch.Tensor | Packed, scales: torch.Tensor, bias: torch.Tensor | None = None
    ) -> None:
        """``values`` (out, in) int8, ``scales`` (out,) and ``bias`` (out,) fp32.

        Values that are not packed yet are copied in packed form.
        """
        self.scales = scales
        self.bias = bias
        self.zeros = torch.zeros(len(scales), dtype=torch.int64)
        self.packed, self._memory = values if isinstance(values, Packed) else pack(values)

    def __call__(self, x: torch.Tensor, /) -> torch.Tensor:
        """Multiply x (N, in) by the matrix: (N, out)."""
        integers, scales = quantize_rows(x)
        y = self.integers(integers)
        return y.mul_(scales) if self.bias is None else torch.addcmul(self.bias, y, scales)

    def cut(self, channels: torch.Tensor) -> Int8Linear:
        """Return the product for some output ``channels`` (n,), with their bits in the whole product."""
        values = self.packed.to_dense().T[channels]
        bias = None if self.bias is None else self.bias[channels]
        return Int8Linear(values.contiguous(), self.scales[channels], bias)

    def integers(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply x (N, in), uint8 with zero point 128; returns the integer sums times the scales, fp32."""
        y: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
            x, 1.0, _ZERO, self.packed, self.scales, self.zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return y


def quantize_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise x (N, K) fp32 to the nearest integers, uint8 with zero point 128, and row scales (N, 1)."""
    largest = x.abs().amax(-1, keepdim=True).add_(_SMALLEST_SCALE)
    shifted = x.mul(LARGEST / largest).add_(_ZERO + 0.5)
    return shifted.to(torch.uint8), largest.mul_(1 / LARGEST)


def quantize_weight(pieces: Iterable[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise a matrix that comes in pieces of rows, fp32: int8 values (out, in) and scales (out,)."""
    values = []
    scales = []
    for rows in pieces:
        scale = rows.abs().amax(1).clamp_min(_SMALLEST_SCALE) / LARGEST
        values.append((rows / scale[:, None]).round_().to(torch.int8))
        scales.append(scale)
    return torch.cat(values), torch.cat(scales)


@functools.cache
def is_exact() -> bool:
    """Whether this machine's kernels give exact integer sums for 1 to 32 rows.

    Processors without VNNI may saturate in 16 bits, and builds of torch without oneDNN lack the kernels.
    """
    has_onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not has_onednn or not hasattr(torch.ops.onednn, "qlinear_pointwise"):
        return False
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(-LARGEST, LARGEST + 1, (64, _PROBE_WIDTH), generator=generator, dtype=torch.int8)
    values[0] = LARGEST
    integers = torch.randint(-LARGEST, LARGEST + 1, (32, _PROBE_WIDTH), generator=generator)
    integers[:, 0] = LARGEST
    integers[0] = LARGEST
    wanted = (integers @ values.T.long()).float()
    try:
        product = Int8Linear(values, torch.ones(64))
        return all(torch.equal(product(integers[:n].float()), wanted[:n]) for n in (1, 2, 8, 32))
    except (RuntimeError, NotImplementedError):
        return False
