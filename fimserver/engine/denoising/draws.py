"""Seeded draws of tokens for the slots of a block, read from the device once per denoising step."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch

from fimserver.engine.device import to_device
from fimserver.engine.sampling import SlotProposals, draw, read
from fimserver.types import Sampling

NOTHING = SlotProposals((), (), (), ())


class Draws:
    """Draws tokens with a seeded generator. ``host``: one on the CPU, for schedules that draw slots."""

    def __init__(self, device: torch.device, sampling: Sampling, seed: int) -> None:
        self.sampling = sampling
        self.generator = torch.Generator(device).manual_seed(seed)
        self.host = self.generator if device.type == "cpu" else torch.Generator().manual_seed(seed)
        self._waiting: torch.Tensor | None = None
        self._queued = NOTHING

    def queue(self, logits: torch.Tensor) -> None:
        """Draw for the rows of logits (n, V), to be read by ``queued`` or with the next ``propose``."""
        self._waiting = self._draw(logits)

    def queued(self) -> SlotProposals:
        """Return and forget the queued draws. Raises ``NonFiniteError``."""
        if self._waiting is not None:
            (self._queued,) = read(self._waiting)
            self._waiting = None
        found, self._queued = self._queued, NOTHING
        return found

    def propose(self, logits: torch.Tensor, rows: Sequence[int]) -> SlotProposals:
        """Draw for some rows of logits (n, V), and read them with the queued draws.

        Raises ``NonFiniteError``.
        """
        drawn = self._draw(logits if len(rows) == len(logits) else rows_of(logits, rows))
        if self._waiting is None:
            return read(drawn)[0]
        self._queued, found = read(self._waiting, drawn)
        self._waiting = None
        return found

    def _draw(self, logits: torch.Tensor) -> torch.Tensor:
        return draw(logits, self.sampling.temperature, self.sampling.top_p, self.generator)


def rows_of(logits: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    """Copy some rows, without waiting for the device."""
    return logits.index_select(0, to_device([int(row) for row in rows], logits.device))


@functools.lru_cache(maxsize=8)
def columns(tokens: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Return token ids as a cached tensor on the device, for ``index_fill_``."""
    return torch.tensor(tokens, dtype=torch.long, device=device)
