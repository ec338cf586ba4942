"""Failures of a device, and whether the process can go on after them.

It can after running out of memory. After any other CUDA error every answer may be wrong, so the process must
be restarted.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from enum import Enum

import torch


class DeviceFault(Enum):
    """Consequence of a failure for the next request."""

    REQUEST = "request"  # the next one may succeed
    MEMORY = "memory"  # the next one may succeed once caches are emptied
    DEVICE = "device"  # none will succeed in this process


def fault_of(error: BaseException) -> DeviceFault:
    """Classify an exception raised by an engine."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "not enough memory" in str(error):
        return DeviceFault.MEMORY
    # torch raises RuntimeError; the texts of other errors may quote the user's code.
    of_cuda = isinstance(error, RuntimeError) and any(w in str(error) for w in ("CUDA", "cuBLAS", "cuDNN"))
    is_device = of_cuda or type(error).__name__ == "AcceleratorError"
    return DeviceFault.DEVICE if is_device else DeviceFault.REQUEST


def free_memory() -> None:
    """Return unused memory of the allocators to the system and the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux":  # glibc keeps freed memory; other C libraries have no such call
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).malloc_trim(0)
