"""Changes how long OpenMP's threads spin while they wait for each other, at run time.

The number of threads does not change, and no bit of a result does.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from pathlib import Path
from typing import Any, Protocol

import torch

from fimserver.threads import BLOCKTIME_MS, LONG_BLOCKTIME_MS, allowed_cpus


class Spin(Protocol):
    """Switches between a long and a brief spin of OpenMP's threads."""

    def set_brief(self, brief: bool, /) -> None:
        """Choose the brief spin or the long one; called in the thread that computes."""
        ...


class GnuSpin:
    """Spin of GNU OpenMP: brief while the process has more OpenMP threads than CPUs.

    libgomp then spins 100 times instead of ``GOMP_SPINCOUNT`` times, as it decides at every wait (``do_spin``
    in its ``config/linux/wait.h``). To get there, a parked thread begins one parallel region and so owns idle
    OpenMP threads; they end with it.
    """

    def __init__(self, library: Any, processors: int) -> None:
        self._begin = library.GOMP_parallel
        self._begin.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
        self._begin.restype = None
        self._nothing = ctypes.cast(ctypes.CDLL(None).free, ctypes.c_void_p)  # of a null pointer
        self._threads = processors + 1
        self._leave: threading.Event | None = None

    def set_brief(self, brief: bool, /) -> None:
        """Start or end the parked thread; if the system allows no more threads, the spin stays as it is."""
        if brief == (self._leave is not None):
            return
        if self._leave is not None:
            self._leave.set()
            self._leave = None
            return
        leave = threading.Event()
        with contextlib.suppress(RuntimeError):
            threading.Thread(target=self._park, args=(leave,), name="parked", daemon=True).start()
            self._leave = leave

    def _park(self, leave: threading.Event) -> None:
        self._begin(self._nothing, None, self._threads, 0)
        leave.wait()


class BlocktimeSpin:
    """Spin of Intel's and LLVM's OpenMP: a time in ms, set for the calling thread's OpenMP threads."""

    def __init__(self, library: Any) -> None:
        self._set_blocktime = library.kmp_set_blocktime
        self._set_blocktime.argtypes = (ctypes.c_int,)
        self._set_blocktime.restype = None

    def set_brief(self, brief: bool, /) -> None:
        self._set_blocktime(BLOCKTIME_MS if brief else LONG_BLOCKTIME_MS)


def find_spin(*libraries: Any) -> Spin | None:
    """Return the switch for the loaded OpenMP, or that of ``libraries``; ``None`` if it has none."""
    for library in libraries or _loaded():
        if hasattr(library, "kmp_set_blocktime"):  # tested first, as these libraries have GNU's functions too
            return BlocktimeSpin(library)
        if hasattr(library, "GOMP_parallel"):
            return GnuSpin(library, allowed_cpus())
    return None


def _loaded() -> list[ctypes.CDLL]:
    """Return libraries through which torch's OpenMP is found: the process itself, then torch's library."""
    paths = (Path(torch.__file__).parent / "lib").glob("*torch_cpu.*")
    try:
        return [ctypes.CDLL(name) for name in (None, *map(str, paths))]
    except (OSError, TypeError):
        return []
