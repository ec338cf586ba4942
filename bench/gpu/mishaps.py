"""Measures a cancelled request, and one during which the device runs out of memory."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterator

import torch

from bench.gpu.clock import median_ms, wait
from bench.gpu.exactness import decode
from bench.gpu.figures import Figure
from bench.gpu.setup import ROWS, Bench, speculation
from bench.gpu.shapes import Shape
from fimserver.engine.faults import DeviceFault, fault_of, free_memory
from fimserver.engine.forward.pass_cost import PassCosts
from fimserver.engine.forward.prefix_cache import PrefixCache
from fimserver.types import Deadline, Request, Sampling

CANCELS = 8
SPARE_BYTES = 64 * 2**20


def measure(bench: Bench, shape: Shape) -> Iterator[Figure]:
    cache = bench.decoder(shape).cache
    yield from _cancel(bench, shape, cache)
    yield from _out_of_memory(bench, shape, cache)


def _cancel(bench: Bench, shape: Shape, cache: PrefixCache) -> Iterator[Figure]:
    """From a cancel in the middle of a prefill to an idle device; the floor is one chunk's pass."""
    prompt = bench.ids(bench.sizes.prompts[-1], shape)

    def cold() -> None:
        cache.clear()
        cache.prefill(prompt, Deadline(), want_logits=False)

    whole_ms = median_ms(bench.device, cold, 3)
    chunk_ms = whole_ms / -(-len(prompt) // bench.sizes.chunk)
    times = [_cancelled(bench, cache, prompt, whole_ms * (i + 1) / (CANCELS + 2)) for i in range(CANCELS)]
    yield Figure(f"{shape.name} cancel to idle, median", statistics.median(times), "ms", chunk_ms)
    yield Figure(f"{shape.name} cancel to idle, longest of {CANCELS}", max(times), "ms", chunk_ms)


def _cancelled(bench: Bench, cache: PrefixCache, prompt: list[int], after_ms: float) -> float:
    cache.clear()
    wait(bench.device)
    deadline = Deadline()
    when: list[float] = []

    def cancel() -> None:
        when.append(time.perf_counter())
        deadline.cancelled.set()

    timer = threading.Timer(after_ms / 1000, cancel)
    timer.start()
    cache.prefill(prompt, deadline, want_logits=False)
    wait(bench.device)
    idle = time.perf_counter()
    timer.join()
    return max(0.0, 1000 * (idle - when[0]))


def _out_of_memory(bench: Bench, shape: Shape, cache: PrefixCache) -> Iterator[Figure]:
    """A request that does not fit fails by itself, and the next one gives the same text as before."""
    made = speculation(cache, PassCosts({(1, ROWS): 1.0}))
    prompt = bench.ids(bench.sizes.context, shape)
    request = Request("", "", Sampling(bench.sizes.tokens, 0.8, seed=9))
    before = decode(made, prompt, request)
    fault, peak = _exhaust(bench, shape, cache)
    free_memory()
    cache.clear()
    survived = fault is DeviceFault.MEMORY and decode(made, prompt, request) == before
    note = f"fault: {fault.value if fault else 'none'}"
    yield Figure(f"{shape.name} text after running out of memory, equal", float(survived), "share", 1.0, note)
    why = "" if peak else "needs CUDA"
    yield Figure(f"{shape.name} memory in use when it ran out", peak, "GiB", note=why)


def _exhaust(bench: Bench, shape: Shape, cache: PrefixCache) -> tuple[DeviceFault | None, float | None]:
    """Run a pass with more logits than the process may have memory for."""
    rows = cache.capacity // 2
    ids = bench.ids(rows, shape)
    mask = cache.causal(0, rows)[:, :rows]
    every = torch.arange(rows, device=bench.device)
    on_gpu = bench.device.type == "cuda"
    try:
        if not on_gpu:
            raise torch.OutOfMemoryError
        total = torch.cuda.mem_get_info()[1]
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + SPARE_BYTES) / total)
        cache.rows(ids, 0, mask, every)
    except RuntimeError as error:
        return fault_of(error), torch.cuda.memory_reserved() / 2**30 if on_gpu else None
    finally:
        if on_gpu:
            torch.cuda.set_per_process_memory_fraction(1.0)
    return None, None
