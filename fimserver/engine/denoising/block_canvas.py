"""Canvas of block diffusion: slots are denoised block after block (arXiv 2503.09573; SDAR, arXiv 2510.06303).

Blocks begin at multiples of their length from the start of the prompt; a token attends to its own block and
those before it. So keys and values of finished blocks are final, and a step runs one block. The end of the
prompt shares its block with the first slots.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

import torch

from fimserver.engine.forward.passes import Pass, finish
from fimserver.engine.forward.prefix_cache import PrefixCache
from fimserver.types import Deadline, Prefill


class BlockCanvas:
    """Slots after a context, in blocks of ``block`` tokens.

    The rows of a finished block are computed once more, with the first step of the next block, and then kept.
    A slot's own row predicts it; with ``shift``, the row before it. For the first slot of a block that is the
    last row of the finished block, so that slot is filled first, from text alone (Fast-dLLM v2, arXiv
    2509.26328).
    """

    def __init__(
        self,
        cache: PrefixCache,
        context: Sequence[int],
        block: int,
        sub_block: int = 0,
        *,
        shift: bool = False,
    ) -> None:
        """``sub_block``: tokens in the parts of a block that are filled left to right; 0: the whole block."""
        self.cache = cache
        self.block = block
        self.sub_block = sub_block or block
        self.shift = shift
        self._context = list(context[: len(context) // block * block])  # in whole blocks
        self._text = list(context)  # with the slots of finished blocks
        self._stored = len(self._context)  # tokens whose keys and values are final
        self._next = torch.empty(0)  # (V,) logits of the token after the stored ones, with ``shift``
        self._before = cache.prompts.current.forwards

    @property
    def forwards(self) -> int:
        return self.cache.prompts.current.forwards - self._before

    @property
    def prefilled(self) -> Prefill:
        return self.cache.prefilled

    @property
    def room(self) -> int:
        """Number of slots in the next block."""
        return self.block - len(self._text) % self.block

    def open(self, deadline: Deadline) -> bool:
        return finish(self.opening(deadline))

    def opening(self, deadline: Deadline) -> Generator[Pass, None, bool]:
        follows = self.shift and bool(self._context) and self._text == self._context
        logits = yield from self.cache.prefilling(self._context, deadline, want_logits=follows)
        self._next = logits if follows and logits is not None else self._next
        return logits is not None

    def window(self, masked: Sequence[int]) -> Sequence[int]:
        """Return the masked slots that the next step may fill: those of the first part with any."""
        if self.shift and self.room == self.block and self._text and masked[0] == 0:
            return masked[:1]
        before = self.block - self.room
        part = (before + masked[0]) // self.sub_block
        return [slot for slot in masked if (before + slot) // self.sub_block == part]

    def predict(self, slots: Sequence[int]) -> torch.Tensor:
        """Return logits (n, V) of ``room`` slots; those of ``window`` at least are valid."""
        return finish(self.predicting(slots))

    def predicting(self, slots: Sequence[int]) -> Generator[Pass, None, torch.Tensor]:
        assert len(slots) == self.room
        pending = self._text[self._stored :]
        at_start = self.shift and self.room == self.block
        if at_start and pending:
            last = yield from self._run(pending, range(len(pending) - 1, len(pending)))
            return last.expand(len(slots), -1)
        if at_start and len(self._next):
            self._next, logits = torch.empty(0), self._next
            return logits.expand(len(slots), -1)
        rows = [*pending, *slots]
        first = len(pending) - int(self.shift)
        logits = yield from self._run(rows, range(max(first, 0), first + len(slots)))
        # The row before the first slot is not in the pass: the slot is filled by now, or begins the text.
        return logits if first >= 0 else torch.cat([logits[:1], logits])

    def settle(self, slots: Sequence[int]) -> None:
        self._text += slots

    def _run(self, rows: Sequence[int], wanted: range) -> Generator[Pass, None, torch.Tensor]:
        """Run rows after the stored ones; returns the wanted logits. Finished blocks are stored with it."""
        numbers = torch.arange(wanted.start, wanted.stop, device=self.cache.network.device)
        mask = self.cache.causal(self._stored, len(rows))
        step = self.cache.rows_pass(rows, self._stored, mask, numbers)
        yield step
        logits = step.result()[0]
        self._stored = len(self._text) // self.block * self.block
        return logits
