"""Graphs: run a pass over static buffers once or many times on a device.

``EagerGraphs`` runs it each time; ``CudaGraphs`` (``cuda_graphs.py``) captures it once and replays it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Protocol


class Graphs(Protocol):
    """Runs work that reads and writes the same tensors each time, with no branch on what they hold."""

    def run(self, key: Hashable, work: Callable[[], None]) -> None:
        """Do the work of ``key``. The first call may do it more than once: it must give the same again."""
        ...


class EagerGraphs:
    """Runs all work without capturing it. ``keys``: those that were asked for, in order."""

    def __init__(self) -> None:
        self.keys: dict[Hashable, int] = {}

    def run(self, key: Hashable, work: Callable[[], None]) -> None:
        self.keys[key] = self.keys.get(key, 0) + 1
        work()
