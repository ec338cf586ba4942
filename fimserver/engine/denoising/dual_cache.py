"""Cache for networks with full attention, which reuses keys and values of prefix and suffix.

A whole pass computes all rows. The passes after it run the canvas alone, on the keys and values of the whole
pass for the rest (dual cache, Fast-dLLM, arXiv 2505.22618): an approximation, as those of prefix and suffix
do not depend on what the canvas has become. ``Refresh`` decides when a whole pass is due.

When the canvas changes its length, or the user types, the suffix moves: its keys are rotated by the distance
(rotary position embedding, arXiv 2104.09864), its values stay. So typing costs the rows of the typed tokens
and of the canvas.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass

import torch

from fimserver.engine.denoising.canvas import FullCanvas
from fimserver.engine.denoising.refresh import Refresh
from fimserver.engine.device import to_device, wait_for
from fimserver.engine.forward.kv import KVBuffer
from fimserver.engine.forward.network import Network
from fimserver.engine.forward.passes import Pass, finish, until_spent
from fimserver.lengths import common_prefix
from fimserver.types import Deadline, Prefill, ms_since


@dataclass(frozen=True)
class CanvasText:
    """Token ids left of a canvas, on it, and right of it. ``filled``: number of slots that are not masks."""

    left: tuple[int, ...]
    slots: tuple[int, ...]
    right: tuple[int, ...]
    filled: int

    @property
    def ids(self) -> list[int]:
        return [*self.left, *self.slots, *self.right]

    @property
    def right_start(self) -> int:
        return len(self.left) + len(self.slots)


class DualCache:
    """Keys and values of one whole sequence, and its state at the last whole pass.

    ``rows`` counts the rows of all passes, ``forwards`` the passes. ``taken``: a request runs on it.
    """

    def __init__(
        self, network: Network, capacity: int, frequencies: torch.Tensor, kv: KVBuffer | None = None
    ) -> None:
        """``frequencies`` (D / 2,): angle of each pair of a key's components, in radians per position.

        ``kv``: a buffer of ``capacity`` rows; ``None``: a new one.
        """
        self.network = network
        self.capacity = capacity
        self.frequencies = frequencies.float()
        self.kv = kv or KVBuffer(capacity)
        self.rows = 0
        self.forwards = 0
        self.taken = False
        self._whole: CanvasText | None = None  # of the last whole pass
        self._now: CanvasText | None = None  # of the last pass
        self._passes = 0  # since the whole one, itself included
        self._everything = torch.ones(capacity, capacity, dtype=torch.bool, device=network.device)

    @property
    def is_empty(self) -> bool:
        return self._now is None

    def shared(self, left: Sequence[int], right: Sequence[int]) -> int:
        """Return the number of reusable tokens for these sides of a canvas; 0 if the right side differs."""
        known = self._now is not None and self._now.right == tuple(right)
        return len(right) + common_prefix(left, self._now.left) if known and self._now else 0

    def clear(self) -> None:
        """Forget the text."""
        self._whole = None
        self._now = None

    @torch.inference_mode()
    def wipe(self) -> None:
        """Forget the text and every row: they may hold NaN."""
        self.clear()
        self.kv.wipe()

    def is_due(self, wanted: CanvasText, rules: Refresh) -> bool:
        """Whether a whole pass has to come first."""
        whole = self._whole
        now = self._now
        if whole is None or now is None or now.right != wanted.right or self._passes >= rules.steps:
            return True
        filled = abs(wanted.filled - whole.filled)
        kept = common_prefix(whole.left, wanted.left)
        typed = max(len(whole.left), len(wanted.left)) - kept
        resized = abs(len(wanted.slots) - len(whole.slots))
        return (
            (filled > 0 and filled >= rules.share * len(wanted.slots))
            or typed > rules.typed
            or resized > rules.resized
        )

    def is_exact(self, wanted: CanvasText) -> bool:
        """Whether a pass of the canvas alone computes what a whole pass would."""
        return wanted == self._whole

    def whole_pass(self, wanted: CanvasText, rows: range) -> Generator[Pass, None, torch.Tensor]:
        """Yield the pass over the whole sequence; returns logits (R, V) of ``rows``."""
        self.clear()
        logits = yield from self._pass(wanted.ids, 0, rows)
        self._whole = wanted
        self._now = wanted
        self._passes = 1
        return logits

    def canvas_pass(
        self, wanted: CanvasText, rows: range, window: int
    ) -> Generator[Pass, None, torch.Tensor]:
        """Yield the pass over typed tokens, the canvas, and ``window`` tokens on both sides.

        Returns logits (R, V) of ``rows``. ``is_due`` must have been false.
        """
        now = self._now
        assert now is not None
        self._now = None  # until all rows are in the buffer
        shift = wanted.right_start - now.right_start
        if shift and wanted.right:
            angles = shift * self.frequencies
            with torch.inference_mode():
                self.kv.move(now.right_start, len(wanted.right), shift, angles.cos(), angles.sin())
        ids = wanted.ids
        first = max(0, min(common_prefix(now.left, wanted.left), rows.start) - window)
        end = min(len(ids), max(wanted.right_start, rows.stop) + window)
        logits = yield from self._pass(ids[:end], first, rows, len(ids))
        self._now = wanted
        self._passes += 1
        return logits

    def _pass(
        self, ids: Sequence[int], first: int, rows: range, extent: int = 0
    ) -> Generator[Pass, None, torch.Tensor]:
        device = self.network.device
        piece = to_device([ids[first:]], device)
        count = piece.shape[1]
        mask = self._everything[:count, : extent or len(ids)]
        wanted = torch.arange(rows.start - first, rows.stop - first, device=device)
        step = Pass(self.network, self.kv, piece, first, mask, wanted)
        yield step
        logits = step.result()[0]
        self.rows += count
        self.forwards += 1
        return logits


class DualCanvas:
    """Slots between left and right context with full attention, over a ``DualCache``.

    ``exact``: for each prediction, whether an uncached pass would have given the same. ``drifts``: results of
    ``drift``, by block.
    """

    def __init__(
        self,
        cache: DualCache,
        left: Sequence[int],
        right: Sequence[int],
        rules: Refresh,
        mask: int,
        *,
        shift: bool,
    ) -> None:
        """``mask``: id of a masked slot. ``shift``: row i - 1 predicts position i."""
        self.cache = cache
        self.left = list(left)
        self.right = tuple(right)
        self.rules = rules
        self.mask = mask
        self.shift = shift
        self.prefilled = Prefill()
        self.exact: list[bool] = []
        self.drifts: list[float] = []
        self._context = tuple(left)  # without the slots of earlier blocks
        self._before = cache.forwards

    @property
    def forwards(self) -> int:
        return self.cache.forwards - self._before

    def open(self, deadline: Deadline) -> bool:
        return finish(self.opening(deadline))

    def opening(self, deadline: Deadline) -> Generator[Pass, None, bool]:
        yield from ()
        return deadline.spent() is None

    def warming(self, slots: int) -> Generator[Pass, None, None]:
        """Compute the context with a masked canvas, unless it is cached."""
        if self.num_due(slots):
            yield from self._whole(self._sequence([self.mask] * slots))  # in a request's shape

    def predict(self, slots: Sequence[int]) -> torch.Tensor:
        return finish(self.predicting(slots))

    def predicting(self, slots: Sequence[int]) -> Generator[Pass, None, torch.Tensor]:
        wanted = self._sequence(slots)
        whole = self.cache.is_due(wanted, self.rules)
        first = not self.exact
        self.exact.append(whole or self.cache.is_exact(wanted))
        if whole and first:
            return (yield from self._read(wanted))
        return (yield from self._whole(wanted) if whole else self._canvas(wanted))

    def num_due(self, slots: int) -> int:
        """Return the rows of the whole pass that a masked canvas needs first; 0 if the context is cached."""
        wanted = self._sequence([self.mask] * slots)
        return len(wanted.ids) if self.cache.is_due(wanted, self.rules) else 0

    def settle(self, slots: Sequence[int]) -> None:
        """Append finished slots to the left context; the next block begins with a whole pass."""
        self.left += slots
        self.cache.clear()

    def vetoing(
        self, slots: Sequence[int], steps: Mapping[int, int], first: int, deadline: Deadline
    ) -> Generator[Pass, None, bool]:
        """Score the slots filled on cached keys and values, if there is time; yields the passes.

        Returns whether an exact pass gives them too low a probability. ``steps``: the step of the block in
        which each slot was filled. ``first``: number of the block's first step among all predictions.
        """
        stale = [slot for slot, step in sorted(steps.items()) if not self.exact[first + step]]
        bound = self.rules.bound
        if bound is None or not stale or deadline.spent():
            return False
        drift = yield from until_spent(self.drift(slots, stale), deadline)
        return drift is not None and drift > bound

    def drift(self, slots: Sequence[int], stale: Sequence[int]) -> Generator[Pass, None, float]:
        """Score ``stale`` slots with the cache and exactly; returns the difference in nats per token.

        It is positive if the cache makes their tokens likelier. In both passes these slots are masked, as
        they were when they were filled.
        """
        masked = list(slots)
        for slot in stale:
            masked[slot] = self.mask
        wanted = self._sequence(masked)
        tokens = [slots[slot] for slot in stale]
        by_cache = self._score((yield from self._canvas(wanted)), stale, tokens)
        exact = self._score((yield from self._whole(wanted)), stale, tokens)
        self.drifts.append(by_cache - exact)
        return by_cache - exact

    def uncached(self) -> FullCanvas:
        """Return the canvas as it was opened, without cache; it goes on counting passes."""
        canvas = FullCanvas(self.cache.network, self._context, self.right, shift=self.shift)
        canvas.forwards = self.forwards
        return canvas

    def _read(self, wanted: CanvasText) -> Generator[Pass, None, torch.Tensor]:
        """Run the first pass of a middle, which reads the prompt and is reported as the prefill."""
        wait_for(self.cache.network.device)
        started = time.perf_counter()
        logits = yield from self._whole(wanted)
        wait_for(self.cache.network.device)
        self.prefilled = Prefill(len(wanted.ids), 1, ms_since(started))
        return logits

    def _whole(self, wanted: CanvasText) -> Generator[Pass, None, torch.Tensor]:
        logits = yield from self.cache.whole_pass(wanted, self._rows(wanted))
        return self._of_slots(logits, wanted)

    def _canvas(self, wanted: CanvasText) -> Generator[Pass, None, torch.Tensor]:
        logits = yield from self.cache.canvas_pass(wanted, self._rows(wanted), self.rules.window)
        return self._of_slots(logits, wanted)

    def _rows(self, wanted: CanvasText) -> range:
        """Return the rows that predict the slots."""
        first = len(wanted.left) - int(self.shift)
        return range(max(first, 0), max(first + len(wanted.slots), 1))

    def _of_slots(self, logits: torch.Tensor, wanted: CanvasText) -> torch.Tensor:
        """Return logits (slots, V); row 0 also serves as the missing row before it (Dream)."""
        return logits if len(logits) == len(wanted.slots) else torch.cat([logits[:1], logits])

    def _score(self, logits: torch.Tensor, stale: Sequence[int], tokens: Sequence[int]) -> float:
        rows = logits[list(stale)].float().log_softmax(-1)
        return float(rows[torch.arange(len(tokens)), list(tokens)].mean())

    def _sequence(self, slots: Sequence[int]) -> CanvasText:
        filled = sum(token != self.mask for token in slots)
        return CanvasText(tuple(self.left), tuple(slots), self.right, filled)
