"""An opened checkpoint, whatever the format of its files."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer


@dataclass(frozen=True)
class Checkpoint:
    """The contents of a checkpoint, of which a network can be built.

    ``config``: of transformers. ``pieces``: a tensor by transformers' name, fp32, cut into pieces of rows;
    ``KeyError`` or ``LoadError`` where there is none. ``native``: transformers' class on a device, in a type,
    and what loading reported.
    """

    config: Any
    pieces: Callable[[str], Iterable[torch.Tensor]]
    tokenizer: Callable[[], Tokenizer]
    native: Callable[[torch.device | str, torch.dtype], tuple[Any, dict[str, Any]]]

    def tensor(self, name: str) -> torch.Tensor:
        """A whole tensor in fp32."""
        return torch.cat(list(self.pieces(name)))
