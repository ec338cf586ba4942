"""Reader of small safetensors files with metadata, such as drafters and adapters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open


def read_small(path: Path) -> tuple[Mapping[str, str], dict[str, torch.Tensor]]:
    """Read metadata, and tensors in fp32. Raises ``OSError`` or ``SafetensorError``."""
    with safe_open(path, "pt") as file:
        names = file.keys()  # it is not a mapping
        return file.metadata() or {}, {name: file.get_tensor(name).float() for name in names}
