"""Several requests at once over captured graphs, against one after the other: texts, passes, tokens."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack

from bench.gpu.clock import median_ms, wait
from bench.gpu.figures import Figure
from bench.gpu.setup import ROWS, Bench, speculation
from bench.gpu.shapes import Shape
from fimserver.engine.capture import capture_decoding
from fimserver.engine.forward.joined_shapes import product_rows, try_shapes
from fimserver.engine.forward.pass_cost import PassCosts
from fimserver.engine.forward.passes import Pass, run_together
from fimserver.engine.forward.prefix_cache import PrefixCache
from fimserver.engine.speculation.drafts import DecodeState
from fimserver.engine.speculation.speculate import Speculation
from fimserver.types import Deadline, Request, Sampling

TEXTS = (1, 2, 4, 8)
SHARES = (0.3, 1.0, 0.55, 0.4, 0.85, 0.95, 0.7, 0.5)  # lengths of prompts, of the longest

Asked = Sequence[tuple[list[int], Request]]


def measure(bench: Bench, shape: Shape) -> Iterator[Figure]:
    """Measure with one buffer of keys and values, as with ``--batch 1``, and with eight."""
    costs = PassCosts({(1, ROWS): 1.0})  # plain decoding
    single = bench.cache(shape)
    capture_decoding(single, costs.ms)
    one_ms = _pass_ms(bench, single, 1)
    yield Figure(f"{shape.name} pass of one text, one buffer", one_ms, "ms", _floor_ms(bench, shape, 1))
    network = bench.network(shape)
    filled = product_rows(network)
    network.use_graphs(bench.graphs()).product_rows = filled
    cache = PrefixCache(network, bench.sizes.capacity, bench.sizes.chunk, 3, prompts=TEXTS[-1])
    capture_decoding(cache, costs.ms)
    started = time.monotonic()
    try_shapes(cache, ROWS)
    assert network.static
    alike = sorted(network.static.alike)
    took = f"{time.monotonic() - started:.1f} s; products filled up to {filled} rows"
    yield Figure(f"{shape.name} shapes in which texts may join", len(alike), "shapes", note=took)
    made = speculation(cache, costs)
    equal = []
    for count in TEXTS:
        pass_ms = _pass_ms(bench, cache, count)
        yield Figure(f"{shape.name} pass of {count} texts", pass_ms, "ms", _floor_ms(bench, shape, count))
        asked = _asked(bench, shape, count)
        _serve(bench, made, asked, count)
        alone, alone_s = _serve(bench, made, asked, 1)
        texts, took_s = _serve(bench, made, asked, count)
        equal += [one == other for one, other in zip(alone, texts, strict=True)]
        name = f"{shape.name} {count} requests at once"
        yield Figure(f"{name}: tokens a second", sum(map(len, texts)) / took_s, "tokens/s")
        yield Figure(f"{name}: speed of one after the other", alone_s / took_s, "times")
    share = sum(equal) / len(equal)
    yield Figure(f"{shape.name} texts equal to each alone", share, "share", 1.0, f"{len(equal)} texts")


def _floor_ms(bench: Bench, shape: Shape, texts: int) -> float:
    return bench.ceilings.floor_ms(shape, ROWS, bench.sizes.context, ROWS, texts)


def _asked(bench: Bench, shape: Shape, count: int) -> Asked:
    """Prompts of several lengths, decoded greedily and by sampling in turn."""
    longest = bench.sizes.capacity - bench.sizes.tokens - ROWS
    return [
        (
            bench.ids(int(share * longest), shape, seed=number),
            Request("", "", Sampling(bench.sizes.tokens, 0.8 * (number % 2), seed=number)),
        )
        for number, share in enumerate(SHARES[:count])
    ]


def _pass_ms(bench: Bench, cache: PrefixCache, texts: int) -> float:
    """Time a decoding pass of several texts, with its inputs and results."""
    with ExitStack() as stack:
        kept = [stack.enter_context(cache.prompts.held([number])) for number in range(texts)]

        def run() -> None:
            passes = []
            for each in kept:
                cache.prompts.current = each
                passes.append(cache.branches_pass([[1] * ROWS], bench.sizes.context))
            run_together(passes)
            for each_pass in passes:
                each_pass.result()

        found = median_ms(bench.device, run, bench.sizes.repeats)
    cache.clear()
    return found


def _serve(bench: Bench, made: Speculation, asked: Asked, at_once: int) -> tuple[list[list[int]], float]:
    """Run requests as a host does; return the ids of each, and the seconds until the last was done.

    A round runs all passes that can join, one that reads a chunk of a prompt, and one of the others.
    """
    made.cache.clear()
    states = [
        DecodeState(request, prompt, [], [], made.verifier.picker(request)) for prompt, request in asked
    ]
    waiting = [made.cache.prompts.within(state.prompt, _steps(made, state)) for state in states]
    running: list[tuple[Generator[Pass, None, None], Pass]] = []
    wait(bench.device)
    started = time.perf_counter()
    while waiting or running:
        while waiting and len(running) < at_once:
            steps = waiting.pop(0)
            running.append((steps, next(steps)))
        reading = [each for each in running if each[1].reads_prompt]
        apart = [each for each in running if not each[1].joins and each not in reading]
        chosen = [*(each for each in running if each not in (*reading, *apart)), *reading[:1], *apart[:1]]
        run_together([step for _, step in chosen])
        rest = [each for each in running if each not in chosen]
        running = [*rest, *((steps, step) for steps, _ in chosen if (step := next(steps, None)))]
    wait(bench.device)
    return [state.ids for state in states], time.perf_counter() - started


def _steps(made: Speculation, state: DecodeState) -> Generator[Pass, None, None]:
    """Yield the passes of one request."""
    wanted = state.request.sampling.max_tokens
    logits = yield from made.cache.prefilling(state.prompt, Deadline(), want_logits=True)
    assert logits is not None
    state.hidden = made.cache.network.hidden[0, -1]
    made.begin(state, logits)
    while len(state.ids) < wanted:
        begun = made.start_round(state, wanted - len(state.ids) - 1)
        yield begun.pass_
        made.end_round(state, begun)
