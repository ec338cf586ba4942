"""Attention of rows over a KV buffer, query heads that share keys folded into rows of one product."""

from __future__ import annotations

import functools

import torch
from torch.nn import functional as F

BLOCK_ROWS = 32  # from so many rows on, products are worth more than the conversions around them


def fold_bias(bias: torch.Tensor, groups: int, *, bf16: bool) -> torch.Tensor:
    """The bias (…, M, extent) of the scores for ``groups`` query heads a key head: (…, M * groups, extent).

    Its type selects the arithmetic of ``attend``; with ``bf16``, that is bf16 where a pass has many rows.
    """
    wide = bf16 and bias.shape[-2] >= BLOCK_ROWS
    if groups > 1:
        bias = bias.repeat_interleave(groups, -2)
    return bias.to(torch.bfloat16) if wide else bias


def attend(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor, scale: float
) -> torch.Tensor:
    """Queries (B, M, heads, D) over keys and values (B, kv heads, extent, D), folded bias.

    (B, M, heads * D).
    """
    folded = _folded(q, keys.shape[1])
    if bias.dtype == q.dtype:
        out = F.scaled_dot_product_attention(folded, keys, values, attn_mask=bias, scale=scale)
    else:
        out = _in_bf16(folded, keys, values, bias, scale).to(q.dtype)
    return _unfolded(out, q, keys.shape[1])


def attend_by_products(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor, scale: float
) -> torch.Tensor:
    """``attend`` by two products and a softmax between them, in bf16.

    Few heads keep few of a GPU's processors busy in one fused kernel; a product is cut into more pieces.
    """
    folded = _folded(q, keys.shape[1])
    out = _in_bf16(folded, keys, values, bias.to(torch.bfloat16), scale).to(q.dtype)
    return _unfolded(out, q, keys.shape[1])


def _folded(q: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """Queries (B, M, heads, D) as rows (B, kv heads, M * groups, D) of the keys that they share."""
    count, rows, _, size = q.shape
    return q.view(count, rows, kv_heads, -1, size).transpose(1, 2).reshape(count, kv_heads, -1, size)


def _unfolded(out: torch.Tensor, like: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """Rows (B * kv heads, M * groups, D) as (B, M, heads * D), of queries ``like`` (B, M, heads, D)."""
    count, rows, heads, size = like.shape
    return out.view(count, kv_heads, rows, -1, size).transpose(1, 2).reshape(count, rows, heads * size)


def _in_bf16(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor, scale: float
) -> torch.Tensor:
    """The same with two whole products in bf16.

    Torch's fused kernel does not use the processor's bf16 units.
    """
    q, keys, values = ((t.to(torch.bfloat16)).flatten(0, 1) for t in (q * scale, keys, values))
    scores = (
        torch.bmm(q, keys.transpose(1, 2))
        .view(-1, *bias.shape[-2:])
        .add_(bias.flatten(0, -3) if bias.dim() > 2 else bias)
    )
    return torch.bmm(scores.softmax(-1), values)


@functools.cache
def multiplies_bf16() -> bool:
    """Whether this processor multiplies bf16 natively, and torch makes use of it."""
    capable: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    # No public name exists.
    return capable and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001
