"""Shapes in which passes of several texts run as one over static buffers, with the bits of each text alone.

On a GPU the library of matrix products chooses its kernel by the number of rows, and another kernel may sum
in another order. So products of few rows are filled up to one number of rows, and each shape is compared with
plain decoding when a model is loaded.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Hashable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch

from fimserver.engine.device import to_device
from fimserver.engine.faults import free_memory
from fimserver.engine.forward.adapter import CanvasNetwork
from fimserver.engine.forward.cached_prompts import CachedPrompt
from fimserver.engine.forward.fused import FusedModel
from fimserver.engine.forward.layers import Part
from fimserver.engine.forward.network import Network
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
log = logging.getLogger("fimserver.engine")


def product_rows(network: FusedModel) -> int:
    """Return the rows that products are filled up to: 0 if their bits do not depend on the number of rows.

    Also 0 if they cannot be compared: ``try_shapes`` then finds what can join.
    """
    try:
        return 0 if rows_alike(network, sizes=TRIED_ROWS) else PRODUCT_ROWS
    except RuntimeError as error:
        log.warning("products of several numbers of rows could not be compared: %s", _first_line(error))
    free_memory()
    return 0


@dataclass(frozen=True)
class Trial:
    """One text in several buffers of a cache; passes go on from each of ``starts``, the last longest."""

    static: StaticPasses
    cache: PrefixCache
    ids: Sequence[int]
    kept: Sequence[CachedPrompt]
    starts: Sequence[int]

    def find(self, rows: int, tried: Sequence[Shape]) -> None:
        """Note in ``static`` the shapes in which texts have the bits of a pass of ``rows`` rows alone.

        Where some shapes do not, fewer passes may join, or texts attend one by one, whichever leaves more.
        """
        for kept in self.kept:  # all rows that the passes below write again
            for start in self.starts:
                self._run([self._part(kept, start, MOST_ROWS)], (1, MOST_ROWS))
        plain = [self._run([self._part(self.kept[0], start, rows)], (1, rows))[0] for start in self.starts]
        static = self.static
        best: tuple[frozenset[Shape], bool, bool] = (frozenset(), True, False)
        for apart, mixes in itertools.product((False, True), (True, False)):
            static.apart = apart
            alike = frozenset(shape for shape in tried if self._is_alike(shape, plain, mixes=mixes))
            if len(alike) > len(best[0]):
                best = (alike, mixes, apart)
            if len(alike) == len(tried):
                break
        static.alike, static.mixes, static.apart = best

    def _is_alike(self, shape: Shape, plain: Sequence[torch.Tensor], *, mixes: bool) -> bool:
        """Whether texts have the bits of ``plain`` at each extent; with ``mixes``, beside shorter ones."""
        for last in range(len(self.starts)):
            texts = range(min(shape[0], len(self.kept)))
            places = [(last - number) % (last + 1) if mixes else last for number in texts]
            parts = [
                self._part(kept, self.starts[place], shape[1])
                for kept, place in zip(self.kept, places, strict=False)
            ]
            found = zip(self._run(parts, shape), places, strict=True)
            if not all(_same(logits, plain[place]) for logits, place in found):
                return False
        return True

    def _run(self, parts: Sequence[Part], shape: Shape) -> list[torch.Tensor]:
        """Return the logits (M, V) of each part. Raises ``RuntimeError`` if no graph could be captured."""
        failures: dict[Hashable, str] = getattr(self.static.graphs, "failures", {})
        before = len(failures)
        found = [logits[0] for _, logits in self.static.together(parts, shape)]
        if len(failures) > before:  # without a graph, texts are slower as one than one after another
            raise RuntimeError([*failures.values()][-1])
        return found

    def _part(self, kept: CachedPrompt, start: int, rows: int) -> Part:
        device = self.cache.network.device
        ids = to_device([self.ids[start : start + rows]], device)
        kept.kv.place(start, start + rows)
        return Part(ids, self.cache.causal(start, rows), kept.kv, start, torch.arange(rows, device=device))


@torch.inference_mode()
def try_shapes(
    cache: PrefixCache, rows: int, drafts: Iterable[Shape] = (), adapted: Iterable[Network] = ()
) -> None:
    """Find the shapes in which passes over static buffers may join; captures them. Forgets all prompts.

    ``rows``: rows of a pass of plain decoding. ``drafts``: shapes of passes that verify drafts. ``adapted``:
    networks over the same cache with an adapter, whose passes join apart. If the device cannot run a shape,
    none join, and requests run one after another.
    """
    network = cache.network
    static = network.static if isinstance(network, FusedModel) else None
    if static is None or cache.prompts.most == 1:
        return
    canvases = [canvas for canvas in adapted if isinstance(canvas, CanvasNetwork) and canvas.static]
    failed = ""
    try:
        _try_all(cache, static, rows, drafts, canvases)
    except RuntimeError as error:  # out of memory, or an operation that the device does not have
        failed = _first_line(error)
    cache.clear()
    if failed:
        for each in (static, *(canvas.static for canvas in canvases)):
            if each is not None:
                each.alike = frozenset()
        free_memory()  # after the error is gone, whose traceback holds tensors
        log.warning(
            "passes of several requests cannot run as one here, so requests run one after another, as with"
            " --batch 1: %s",
            failed,
        )


def _try_all(
    cache: PrefixCache,
    static: StaticPasses,
    rows: int,
    drafts: Iterable[Shape],
    canvases: Iterable[CanvasNetwork],
) -> None:
    """Try all shapes with one text in several buffers, then with masks."""
    starts = [extent - MOST_ROWS for extent in extents(cache.capacity)]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(cache.network.vocab_size, (starts[-1] + MOST_ROWS,), generator=generator).tolist()
    tried = {shape for shape in (*JOINED, *drafts) if size(shape) <= PRODUCT_ROWS}
    cache.clear()
    with ExitStack() as stack:
        count = min(cache.prompts.most, max(entries for entries, _ in tried))
        kept = [stack.enter_context(cache.prompts.held([number])) for number in range(count)]
        cache.prompts.current = kept[0]
        cache.prefill(ids[: starts[-1]], Deadline(), want_logits=False)
        for other in kept[1:]:
            other.kv.copy_text(kept[0].kv, starts[-1])
        fitting = [shape for shape in tried | static.alike if shape[0] < 2 * count]
        Trial(static, cache, ids, kept, starts).find(rows, fitting)
        for canvas in canvases:
            assert canvas.static
            masked = _masked(ids, starts, rows // 2, canvas.mask_token)
            Trial(canvas.static, cache, masked, kept, starts).find(rows, fitting)


def _first_line(error: RuntimeError) -> str:
    return str(error).partition("\n")[0][:160]


def _masked(ids: Sequence[int], starts: Sequence[int], texts: int, mask: int) -> list[int]:
    """Replace the ids by masks from ``texts`` tokens after each start on."""
    masked = list(ids)
    for start in starts:
        masked[start + texts : start + MOST_ROWS] = [mask] * (MOST_ROWS - texts)
    return masked


def _same(logits: torch.Tensor, plain: torch.Tensor) -> bool:
    shared = min(len(logits), len(plain))
    return torch.equal(logits[:shared], plain[:shared])
