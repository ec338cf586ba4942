"""Linear layers of a fused pass: those over the same input as one product, packed for few rows on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from fimserver.engine.forward.layers import Linear


def is_plain(module: Any) -> bool:
    """Whether a linear layer's weights are plain tensors, which can be concatenated and packed."""
    return type(module.weight.data) is torch.Tensor


def is_quantised(module: Any) -> bool:
    """Whether a linear layer's weights are torchao's, which has its own matrix products."""
    return type(module.weight.data).__module__.partition(".")[0] == "torchao"


def joined(modules: Sequence[Any]) -> torch.Tensor:
    """Concatenate the weights of linear layers; the modules become views of it, so that no copy remains.

    Weights that are trained stay as they are, since gradients would not reach them through views of data.
    """
    if len(modules) == 1:
        only: torch.Tensor = modules[0].weight
        return only
    if torch.is_grad_enabled() and modules[0].weight.requires_grad:
        return torch.cat([m.weight for m in modules])
    weight = torch.cat([m.weight.detach() for m in modules])
    parts = torch.split(weight, [len(m.weight) for m in modules])
    for module, part in zip(modules, parts, strict=True):
        module.weight.data = part
    return weight


def linear(modules: list[Any], rows: int, *, pack: bool) -> Linear:
    """Merge linear layers over the same input into one product; quantised layers run one after another.

    ``pack``: packs the weights once, for passes of ``rows`` rows.
    """
    if not all(map(is_plain, modules)):
        return modules[0] if len(modules) == 1 else lambda x: torch.cat([m(x) for m in modules], -1)
    weight = torch.cat([m.weight for m in modules]) if pack else joined(modules)
    bias = torch.cat([m.bias for m in modules]) if modules[0].bias is not None else None
    if not pack:
        return lambda x: F.linear(x, weight, bias)
    # torch has no public functions for this.
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), rows)  # noqa: SLF001
    product = torch.ops.mkldnn._linear_pointwise  # noqa: SLF001
    return lambda x: product(x, packed, bias, "none", [], "")
