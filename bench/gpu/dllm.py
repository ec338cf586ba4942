"""The dllm route at Dream-7B's shape: a step without and with cached context, and whole middles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch

from bench.gpu.ar import memory
from bench.gpu.clock import median_ms
from bench.gpu.figures import Figure
from bench.gpu.setup import Bench
from bench.gpu.shapes import Shape
from fimserver.engine.denoiser import Denoiser, Tokens
from fimserver.engine.network import NativeNetwork
from fimserver.engine.prefix_cache import PrefixCache
from fimserver.engine.schedules import SCHEDULES
from fimserver.types import Deadline, Request

REFRESH = 8  # steps between passes over the whole text
SUFFIX_SHARE = 0.25
# Tokens a step: 1 is exact; DreamOn keeps 87.2 of 92.1 % of single lines right at 2 and 78.8 % at 4
# (third-party measurement on an H200), the threshold schedule of arXiv 2505.22618 commits 2 to 5.
TOKENS_A_STEP = (1, 2, 4)


class DualCache:
    """Canvas between cached sides, refreshed every few steps (dual cache of Fast-dLLM, arXiv 2505.22618)."""

    def __init__(self, cache: PrefixCache, left: Sequence[int], right: Sequence[int]) -> None:
        self.cache = cache
        self.left = list(left)
        self.right = list(right)
        self.everything = torch.ones(
            cache.capacity, cache.capacity, dtype=torch.bool, device=cache.network.device
        )
        self.everywhere = torch.arange(cache.capacity, device=cache.network.device)
        self.steps = 0

    def refresh(self, slots: Sequence[int]) -> torch.Tensor:
        """Logits (n, V) of a pass over the whole text, whose keys and values stay."""
        ids = [*self.left, *slots, *self.right]
        first = len(self.left) - 1  # the row before a slot predicts it
        wanted = self.everywhere[first : first + len(slots)]
        return self.cache.rows(ids, 0, self.everything[: len(ids), : len(ids)], wanted)

    def step(self, slots: Sequence[int]) -> torch.Tensor:
        """The same with the rows of the canvas alone, and the one before them."""
        total = len(self.left) + len(slots) + len(self.right)
        rows = [self.left[-1], *slots]
        mask = self.everything[: len(rows), :total]
        return self.cache.rows(rows, len(self.left) - 1, mask, self.everywhere[: len(slots)])

    def predict(self, slots: Sequence[int]) -> torch.Tensor:
        self.steps += 1
        return self.refresh(slots) if self.steps % REFRESH == 1 else self.step(slots)


def measure(bench: Bench, shape: Shape) -> Iterator[Figure]:
    sizes, device = bench.sizes, bench.device
    model = bench.model(shape)
    model.config.is_causal = False
    native = NativeNetwork(model, device)
    cached = bench.cache(shape, branches=1)
    eager = bench.cache(shape, graphs=False, branches=1)
    for canvas in sizes.canvases:
        left, right = _sides(bench, shape, canvas)
        total = len(left) + canvas + len(right)
        slots = bench.ids(canvas, shape, seed=3)
        ids = torch.tensor([*left, *slots, *right], device=device)
        wanted = torch.arange(len(left) - 1, len(left) - 1 + canvas, device=device)
        whole = bench.ceilings.floor_ms(shape, total, total, canvas)
        step = bench.ceilings.floor_ms(shape, canvas + 1, total, canvas)
        dual = DualCache(cached, left, right)
        plain = DualCache(eager, left, right)
        bidirectional = torch.inference_mode()(native.forward_bidirectional)
        arms = {
            f"step over all {total} rows, native": (partial(bidirectional, ids, wanted), whole),
            f"step over all {total} rows, graphs": (partial(dual.refresh, slots), whole),
            "cached step, graphs": (partial(dual.step, slots), step),
            "cached step, no graphs": (partial(plain.step, slots), step),
        }
        for name, (run, floor) in arms.items():
            took = median_ms(device, run, max(3, sizes.repeats // 2))
            yield Figure(f"Dream {shape.name} canvas {canvas}: {name}", took, "ms", floor)
    yield from _middles(bench, shape, cached)
    yield memory(bench, shape, f"Dream {shape.name}")


def _middles(bench: Bench, shape: Shape, cache: PrefixCache) -> Iterator[Figure]:
    """Whole middles, schedule and draws included."""
    tokens = Tokens(shape.vocab - 1, None, None, None, (shape.vocab - 1,))
    for canvas in bench.sizes.canvases:
        left, right = _sides(bench, shape, canvas)
        total = len(left) + canvas + len(right)
        for count in TOKENS_A_STEP:
            steps = -(-canvas // count)
            whole = -(-steps // REFRESH)

            def run(
                left: list[int] = left, right: list[int] = right, n: int = canvas, k: int = count
            ) -> None:
                denoiser = Denoiser(tokens, SCHEDULES["fixed"](k), n)
                canvas_ = DualCache(cache, left, right)
                for _ in denoiser.run(canvas_.predict, n, Request("", ""), Deadline()):
                    pass

            floor = whole * bench.ceilings.floor_ms(shape, total, total, canvas)
            floor += (steps - whole) * bench.ceilings.floor_ms(shape, canvas + 1, total, canvas)
            took = median_ms(bench.device, run, 3)
            name = f"Dream {shape.name} middle of {canvas}, {count} a step"
            yield Figure(name, took, "ms", floor, f"{steps} steps, {whole} over all rows")


def _sides(bench: Bench, shape: Shape, canvas: int) -> tuple[list[int], list[int]]:
    """Left and right context such that text and canvas have the measured context's length."""
    total = bench.sizes.context - canvas
    right = int(SUFFIX_SHARE * total)
    return bench.ids(total - right, shape), bench.ids(right, shape, seed=2)
