"""Canvases: compute the logits of the slots of the dllm route.

``CachedCanvas``: the context is causal and stays in the KV cache; each step runs the canvas rows alone
(exact). ``ShiftedCanvas``: the same for networks whose rows predict the next position. ``FullCanvas``:
attention is full, so each step runs the whole sequence (the Dream family).
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Protocol, runtime_checkable

import torch

from fimserver.engine.device import to_device
from fimserver.engine.forward.kv import UnkeptKV
from fimserver.engine.forward.network import Network
from fimserver.engine.forward.passes import Pass, finish
from fimserver.engine.forward.prefix_cache import PrefixCache
from fimserver.lengths import common_prefix
from fimserver.types import Deadline, Prefill


class CanvasForward(Protocol):
    """Computes logits for the slots of a canvas."""

    @property
    def forwards(self) -> int:
        """Number of passes so far, prefill included."""
        ...

    @property
    def prefilled(self) -> Prefill:
        """Rows and passes of ``open``, without its time."""
        ...

    def open(self, deadline: Deadline) -> bool:
        """Prefill the context; ``False`` if the deadline passed."""
        ...

    def predict(self, slots: Sequence[int]) -> torch.Tensor:
        """Return logits (n, V); row i predicts slot i."""
        ...

    def settle(self, slots: Sequence[int]) -> None:
        """Append finished slots to the left context, before the next block."""
        ...


@runtime_checkable
class SteppedCanvas(CanvasForward, Protocol):
    """A canvas that yields its passes before they are run, so that they can run with other requests'."""

    def opening(self, deadline: Deadline) -> Generator[Pass, None, bool]:
        """Yield the passes of ``open``; returns what it does."""
        ...

    def predicting(self, slots: Sequence[int]) -> Generator[Pass, None, torch.Tensor]:
        """Yield the passes of ``predict``; returns what it does."""
        ...


def opening(canvas: CanvasForward, deadline: Deadline) -> Generator[Pass, None, bool]:
    """Yield the passes of ``CanvasForward.open`` that can run with others; returns what it does."""
    if isinstance(canvas, SteppedCanvas):
        return (yield from canvas.opening(deadline))
    return canvas.open(deadline)


def predicting(canvas: CanvasForward, slots: Sequence[int]) -> Generator[Pass, None, torch.Tensor]:
    """Yield the passes of ``CanvasForward.predict`` that can run with others; returns its logits."""
    if isinstance(canvas, SteppedCanvas):
        return (yield from canvas.predicting(slots))
    return canvas.predict(slots)


class CachedCanvas:
    """Slots after a causal context; each slot's own row predicts it."""

    def __init__(self, cache: PrefixCache, context: Sequence[int], network: Network | None = None) -> None:
        """``network``: runs the slots on the cache's keys and values; ``None``: the cache's network."""
        self.cache = cache
        self.network = network or cache.network
        self.context = list(context)
        self._before = cache.prompts.current.forwards

    @property
    def forwards(self) -> int:
        return self.cache.prompts.current.forwards - self._before

    @property
    def prefilled(self) -> Prefill:
        return self.cache.prefilled

    def open(self, deadline: Deadline) -> bool:
        return finish(self.opening(deadline))

    def opening(self, deadline: Deadline) -> Generator[Pass, None, bool]:
        return (yield from self.cache.prefilling(self.context, deadline, want_logits=False)) is not None

    def predict(self, slots: Sequence[int]) -> torch.Tensor:
        return finish(self.predicting(slots))

    def predicting(self, slots: Sequence[int]) -> Generator[Pass, None, torch.Tensor]:
        start = len(self.context)
        count = len(slots)
        every = torch.arange(count, device=self.network.device)
        step = self.cache.rows_pass(slots, start, self.cache.block(start, count), every, self.network)
        yield step
        return step.result()[0]

    def settle(self, slots: Sequence[int]) -> None:
        self.context += slots


class ShiftedCanvas:
    """Slots after a causal context, for a network in which the row before a slot predicts it.

    Slots left of the first mask are text: causal rows, which stay in the KV buffer for later steps. The rows
    from the first mask on attend to all before them and to each other. So the first masked slot is always
    predicted from text alone.
    """

    def __init__(self, cache: PrefixCache, context: Sequence[int], network: Network, mask_token: int) -> None:
        self.cache = cache
        self.network = network
        self.mask_token = mask_token
        self.context = list(context)
        self._before = cache.prompts.current.forwards
        self._done: list[int] = []  # slots of earlier blocks
        self._text: list[int] = []  # leading slots whose rows are in the buffer as text
        self._logits: list[
            torch.Tensor
        ] = []  # (V,) of the context's last row and of each row of ``_text``: predicts the slot after it

    @property
    def forwards(self) -> int:
        return self.cache.prompts.current.forwards - self._before

    @property
    def prefilled(self) -> Prefill:
        return self.cache.prefilled

    def open(self, deadline: Deadline) -> bool:
        return finish(self.opening(deadline))

    def opening(self, deadline: Deadline) -> Generator[Pass, None, bool]:
        if not self._logits:
            logits = yield from self.cache.prefilling(self.context, deadline, want_logits=True)
            self._logits = [] if logits is None else [logits]
        return bool(self._logits)

    def predict(self, slots: Sequence[int]) -> torch.Tensor:
        return finish(self.predicting(slots))

    def predicting(self, slots: Sequence[int]) -> Generator[Pass, None, torch.Tensor]:
        ids = [*self._done, *slots]
        known = next((i for i, token in enumerate(ids) if token == self.mask_token), len(ids))
        read = min(common_prefix(self._text, ids[:known]), len(ids) - 1)
        start = len(self.context) + read
        rows = ids[read:]
        mask = self.cache.causal(
            start, len(rows)
        ).clone()  # with the extent of plain decoding, so that text rows have its bits
        mask[known - read :, : start + len(rows)] = True
        every = torch.arange(len(rows), device=self.network.device)
        step = self.cache.rows_pass(rows, start, mask, every, self.network)
        yield step
        logits = step.result()[0]
        self._text = ids[:known]
        self._logits = [*self._logits[: read + 1], *logits[: known - read]]
        return torch.cat([torch.stack(self._logits[len(self._done) :]), logits[known - read : -1]])[
            : len(slots)
        ]

    def settle(self, slots: Sequence[int]) -> None:
        self._done += slots


class FullCanvas:
    """Slots between left and right context with full attention; with ``shift``, row i - 1 predicts slot i."""

    def __init__(self, network: Network, left: Sequence[int], right: Sequence[int], *, shift: bool) -> None:
        self.network = network
        self.left = list(left)
        self.right = list(right)
        self.shift = shift
        self.forwards = 0
        self.rows = 0  # of all passes
        self.prefilled = Prefill()

    def open(self, deadline: Deadline) -> bool:
        return finish(self.opening(deadline))

    def opening(self, deadline: Deadline) -> Generator[Pass, None, bool]:
        yield from ()
        return deadline.spent() is None

    def predict(self, slots: Sequence[int]) -> torch.Tensor:
        return finish(self.predicting(slots))

    def predicting(self, slots: Sequence[int]) -> Generator[Pass, None, torch.Tensor]:
        device = self.network.device
        ids = to_device([[*self.left, *slots, *self.right]], device)
        count = ids.shape[1]
        first = len(self.left) - int(self.shift)
        # Row 0 also serves as the missing row before it (Dream).
        rows = torch.arange(first, first + len(slots), device=device).clamp(min=0)
        every = torch.ones((), dtype=torch.bool, device=device).expand(count, count)
        step = Pass(self.network, UnkeptKV(), ids, 0, every, rows)
        yield step
        logits = step.result()[0]
        self.forwards += 1
        self.rows += count
        return logits

    def settle(self, slots: Sequence[int]) -> None:
        self.left += slots
