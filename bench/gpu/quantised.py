"""Weights of 8 and 4 bits: memory, a token, and a pass of 32 rows, through our pass and graphs."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bench.gpu.ar import token_ms
from bench.gpu.clock import median_ms
from bench.gpu.figures import Figure
from bench.gpu.setup import ROWS, Bench, speculation
from bench.gpu.shapes import Shape
from fimserver.engine.forward.pass_cost import PassCosts
from fimserver.engine.quantise import quantise
from fimserver.errors import LoadError

WEIGHT_BYTES = {"int4": 0.57, "int8": 1.01}  # of one weight, with its share of the scales
CANVAS_ROWS = 32


def measure(bench: Bench, shape: Shape) -> Iterator[Figure]:
    for arithmetic in WEIGHT_BYTES:
        bench.forget()  # quantising cannot be undone, so the model is made anew
        try:
            quantise(bench.model(shape), arithmetic, bench.device)
        except LoadError as error:
            yield Figure(f"{shape.name} {arithmetic}", None, "", note=_reason(error))
            continue
        yield from _measure(bench, shape, arithmetic)
    bench.forget()


def _reason(error: LoadError) -> str:
    """Why this machine cannot: int4 has products on GPUs alone."""
    return "needs CUDA" if "CUDA" in str(error) else "needs torchao"


def _measure(bench: Bench, shape: Shape, arithmetic: str) -> Iterator[Figure]:
    sizes, name = bench.sizes, f"{shape.name} {arithmetic}"
    weight = WEIGHT_BYTES[arithmetic]
    yield _memory(bench, shape, name, weight)
    cache = bench.cache(shape, branches=1)
    ours = speculation(cache, PassCosts({(1, ROWS): 1.0}))
    floor = bench.ceilings.floor_ms(shape, 1, sizes.context, 1, weight_bytes=weight)
    yield Figure(f"{name} ms a token, graphs", token_ms(bench, shape, ours), "ms", floor)
    draft = [bench.ids(CANVAS_ROWS, shape)]
    took = median_ms(bench.device, lambda: cache.branches(draft, sizes.context), sizes.repeats)
    floor = bench.ceilings.floor_ms(shape, CANVAS_ROWS, sizes.context, CANVAS_ROWS, weight_bytes=weight)
    yield Figure(f"{name} pass of 1x{CANVAS_ROWS} rows", took, "ms", floor)


def _memory(bench: Bench, shape: Shape, name: str, weight_bytes: float) -> Figure:
    """In use after the weights were quantised; the embedding stays in 16 bits."""
    floor = (weight_bytes * (shape.block_weights + shape.head_weights) + 2 * shape.head_weights) / 2**30
    if bench.device.type != "cuda":
        return Figure(f"{name} weights in memory", None, "GiB", floor, "needs CUDA")
    torch.cuda.empty_cache()
    return Figure(f"{name} weights in memory", torch.cuda.memory_allocated() / 2**30, "GiB", floor)
