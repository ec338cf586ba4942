"""Grouped-query attention over a KV buffer: query heads that share keys become rows of one product."""

from __future__ import annotations

import contextlib
import functools
from contextlib import AbstractContextManager

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

FEW_ROWS = 64  # up to which a GPU attends by products; 8 rows took half of the time (docs/benchmarks.md)
BLOCK_ROWS = 32  # rows from which bf16 products save more time than the conversions cost


def fold_bias(bias: torch.Tensor, groups: int, *, bf16: bool) -> torch.Tensor:
    """Repeat a bias (…, M, extent) for ``groups`` query heads per key head: (…, M * groups, extent).

    Its dtype selects the arithmetic of ``attend``: with ``bf16``, passes of ``BLOCK_ROWS`` rows and more get
    a bf16 bias.
    """
    wide = bf16 and bias.shape[-2] >= BLOCK_ROWS
    if groups > 1:
        bias = bias.repeat_interleave(groups, -2)
    return bias.to(torch.bfloat16) if wide else bias


def attend(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor, scale: float
) -> torch.Tensor:
    """Attend with queries (B, M, heads, D) over keys and values (B, kv heads, extent, D): (B, M, heads * D).

    ``bias``: from ``fold_bias``.
    """
    if bias.dtype == q.dtype and not _leaves_idle(q):
        return attend_in_one_kernel(q, keys, values, bias, scale)
    return attend_by_products(q, keys, values, bias, scale)


def _leaves_idle(q: torch.Tensor) -> bool:
    """Whether one kernel for all of attention would leave most of a GPU idle.

    It cuts its work by key heads and blocks of rows alone: 2 to 8 blocks for 132 multiprocessors.
    """
    return q.is_cuda and q.dtype == torch.bfloat16 and q.shape[1] <= FEW_ROWS


def attend_in_one_kernel(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor, scale: float
) -> torch.Tensor:
    """Do what ``attend`` does with PyTorch's fused kernel."""
    folded = _folded(q, keys.shape[1])
    out = F.scaled_dot_product_attention(folded, keys, values, attn_mask=bias, scale=scale)
    return _unfolded(out, q, keys.shape[1])


def attend_all(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    bias: torch.Tensor,  # noqa: ARG001 - the shape of ``attend``
    scale: float,
) -> torch.Tensor:
    """Do what ``attend`` does with a bias of zeros, which is not read."""
    out = F.scaled_dot_product_attention(_folded(q, keys.shape[1]), keys, values, scale=scale)
    return _unfolded(out, q, keys.shape[1])


def attend_by_products(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor, scale: float
) -> torch.Tensor:
    """Do what ``attend`` does with two matrix products and a softmax, in bf16."""
    folded = _folded(q, keys.shape[1])
    out = _in_bf16(folded, keys, values, bias.to(torch.bfloat16), scale).to(q.dtype)
    return _unfolded(out, q, keys.shape[1])


def one_kernel(device: torch.device) -> AbstractContextManager[None]:
    """Return a context in which passes on a GPU attend by one kernel.

    PyTorch prefers cuDNN there, which plans and compiles a kernel for each shape: that takes time at load,
    and a row's bits then depend on the number of rows.
    """
    if device.type != "cuda":
        return contextlib.nullcontext()
    kernel: AbstractContextManager[None] = sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])
    return kernel


def _folded(q: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """Reshape queries (B, M, heads, D) to (B, kv heads, M * groups, D)."""
    count, rows, _, size = q.shape
    return q.view(count, rows, kv_heads, -1, size).transpose(1, 2).reshape(count, kv_heads, -1, size)


def _unfolded(out: torch.Tensor, like: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """Reshape rows (B * kv heads, M * groups, D) to (B, M, heads * D); ``like``: queries (B, M, heads, D)."""
    count, rows, heads, size = like.shape
    return out.view(count, kv_heads, rows, -1, size).transpose(1, 2).reshape(count, rows, heads * size)


def _in_bf16(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor, scale: float
) -> torch.Tensor:
    """Attend with two matrix products in bf16: torch's fused kernel does not use a CPU's bf16 units."""
    if bias.dim() == 4:
        bias = bias.expand(*q.shape[:2], -1, -1).flatten(0, 1)
    q, keys, values = ((t.to(torch.bfloat16)).flatten(0, 1) for t in (q * scale, keys, values))
    scores = torch.bmm(q, keys.transpose(1, 2)).view(-1, *bias.shape[-2:]).add_(bias)
    return torch.bmm(scores.softmax(-1), values)


@functools.cache
def multiplies_bf16() -> bool:
    """Whether this processor multiplies bf16 natively, and torch uses it."""
    capable: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    # torch has no public function for this.
    return capable and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001
