"""Shapes in which passes of several texts run as one over static buffers, with the bits of each text alone.

On a GPU the library of matrix products chooses its kernel by the number of rows, and another kernel may sum
in another order. So products of few rows are filled up to one number of rows, and each shape is compared with
plain decoding when a model is loaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch

from fimserver.engine.device import to_device
from fimserver.engine.forward.cached_prompts import CachedPrompt
from fimserver.engine.forward.fused import FusedModel
from fimserver.engine.forward.layers import Part
from fimserver.engine.forward.pass_cost import MOST_ROWS, Shape, size
from fimserver.engine.forward.passes import rows_alike
from fimserver.engine.forward.prefix_cache import PrefixCache
from fimserver.engine.forward.static_pass import StaticPasses, extents
from fimserver.types import Deadline

PRODUCT_ROWS = 64  # a GPU computes so many rows in the time in which it reads the weights
TRIED_ROWS = (8, 12, 16, 24, 32, PRODUCT_ROWS)  # of the products that are compared
# Entries and rows. Those of one entry are the shapes in which a pass may be alone, to join others.
JOINED = (
    *((1, rows) for rows in (8, 12, 16, 24, 32)),
    *((2, rows) for rows in (8, 16, 32)),
    *((4, rows) for rows in (8, 16)),
    (8, 8),
)


def product_rows(network: FusedModel) -> int:
    """Return the rows that products are filled up to: 0 if their bits do not depend on the number of rows."""
    return 0 if rows_alike(network, sizes=TRIED_ROWS) else PRODUCT_ROWS


@dataclass(frozen=True)
class Trial:
    """One text in several buffers of a cache, from which it goes on at each of ``starts``, the last longest.

    ``plain``: logits (R, V) of plain decoding at each start.
    """

    static: StaticPasses
    cache: PrefixCache
    ids: Sequence[int]
    kept: Sequence[CachedPrompt]
    starts: Sequence[int]
    plain: Sequence[torch.Tensor]

    def is_alike(self, shape: Shape, starts: int) -> bool:
        """Whether texts have the bits of plain decoding in ``shape``, at the first ``starts`` positions."""
        entries, rows = shape
        places = [(starts - 1 - number) % starts for number in range(min(entries, len(self.kept)))]
        parts = [self._part(kept, self.starts[at], rows) for kept, at in zip(self.kept, places, strict=False)]
        found = self.static.together(parts, shape)
        return all(_same(logits[0], self.plain[at]) for (_, logits), at in zip(found, places, strict=True))

    def _part(self, kept: CachedPrompt, start: int, rows: int) -> Part:
        device = self.cache.network.device
        ids = to_device([self.ids[start : start + rows]], device)
        kept.kv.place(start, start + rows)
        return Part(ids, self.cache.causal(start, rows), kept.kv, start, torch.arange(rows, device=device))


@torch.inference_mode()
def try_shapes(cache: PrefixCache, rows: int, drafts: Iterable[Shape] = ()) -> None:
    """Find the shapes in which passes over static buffers may join; captures them. Forgets all prompts.

    ``rows``: rows of a pass of plain decoding. ``drafts``: shapes of passes that verify drafts.
    """
    network = cache.network
    static = network.static if isinstance(network, FusedModel) else None
    if static is None or cache.prompts.most == 1:
        return
    starts = [extent - MOST_ROWS for extent in extents(cache.capacity)]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(network.vocab_size, (starts[-1] + MOST_ROWS,), generator=generator).tolist()
    cache.clear()
    tried = {shape for shape in (*JOINED, *drafts) if size(shape) <= PRODUCT_ROWS}
    with ExitStack() as stack:
        count = min(cache.prompts.most, max(entries for entries, _ in tried))
        kept = [stack.enter_context(cache.prompts.held([number])) for number in range(count)]
        cache.prompts.current = kept[0]
        cache.prefill(ids[: starts[-1]], Deadline(), want_logits=False)
        for other in kept[1:]:
            other.kv.copy_text(kept[0].kv, starts[-1])
        # From the last start on: a pass at an earlier one writes the same tokens again.
        plain = [cache.branches([ids[start : start + rows]], start)[0] for start in reversed(starts)][::-1]
        trial = Trial(static, cache, ids, kept, starts, plain)
        static.alike |= frozenset(
            shape
            for shape in tried
            if shape[0] < 2 * count and all(trial.is_alike(shape, n) for n in range(len(starts), 0, -1))
        )
    cache.clear()


def _same(logits: torch.Tensor, plain: torch.Tensor) -> bool:
    shared = min(len(logits), len(plain))
    return torch.equal(logits[:shared], plain[:shared])
