"""CUDA graphs: captures the kernels of a pass once and replays them. No other module captures."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable

import torch

from fimserver.engine.faults import free_memory

WARM_UPS = 2  # before a capture: libraries allocate and choose kernels in their first runs
log = logging.getLogger("fimserver.engine")


class CudaGraphs:
    """Captures one graph per key, all in one memory pool: one runs at a time, and results are copied out."""

    def __init__(self) -> None:
        self.pool = torch.cuda.graph_pool_handle()
        # One stream for all captures: cuBLAS keeps a workspace for each stream that it has run on.
        self.stream: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self.failures: dict[Hashable, str] = {}  # keys that run without a graph, and why
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}

    def run(self, key: Hashable, work: Callable[[], None]) -> None:
        if key not in self._graphs and key not in self.failures:
            self._try(key, work)
        if key in self._graphs:
            self._graphs[key].replay()  # a capture runs nothing: the first time too
        else:
            work()

    def _try(self, key: Hashable, work: Callable[[], None]) -> None:
        """Capture a graph; if that fails, passes of this key run without one: slower, but equal."""
        before = torch.cuda.current_stream()
        try:
            self._graphs[key] = self._capture(work)
        except RuntimeError as error:  # out of memory, or an operation that cannot be captured
            self.failures[key] = str(error).partition("\n")[0][:160]
            log.warning(
                "passes of one shape run without a CUDA graph, which is slower: %s", self.failures[key]
            )
            torch.cuda.set_stream(before)  # a failed capture leaves its own one
            free_memory()

    def _capture(self, work: Callable[[], None]) -> torch.cuda.CUDAGraph:
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            for _ in range(WARM_UPS):
                work()
        torch.cuda.current_stream().wait_stream(self.stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads (a drafter's, another model's) may use the device meanwhile.
        with torch.cuda.graph(graph, self.pool, self.stream, capture_error_mode="thread_local"):
            work()
        return graph
