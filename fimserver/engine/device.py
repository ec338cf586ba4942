"""The device that models run on, and its free memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch

from fimserver.errors import DeviceError
from fimserver.machine import Machine, free_ram_gib


def pick_device(name: str) -> torch.device:
    """``auto`` is the first CUDA GPU when there is one. Raises ``DeviceError``."""
    if name == "cuda" and not torch.cuda.is_available():
        raise DeviceError("device cuda: this machine has no usable CUDA GPU; use --device cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def free_gib(device: torch.device) -> float:
    """Free memory of a GPU; 0 for the CPU."""
    return torch.cuda.mem_get_info(device)[0] / 2**30 if device.type == "cuda" else 0.0


def free_gibs(device: torch.device) -> list[float]:
    """Free memory of every GPU, the first one first; none for the CPU."""
    if device.type != "cuda":
        return []
    return [torch.cuda.mem_get_info(i)[0] / 2**30 for i in range(torch.cuda.device_count())]


def free_machine(device: torch.device) -> Machine:
    """Free memory here, as far as models on this device can use it."""
    return Machine(free_gib(device), free_ram_gib())


def device_map(
    weights_gib: float, device: torch.device, free: list[float] | None = None
) -> str | Mapping[str, Any]:
    """One device, or several GPUs by accelerate's ``auto`` where the first has no fifth to spare.

    A model that fits on none was refused before (``memory_plan.py``).
    """
    if free is None:
        free = free_gibs(device)
    return {"": device} if len(free) < 2 or weights_gib * 1.2 <= free[0] else "auto"


def ram_gib() -> float:
    """All memory of the machine; 0 where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (ValueError, AttributeError, OSError):
        return 0.0


def wait_for(device: torch.device) -> None:
    """Return when the device has done all that it was given, so that a clock can be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def to_device(numbers: Sequence[Any], device: torch.device) -> torch.Tensor:
    """Integers on the device; a GPU copies them from pinned memory, so that the host does not wait."""
    if device.type != "cuda":
        return torch.tensor(numbers, device=device)
    return torch.tensor(numbers, pin_memory=True).to(device, non_blocking=True)


class Event(Protocol):
    """A mark in the work of a device."""

    def synchronize(self) -> None:
        """Return when the device has come to the mark."""
        ...


class Pace:
    """Keeps the host at most one pass ahead of the device.

    A cancelled prefill therefore ends with the pass that is running.
    """

    def __init__(self, mark: Callable[[], Event] | None) -> None:
        """``mark``: sets a mark after the work given so far; ``None`` where the host does the work itself."""
        self.mark = mark
        self._last: Event | None = None

    @classmethod
    def of(cls, device: torch.device) -> Pace:
        return cls(_cuda_mark if device.type == "cuda" else None)

    def step(self) -> None:
        """Call after each pass: waits for the one before it."""
        if self.mark is None:
            return
        previous = self._last
        self._last = self.mark()
        if previous is not None:
            previous.synchronize()


def _cuda_mark() -> Event:
    event: torch.cuda.Event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return event


def describe(device: torch.device) -> str:
    """Device, memory and number format in one line."""
    if device.type == "cuda":
        return (
            f"{torch.cuda.get_device_name(device)}, {free_gib(device):.1f} GiB free, bfloat16, torch"
            f" {torch.__version__}"
        )
    memory = f"{ram_gib():.0f} GiB memory, " if ram_gib() else ""
    return f"CPU, {memory}{torch.get_num_threads()} threads, float32, torch {torch.__version__}"
