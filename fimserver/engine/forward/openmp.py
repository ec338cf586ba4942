"""How long OpenMP's threads spin while they wait for each other, switched while they are in use.

The number of threads stays as it is, and so does every bit of a result.
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
    """Chooses between OpenMP's default spin and a brief one."""

    def set_brief(self, brief: bool, /) -> None:
        """Called by the thread that computes."""
        ...


class GnuSpin:
    """GNU OpenMP: waits are brief while the process has more OpenMP threads than processors.

    libgomp then spins 100 times instead of ``GOMP_SPINCOUNT`` times, which it looks up at every wait
    (``do_spin`` in its ``config/linux/wait.h``). A parked thread that has begun one parallel region owns
    idle OpenMP threads, and they count. They go when it ends.
    """

    def __init__(self, library: Any, processors: int) -> None:
        self._begin = library.GOMP_parallel
        self._begin.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
        self._begin.restype = None
        self._nothing = ctypes.cast(ctypes.CDLL(None).free, ctypes.c_void_p)  # of a null pointer
        self._threads = processors + 1
        self._leave: threading.Event | None = None

    def set_brief(self, brief: bool, /) -> None:
        """A system that allows no more threads keeps the spin as it is."""
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
    """Intel's and LLVM's OpenMP: milliseconds of spinning, set for the threads of the calling one."""

    def __init__(self, library: Any) -> None:
        self._set_blocktime = library.kmp_set_blocktime
        self._set_blocktime.argtypes = (ctypes.c_int,)
        self._set_blocktime.restype = None

    def set_brief(self, brief: bool, /) -> None:
        self._set_blocktime(BLOCKTIME_MS if brief else LONG_BLOCKTIME_MS)


def find_spin(*libraries: Any) -> Spin | None:
    """The switch of the OpenMP that is loaded, or of ``libraries``; ``None`` where it has none."""
    for library in libraries or _loaded():
        if hasattr(library, "kmp_set_blocktime"):  # these have GNU's functions, too
            return BlocktimeSpin(library)
        if hasattr(library, "GOMP_parallel"):
            return GnuSpin(library, allowed_cpus())
    return None


def _loaded() -> list[ctypes.CDLL]:
    """Where torch finds its OpenMP: what was loaded for all, else what its library depends on."""
    paths = (Path(torch.__file__).parent / "lib").glob("*torch_cpu.*")
    try:
        return [ctypes.CDLL(name) for name in (None, *map(str, paths))]
    except (OSError, TypeError):
        return []
