"""The device that models run on: choice, free memory, synchronisation."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch

from fimserver.errors import DeviceError
from fimserver.machine import Machine, free_ram_gib


def pick_device(name: str) -> torch.device:
    """Return the device of ``auto`` (a CUDA GPU if there is one), ``cuda`` or ``cpu``.

    Raises ``DeviceError``.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise DeviceError("device cuda: this machine has no usable CUDA GPU; use --device cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def free_gib(device: torch.device) -> float:
    """Return the free memory of a GPU; 0 for the CPU."""
    return torch.cuda.mem_get_info(device)[0] / 2**30 if device.type == "cuda" else 0.0


def free_gibs(device: torch.device) -> list[float]:
    """Return the free memory of every GPU, in order; empty for the CPU."""
    if device.type != "cuda":
        return []
    return [torch.cuda.mem_get_info(i)[0] / 2**30 for i in range(torch.cuda.device_count())]


def free_machine(device: torch.device) -> Machine:
    """Return the free memory of the GPU and of the machine."""
    return Machine(free_gib(device), free_ram_gib())


def device_map(
    weights_gib: float, device: torch.device, free: list[float] | None = None
) -> str | Mapping[str, Any]:
    """Return one device, or accelerate's ``auto`` over several GPUs if the first lacks 1.2 times the weights.

    Models that do not fit at all have been refused before (``memory_plan.py``).
    """
    if free is None:
        free = free_gibs(device)
    return {"": device} if len(free) < 2 or weights_gib * 1.2 <= free[0] else "auto"


def ram_gib() -> float:
    """Return the total memory of the machine; 0 if the system does not report it."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (ValueError, AttributeError, OSError):
        return 0.0


def wait_for(device: torch.device) -> None:
    """Wait until the device has finished its work, so that time can be measured."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def to_device(numbers: Sequence[Any], device: torch.device) -> torch.Tensor:
    """Copy integers to the device; from pinned memory for a GPU, so that the host does not wait."""
    if device.type != "cuda":
        return torch.tensor(numbers, dtype=torch.long, device=device)
    return torch.tensor(numbers, dtype=torch.long, pin_memory=True).to(device, non_blocking=True)


class Event(Protocol):
    """A point in a device's queue of work (``torch.cuda.Event``)."""

    def synchronize(self) -> None:
        """Wait until the device has reached the point."""
        ...


class Pace:
    """Keeps the host at most one pass ahead of the device.

    A cancelled prefill therefore ends with the pass that is running.
    """

    def __init__(self, mark: Callable[[], Event] | None) -> None:
        """``mark``: records an event after the work queued so far; ``None`` on a CPU."""
        self.mark = mark
        self._last: Event | None = None

    @classmethod
    def of(cls, device: torch.device) -> Pace:
        return cls(_cuda_mark if device.type == "cuda" else None)

    def step(self) -> None:
        """Wait for the pass before the last one; called after each pass."""
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
    """Describe device, memory and number format in one line."""
    if device.type == "cuda":
        return (
            f"{torch.cuda.get_device_name(device)}, {free_gib(device):.1f} GiB free, bfloat16, torch"
            f" {torch.__version__}"
        )
    memory = f"{ram_gib():.0f} GiB memory, " if ram_gib() else ""
    return f"CPU, {memory}{torch.get_num_threads()} threads, float32, torch {torch.__version__}"
