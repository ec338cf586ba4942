"""Draws of tokens for the slots of a block: those of one denoising step are read from the device together."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch

from fimserver.engine.device import to_device
from fimserver.engine.sampling import SlotProposals, draw, read
from fimserver.types import Sampling

NOTHING = SlotProposals((), (), (), ())


class Draws:
    """Draws by a seed. ``host``: a generator of the host, for schedules that draw slots."""

    def __init__(self, device: torch.device, sampling: Sampling, seed: int) -> None:
        self.sampling = sampling
        self.generator = torch.Generator(device).manual_seed(seed)
        self.host = self.generator if device.type == "cpu" else torch.Generator().manual_seed(seed)
        self._waiting: torch.Tensor | None = None
        self._queued = NOTHING

    def queue(self, logits: torch.Tensor) -> None:
        """Draw for the rows of (n, V) logits; ``queued`` has what was drawn."""
        self._waiting = self._draw(logits)

    def queued(self) -> SlotProposals:
        """What was queued last, once. Raises ``NonFiniteError``."""
        if self._waiting is not None:
            (self._queued,) = read(self._waiting)
            self._waiting = None
        found, self._queued = self._queued, NOTHING
        return found

    def propose(self, logits: torch.Tensor, rows: Sequence[int]) -> SlotProposals:
        """Draw for some rows of (n, V) logits; what is queued is read with them.

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
    """A copy of some rows; their numbers are sent to the device without waiting for it."""
    return logits.index_select(0, to_device([int(row) for row in rows], logits.device).long())


@functools.lru_cache(maxsize=8)
def columns(tokens: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Ids of tokens on the device, for ``index_fill_``: sent once."""
    return torch.tensor(tokens, dtype=torch.long, device=device)
