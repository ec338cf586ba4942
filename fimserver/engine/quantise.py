"""Weights in 8 and 4 bits by torchao, in place of the 16-bit ones of a network of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fimserver.errors import LoadError

QUANTISED = ("int8", "int4")  # numbers that torchao makes of 16-bit weights
# The layout of torch's own int4 products (others need another library), and how many weights share a scale.
INT4_OPTIONS: Mapping[str, Any] = {"int4_packing_format": "tile_packed_to_4d", "group_size": 128}


def quantise(model: Any, arithmetic: str, device: torch.device) -> None:
    """Bring the weights of all products to the device in 8 or 4 bits by torchao, the rest as it is.

    Raises ``LoadError`` where torchao is missing or has no such weights for the device.
    """
    if arithmetic == "int4" and device.type == "cpu":
        raise LoadError("int4 is for CUDA GPUs: use --quantize int8 on a CPU")
    try:
        from torchao.quantization import (  # noqa: PLC0415 - optional
            Int4WeightOnlyConfig,
            Int8WeightOnlyConfig,
            quantize_,
        )
    except ImportError:
        raise LoadError(f"{arithmetic} needs torchao: `pip install 'fimserver[gpu]'`") from None
    config = Int8WeightOnlyConfig() if arithmetic == "int8" else Int4WeightOnlyConfig(**INT4_OPTIONS)
    quantize_(model, config, device=device)
    model.to(device)
