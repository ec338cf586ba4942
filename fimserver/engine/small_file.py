"""Small safetensors files of our own, such as drafters and adapters, whose metadata say what they are for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open


def read_small(path: Path) -> tuple[Mapping[str, str], dict[str, torch.Tensor]]:
    """The metadata of a file, and its tensors in fp32. Raises ``OSError`` and ``SafetensorError``."""
    with safe_open(path, "pt") as file:
        names = file.keys()  # it is no mapping
        return file.metadata() or {}, {name: file.get_tensor(name).float() for name in names}
