"""The dllm route at Dream-7B's shape: a step without and with cached context, and whole middles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch

from bench.gpu.ar import memory
from bench.gpu.clock import median_ms, waits
from bench.gpu.exactness import relative
from bench.gpu.figures import Figure
from bench.gpu.setup import Bench
from bench.gpu.shapes import Shape
from fimserver.engine.denoising.denoiser import Denoiser
from fimserver.engine.denoising.dual_cache import CanvasText, DualCache, DualCanvas
from fimserver.engine.denoising.refresh import Refresh
from fimserver.engine.denoising.schedules import SCHEDULES
from fimserver.engine.denoising.tokens import Tokens
from fimserver.engine.forward.network import NativeNetwork
from fimserver.engine.forward.passes import finish
from fimserver.types import Deadline, Request

REFRESH = 8  # steps between passes over the whole text
SUFFIX_SHARE = 0.25
# Tokens a step: 1 is exact; DreamOn keeps 87.2 of 92.1 % of single lines right at 2 and 78.8 % at 4
# (third-party measurement on an H200), the threshold schedule of arXiv 2505.22618 commits 2 to 5.
TOKENS_A_STEP = (1, 2, 4)


EVERY_FEW_STEPS = Refresh(REFRESH, share=1e9, resized=10**9, typed=10**9, window=0)


def dual_cache(bench: Bench, shape: Shape, *, graphs: bool) -> DualCache:
    """A cache of texts with a canvas; a shape is captured when it is first run, before it is timed."""
    network = bench.network(shape)
    if graphs:
        network.use_graphs(bench.graphs())
    frequencies = bench.model(shape).model.rotary_emb.inv_freq
    return DualCache(network, bench.sizes.capacity, frequencies)


@dataclass(frozen=True)
class Pass:
    """One step of a canvas between two sides."""

    cache: DualCache
    text: CanvasText

    @property
    def rows(self) -> range:
        """The row before a slot predicts it."""
        first = len(self.text.left) - 1
        return range(first, first + len(self.text.slots))

    def whole(self) -> torch.Tensor:
        """Logits (n, V) of a pass over the whole text, whose keys and values stay."""
        return finish(self.cache.whole_pass(self.text, self.rows))

    def canvas(self) -> torch.Tensor:
        """The same with the rows of the canvas alone, and the one before them."""
        return finish(self.cache.canvas_pass(self.text, self.rows, 0))


def measure(bench: Bench, shape: Shape) -> Iterator[Figure]:
    sizes, device = bench.sizes, bench.device
    model = bench.model(shape)
    model.config.is_causal = False
    native = NativeNetwork(model, device)
    cached = dual_cache(bench, shape, graphs=True)
    eager = dual_cache(bench, shape, graphs=False)
    for canvas in sizes.canvases:
        left, right = _sides(bench, shape, canvas)
        total = len(left) + canvas + len(right)
        slots = bench.ids(canvas, shape, seed=3)
        ids = torch.tensor([*left, *slots, *right], device=device)
        wanted = torch.arange(len(left) - 1, len(left) - 1 + canvas, device=device)
        whole = bench.ceilings.floor_ms(shape, total, total, canvas)
        step = bench.ceilings.floor_ms(shape, canvas + 1, total, canvas)
        text = CanvasText(tuple(left), tuple(slots), tuple(right), canvas)
        dual = Pass(cached, text)
        plain = Pass(eager, text)
        whole_logits = plain.whole()
        bidirectional = torch.inference_mode()(native.forward_bidirectional)
        apart = relative(dual.whole(), whole_logits)
        yield Figure(f"Dream {shape.name} canvas {canvas}: logits with graphs against without", apart, "")
        apart = relative(whole_logits, bidirectional(ids, wanted))
        yield Figure(f"Dream {shape.name} canvas {canvas}: our logits against transformers'", apart, "")
        arms = {
            f"step over all {total} rows, native": (partial(bidirectional, ids, wanted), whole),
            f"step over all {total} rows, graphs": (dual.whole, whole),
            "cached step, graphs": (dual.canvas, step),
            "cached step, no graphs": (plain.canvas, step),
        }
        for name, (run, floor) in arms.items():
            took = median_ms(device, run, max(3, sizes.repeats // 2))
            yield Figure(f"Dream {shape.name} canvas {canvas}: {name}", took, "ms", floor)
    yield from _middles(bench, shape, cached)
    yield _waits(bench, shape, cached)
    yield memory(bench, shape, f"Dream {shape.name}")


def _middles(bench: Bench, shape: Shape, cache: DualCache) -> Iterator[Figure]:
    """Whole middles, schedule and draws included."""
    tokens = Tokens(shape.vocab - 1, None, None, None, (shape.vocab - 1,))
    for canvas in bench.sizes.canvases:
        left, right = _sides(bench, shape, canvas)
        total = len(left) + canvas + len(right)
        for count in TOKENS_A_STEP:
            steps = -(-canvas // count)
            whole = -(-steps // REFRESH)

            run = partial(_fill, cache, left, right, tokens, canvas, count)
            floor = whole * bench.ceilings.floor_ms(shape, total, total, canvas)
            floor += (steps - whole) * bench.ceilings.floor_ms(shape, canvas + 1, total, canvas)
            took = median_ms(bench.device, run, 2)
            name = f"Dream {shape.name} middle of {canvas}, {count} a step"
            yield Figure(name, took, "ms", floor, f"{steps} steps, {whole} over all rows")


def _fill(
    cache: DualCache, left: list[int], right: list[int], tokens: Tokens, slots: int, count: int
) -> None:
    """Fill a canvas of ``slots``, ``count`` a step, from an empty cache."""
    denoiser = Denoiser(tokens, SCHEDULES["fixed"](count), slots)
    cache.clear()
    canvas = DualCanvas(cache, left, right, EVERY_FEW_STEPS, tokens.mask, shift=True)
    for _ in denoiser.run(canvas.predict, slots, Request("", ""), Deadline()):
        pass


def _waits(bench: Bench, shape: Shape, cache: DualCache) -> Figure:
    """How often the host waits for the device in a denoising step."""
    name = f"Dream {shape.name} host waits in a denoising step"
    if bench.device.type != "cuda":
        return Figure(name, None, "waits", 1.0, "needs CUDA")
    tokens = Tokens(shape.vocab - 1, None, None, None, (shape.vocab - 1,))
    slots = bench.sizes.canvases[0]
    run = partial(_fill, cache, *_sides(bench, shape, slots), tokens, slots, 1)
    run()
    return Figure(name, waits(run) / slots, "waits", 1.0)


def _sides(bench: Bench, shape: Shape, canvas: int) -> tuple[list[int], list[int]]:
    """Left and right context such that text and canvas have the measured context's length."""
    total = bench.sizes.context - canvas
    right = int(SUFFIX_SHARE * total)
    return bench.ids(total - right, shape), bench.ids(right, shape, seed=2)
