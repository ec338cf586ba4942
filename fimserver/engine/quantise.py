"""Quantises the linear layers of a network of transformers to 8 or 4 bits by torchao."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fimserver.errors import LoadError

QUANTISED = ("int8", "int4")
# The layout of torch's own int4 products (others need another library), and the weights per scale.
INT4_OPTIONS: Mapping[str, Any] = {"int4_packing_format": "tile_packed_to_4d", "group_size": 128}


def quantise(model: Any, arithmetic: str, device: torch.device) -> None:
    """Move a model to the device with the weights of its linear layers in 8 or 4 bits.

    Raises ``LoadError`` if torchao is missing or does not support this on the device.
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
