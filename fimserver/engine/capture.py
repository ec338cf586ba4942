"""Capture of CUDA graphs at load: runs every shape of pass once, so that no request waits for a capture."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from fimserver.engine.denoising.dual_cache import CanvasText, DualCache
from fimserver.engine.forward.adapter import CanvasNetwork
from fimserver.engine.forward.fused import FusedModel
from fimserver.engine.forward.network import Network
from fimserver.engine.forward.pass_cost import MOST_ROWS, Shape
from fimserver.engine.forward.passes import finish
from fimserver.engine.forward.prefix_cache import PrefixCache
from fimserver.engine.forward.static_pass import ROWS, extents


def decode_starts(cache: PrefixCache) -> tuple[int, ...]:
    """Return a position for each extent that decoding passes read, as each may run other kernels."""
    if not is_static(cache):
        return (cache.chunk,)
    return tuple(extent - MOST_ROWS for extent in extents(cache.capacity))


def is_static(cache: PrefixCache | DualCache) -> bool:
    """Whether passes run over static buffers."""
    return isinstance(cache.network, FusedModel) and cache.network.static is not None


@torch.inference_mode()
def capture_decoding(cache: PrefixCache, shapes: Iterable[Shape]) -> None:
    """Run prefill chunks and decoding passes of these shapes at every extent. Forgets the prompt."""
    if not is_static(cache):
        return
    cache.clear()
    every = torch.arange(1, device=cache.network.device)
    for extent in extents(cache.capacity):
        start = extent - cache.chunk
        mask = cache.causal(start, cache.chunk)[:, :extent]
        for wanted in (every[:0], every):
            cache.rows([0] * cache.chunk, start, mask, wanted)
    for branches, rows in shapes:
        for start in decode_starts(cache):
            cache.branches([[0] * rows] * branches, start)


@torch.inference_mode()
def capture_masks(cache: PrefixCache, network: CanvasNetwork, sizes: Iterable[int], most: int) -> None:
    """Run passes of ``sizes`` rows with masks, and chunks with ``most`` masks, at every extent.

    Forgets the prompt.
    """
    if not is_static(cache):
        return
    cache.clear()
    numbers = torch.arange(max(*sizes, most + 1), device=network.device)
    for extent in extents(cache.capacity):
        for rows, wanted in (*((rows, rows) for rows in sizes), (cache.chunk, most + 1)):
            start = extent - rows
            mask = cache.causal(start, rows)[:, :extent]
            cache.rows([network.mask_token] * rows, start, mask, numbers[:wanted], network)


@torch.inference_mode()
def capture_canvas(cache: PrefixCache, longest: int, network: Network | None = None) -> None:
    """Run canvases of up to ``longest`` slots at every extent. Forgets the prompt.

    ``network``: runs the canvas; ``None``: that of the cache.
    """
    if not is_static(cache):
        return
    cache.clear()
    for rows in (rows for rows in ROWS if rows < 2 * longest):
        count = min(rows, longest)
        every = torch.arange(count, device=cache.network.device)
        for extent in extents(cache.capacity):
            cache.rows([0] * count, extent - count, cache.block(extent - count, count), every, network)


def capture_dual(cache: DualCache, longest: int) -> None:
    """Run texts of every size, and canvases of 2 to ``longest`` rows at every extent. Forgets the text."""
    if not is_static(cache):
        return
    sizes = (*ROWS[1:], *range(2 * ROWS[-1], cache.capacity + ROWS[-1], ROWS[-1]))
    for count in dict.fromkeys(min(size, cache.capacity) for size in sizes):
        _run_text(cache, count, min(count, longest))
    for extent in extents(cache.capacity):
        _run_text(cache, extent, 2)
        for slots in (min(rows, longest) for rows in ROWS[1:] if rows < 2 * longest):
            text = _text_of(extent, slots)
            finish(cache.canvas_pass(text, range(extent - slots, extent), 0))
    cache.clear()


def _run_text(cache: DualCache, count: int, slots: int) -> None:
    finish(cache.whole_pass(_text_of(count, slots), range(count - slots, count)))


def _text_of(count: int, slots: int) -> CanvasText:
    """``count`` tokens that end with a canvas."""
    return CanvasText((0,) * (count - slots), (0,) * slots, (), 0)
