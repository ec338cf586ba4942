"""Failures of a device, and which of them can be survived.

A request that runs out of memory leaves a sound process behind; any other error of CUDA does not: from then
on every answer may be garbage, so the process has to go and be started again.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from enum import Enum

import torch


class DeviceFault(Enum):
    """What a failure means for the next request."""

    REQUEST = "request"  # the next one may work
    MEMORY = "memory"  # the next one may work once caches are emptied
    DEVICE = "device"  # nothing works any more in this process


def fault_of(error: BaseException) -> DeviceFault:
    """What an exception out of an engine means."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "not enough memory" in str(error):
        return DeviceFault.MEMORY
    # Only a RuntimeError is torch's: others may quote what a user wrote.
    told = isinstance(error, RuntimeError) and any(word in str(error) for word in ("CUDA", "cuBLAS", "cuDNN"))
    return DeviceFault.DEVICE if told or type(error).__name__ == "AcceleratorError" else DeviceFault.REQUEST


def free_memory() -> None:
    """Give unused memory of the allocators back to the system and the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux":  # glibc keeps what was freed; other C libraries have no such call
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).malloc_trim(0)
