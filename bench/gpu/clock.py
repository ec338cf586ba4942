"""Milliseconds of work on a device, from an idle device to an idle device, and the host's waits in it."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable

import torch


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def once_ms(device: torch.device, work: Callable[[], object]) -> float:
    wait(device)
    started = time.perf_counter()
    work()
    wait(device)
    return 1000 * (time.perf_counter() - started)


def median_ms(device: torch.device, work: Callable[[], object], repeats: int) -> float:
    """The median of ``repeats`` runs, after two that do not count."""
    for _ in range(2):
        work()
    return statistics.median(once_ms(device, work) for _ in range(repeats))


def waits(work: Callable[[], object]) -> int:
    """Return how often the host waits for a CUDA device in ``work``, by PyTorch's own count."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(w.message) for w in seen)
