"""The ar route at random weights: first token, a token, the cost of rows, transformers beside them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch

from bench.gpu.clock import median_ms, once_ms
from bench.gpu.exactness import begin
from bench.gpu.figures import Figure
from bench.gpu.setup import ROWS, Bench, speculation, uncaptured
from bench.gpu.shapes import Shape
from fimserver.engine.forward.attention import attend_by_products, attend_in_one_kernel
from fimserver.engine.forward.fused import FusedModel
from fimserver.engine.forward.pass_cost import PassCosts
from fimserver.engine.forward.prefix_cache import PrefixCache
from fimserver.engine.sampling import choose_rows
from fimserver.engine.speculation.speculate import Speculation
from fimserver.types import Deadline, Request

MEASURED_ROWS = ((1, 4), (1, 8), (1, 16), (1, 24), (1, 32), (2, 8), (3, 8))
GREEDY = Request("", "")


def measure(bench: Bench, shape: Shape) -> Iterator[Figure]:
    sizes, name = bench.sizes, shape.name
    started = time.perf_counter()
    bench.model(shape)
    yield Figure(f"{name} random weights made", time.perf_counter() - started, "s")
    cache, costs, seconds = bench.decoder(shape)
    yield Figure(f"{name} shapes tried and captured", seconds, "s")
    plain = PassCosts({(1, ROWS): costs.ms[1, ROWS]})
    ours = speculation(cache, plain)
    yield from _first_tokens(bench, shape, ours)
    floor = bench.ceilings.floor_ms(shape, 1, sizes.context, 1)
    yield Figure(f"{name} ms a token, graphs", token_ms(bench, shape, ours), "ms", floor)
    yield from _rows(bench, shape, cache)
    eager = speculation(bench.cache(shape, graphs=False, branches=1), plain)
    yield Figure(f"{name} ms a token, no graphs", token_ms(bench, shape, eager), "ms", floor)
    yield _generate(bench, shape, f"{name} ms a token, transformers generate")
    yield uncaptured(cache, name)
    yield memory(bench, shape, name)


def _first_tokens(bench: Bench, shape: Shape, ours: Speculation) -> Iterator[Figure]:
    """Cold: nothing cached. Warm: the last token of the prompt was typed since."""
    cache = ours.cache

    def cold(prompt: list[int]) -> None:
        cache.clear()
        begin(ours, prompt, GREEDY)

    def typed(prompt: list[int]) -> None:
        prompt[-1] = (prompt[-1] + 1) % shape.vocab
        begin(ours, prompt, GREEDY)

    for length in bench.sizes.prompts:
        prompt = bench.ids(length, shape)
        for name, run, rows in (("cold", cold, length), ("warm", typed, 1)):
            took = median_ms(bench.device, lambda run=run, prompt=prompt: run(prompt), bench.sizes.repeats)
            floor = bench.ceilings.floor_ms(shape, rows, length, 1)
            yield Figure(f"{shape.name} first token {name}, prompt {length}", took, "ms", floor)


def token_ms(bench: Bench, shape: Shape, ours: Speculation) -> float:
    """Of plain decoding, rounds of the real loop."""
    tokens = bench.sizes.tokens
    state = begin(ours, bench.ids(bench.sizes.context, shape), GREEDY)

    def rounds() -> None:
        for _ in range(tokens):
            ours.round(state, 0)
        del state.ids[1:]

    return median_ms(bench.device, rounds, max(3, bench.sizes.repeats // 4)) / tokens


def _rows(bench: Bench, shape: Shape, cache: PrefixCache) -> Iterator[Figure]:
    """A pass and the reading of its tokens, by branches and rows."""
    context = bench.sizes.context
    for branches, rows in MEASURED_ROWS:
        draft = [bench.ids(rows, shape)] * branches

        def round_(draft: list[list[int]] = draft) -> None:
            choose_rows(cache.branches(draft, context), 0.0, 0, 0)

        took = median_ms(bench.device, round_, bench.sizes.repeats)
        floor = bench.ceilings.floor_ms(shape, rows, context, rows, branches)
        yield Figure(f"{shape.name} pass of {branches}x{rows} rows", took, "ms", floor)


def measure_variants(bench: Bench, shape: Shape) -> Iterator[Figure]:
    """The plain pass as it is, and with either form of attention."""
    yield from _chunk(bench, shape, bench.network(shape), "as it is")
    yield _plain_pass(bench, shape, bench.network(shape), "as it is")
    forms = {"one kernel": attend_in_one_kernel, "two products": attend_by_products}
    for name, attention in forms.items():
        network = bench.network(shape)
        network.stack = network.stack.wrapped(lambda _layer, _name, product: product)
        network.stack.attention = attention
        yield _plain_pass(bench, shape, network, f"attention as {name}")
        yield from _chunk(bench, shape, network, f"attention as {name}")


def _chunk(bench: Bench, shape: Shape, network: FusedModel, what: str) -> Iterator[Figure]:
    """The last chunk of the longest prompt, whose rows attend to most keys."""
    length, chunk = bench.sizes.prompts[-1], bench.sizes.chunk
    network.use_graphs(bench.graphs())
    cache = PrefixCache(network, bench.sizes.capacity, chunk)
    prompt = bench.ids(length, shape)
    cache.prefill(prompt, Deadline(), want_logits=False)

    def typed() -> None:
        prompt[-1] = (prompt[-1] + 1) % shape.vocab
        cache.prefill(prompt, Deadline(), want_logits=True)

    took = median_ms(bench.device, typed, bench.sizes.repeats)
    rows = length - (length - 1) // chunk * chunk
    floor = bench.ceilings.floor_ms(shape, rows, length, 1)
    yield Figure(f"{shape.name} last chunk of {length} tokens, {what}", took, "ms", floor)


def measure_compiled_pass(bench: Bench, shape: Shape) -> Iterator[Figure]:
    """The plain pass with kernels fused by a compiler."""
    compiled = bench.network(shape)
    backend = "inductor" if bench.device.type == "cuda" else "eager"  # a CPU would wait for a C++ compiler
    compiled._compute = torch.compile(compiled._compute, backend=backend, dynamic=False)
    yield _plain_pass(bench, shape, compiled, "compiled")


def _plain_pass(bench: Bench, shape: Shape, network: FusedModel, what: str) -> Figure:
    context = bench.sizes.context
    floor = bench.ceilings.floor_ms(shape, ROWS, context, ROWS)
    draft = [bench.ids(ROWS, shape)]
    network.use_graphs(bench.graphs())
    cache = PrefixCache(network, bench.sizes.capacity, bench.sizes.chunk)
    took = median_ms(bench.device, lambda: cache.branches(draft, context), bench.sizes.repeats)
    return Figure(f"{shape.name} pass of 1x{ROWS} rows, {what}", took, "ms", floor)


def _generate(bench: Bench, shape: Shape, name: str, **options: Any) -> Figure:
    """ms a token of transformers: what more tokens cost more, the prompt's pass left out."""
    model, tokens = bench.model(shape), bench.sizes.tokens
    prompt = torch.tensor([bench.ids(bench.sizes.context, shape)], device=bench.device)
    attention = torch.ones_like(prompt)

    def run(count: int) -> None:
        model.generate(
            prompt,
            attention_mask=attention,
            do_sample=False,
            min_new_tokens=count,
            max_new_tokens=count,
            pad_token_id=0,
            **options,
        )

    run(tokens)  # compiles, where it does
    run(2)
    took = once_ms(bench.device, lambda: run(tokens)) - once_ms(bench.device, lambda: run(2))
    floor = bench.ceilings.floor_ms(shape, 1, bench.sizes.context, 1)
    return Figure(name, took / (tokens - 2), "ms", floor)


def measure_compiled(bench: Bench, shape: Shape) -> Iterator[Figure]:
    """transformers with a static cache, whose decoding step it compiles on a GPU."""
    name = f"{shape.name} ms a token, transformers static cache, compiled"
    yield _generate(bench, shape, name, cache_implementation="static")


def memory(bench: Bench, shape: Shape, name: str) -> Figure:
    """Peak since the model was made, against its weights and one text's keys and values."""
    floor = (shape.weight_bytes + bench.sizes.capacity * shape.kv_bytes) / 2**30
    if bench.device.type != "cuda":
        return Figure(f"{name} peak memory", None, "GiB", floor, "needs CUDA")
    return Figure(f"{name} peak memory", torch.cuda.max_memory_allocated() / 2**30, "GiB", floor)
