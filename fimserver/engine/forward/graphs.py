"""Execution of passes over static buffers.

``EagerGraphs`` runs the kernels each time; ``CudaGraphs`` (``cuda_graphs.py``) captures them once and replays
them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Protocol


class Graphs(Protocol):
    """Runs work that uses the same tensors each time and does not branch on their values."""

    def run(self, key: Hashable, work: Callable[[], None]) -> None:
        """Run the work of ``key``. The first call may run it several times, so it must be idempotent."""
        ...


class EagerGraphs:
    """Runs all work without capturing it. ``keys``: number of runs by key, in order of the first run."""

    def __init__(self) -> None:
        self.keys: dict[Hashable, int] = {}

    def run(self, key: Hashable, work: Callable[[], None]) -> None:
        self.keys[key] = self.keys.get(key, 0) + 1
        work()
