"""An opened checkpoint, of any file format."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer


@dataclass(frozen=True)
class Checkpoint:
    """The contents of a checkpoint, from which a network can be built.

    ``config``: that of transformers. ``pieces``: yields a tensor by transformers' name, in fp32, in pieces of
    rows; raises ``KeyError`` or ``LoadError`` if it is missing. ``native``: loads transformers' class on a
    device in a dtype; also returns transformers' loading report.
    """

    config: Any
    pieces: Callable[[str], Iterable[torch.Tensor]]
    tokenizer: Callable[[], Tokenizer]
    native: Callable[[torch.device | str, torch.dtype], tuple[Any, dict[str, Any]]]

    def tensor(self, name: str) -> torch.Tensor:
        """Return a whole tensor in fp32."""
        return torch.cat(list(self.pieces(name)))
