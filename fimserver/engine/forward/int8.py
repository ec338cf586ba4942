"""Exact int8 products on a CPU: int8 weights, one scale an output channel; int8 activations, one scale a row.

The products are summed in int32 by oneDNN, so that the bits of a row do not depend on how many rows a pass
has.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

import torch

from fimserver.engine.forward.packed import Packed, pack

LARGEST = 127  # of both kinds of integers; -128 is not used
_ZERO = 128  # activations are stored unsigned, with this added: oneDNN has fast kernels for no other pair
_SMALLEST_SCALE = 1e-30  # a row of zeros has no scale of its own
_PROBE_WIDTH = 512


class Int8Linear:
    """A product with an int8 matrix, with an optional bias; fp32 in, fp32 out."""

    def __init__(
        self, values: torch.Tensor | Packed, scales: torch.Tensor, bias: torch.Tensor | None = None
    ) -> None:
        """``values`` (out, in) int8, ``scales`` (out,) and ``bias`` (out,) fp32.

        Of values that are not packed it keeps a packed copy.
        """
        self.scales = scales
        self.bias = bias
        self.zeros = torch.zeros(len(scales), dtype=torch.int64)
        self.packed, self._memory = values if isinstance(values, Packed) else pack(values)

    def __call__(self, x: torch.Tensor, /) -> torch.Tensor:
        """X (N, in) times the matrix: (N, out)."""
        integers, scales = quantize_rows(x)
        y = self.integers(integers)
        return y.mul_(scales) if self.bias is None else torch.addcmul(self.bias, y, scales)

    def integers(self, x: torch.Tensor) -> torch.Tensor:
        """The product: x (N, in), uint8 with zero at 128, to integer sums times the scales, fp32."""
        y: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
            x, 1.0, _ZERO, self.packed, self.scales, self.zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return y


def quantize_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Nearest integers of x (N, K) fp32 as uint8 with 128 added, and the scale (N, 1) of each row."""
    largest = x.abs().amax(-1, keepdim=True).add_(_SMALLEST_SCALE)
    shifted = x.mul(LARGEST / largest).add_(_ZERO + 0.5)
    return shifted.to(torch.uint8), largest.mul_(1 / LARGEST)


def quantize_weight(pieces: Iterable[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Int8 values (out, in) and scales (out,) of a matrix that comes in pieces of rows, fp32."""
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
