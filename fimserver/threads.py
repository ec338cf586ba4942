"""Threads of the numeric libraries: how many, and how long they spin while they wait for each other.

OpenMP threads spin at the end of every parallel region. If another process runs on the core of one of them,
the others spin until it is scheduled again, many times per forward pass. So they spin long while they have
the processors to themselves; else they are fewer and spin briefly (``engine/forward/competition.py``). Where
that cannot be switched, a bounded spin is between the two. The libraries read the environment when they are
loaded, so ``prepare`` must run before torch is imported; child processes inherit it.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, MutableMapping
from math import ceil
from pathlib import Path

LONG_SPINS = 300_000  # of GNU OpenMP (Linux), its default; the brief spin beside it is 100
SPINS = 1000  # about 35 µs; where the spin cannot be switched. bench/busy.py compares them
LONG_BLOCKTIME_MS = 200  # of Intel's and LLVM's OpenMP (MKL, macOS), their default
BLOCKTIME_MS = 0
USER_SAYS = frozenset({"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"})
CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")


def prepare(environ: MutableMapping[str, str] = os.environ) -> None:
    """Set what the environment does not: the spin, and a thread count within the cgroup's CPU limit."""
    allowed = allowed_cpus()
    quota = cgroup_cpus()
    limited = 0 < quota < allowed  # the switch would need a thread for each processor of the machine
    if not USER_SAYS & environ.keys():
        environ["GOMP_SPINCOUNT"] = str(LONG_SPINS if has_gnu_openmp() and not limited else SPINS)
        environ["KMP_BLOCKTIME"] = str(BLOCKTIME_MS)
    if limited:
        environ.setdefault("OMP_NUM_THREADS", str(quota))


def is_prepared(environ: Mapping[str, str], spins: int) -> bool:
    """Whether ``prepare``, and not the user, set a spin of so many rounds."""
    return (environ.get("GOMP_SPINCOUNT"), environ.get("KMP_BLOCKTIME")) == (str(spins), str(BLOCKTIME_MS))


def has_gnu_openmp() -> bool:
    """Whether the installed torch comes with GNU OpenMP. Torch is not imported."""
    found = importlib.util.find_spec("torch")
    folder = Path(found.origin).parent / "lib" if found and found.origin else None
    return folder is not None and any(folder.glob("libgomp*"))


def allowed_cpus() -> int:
    """Number of processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cgroup_cpus(own: Path = OWN_CGROUP, root: Path = CGROUPS) -> int:
    """CPU limit of the cgroup and its parents in processors, rounded up; 0 without a limit."""
    quotas = [quota for folder in _folders(own, root) if (quota := _quota(folder))]
    return ceil(min(quotas)) if quotas else 0


def _folders(own: Path, root: Path) -> list[Path]:
    """Folders of this process's cgroup (version 2) up to the root, and that of version 1."""
    try:
        lines = own.read_text("utf-8").splitlines()
    except OSError:
        return [root]
    path = next((line.removeprefix("0::").lstrip("/") for line in lines if line.startswith("0::")), "")
    folder = root / path
    return [folder, *(each for each in folder.parents if each.is_relative_to(root)), root / "cpu"]


def _quota(folder: Path) -> float:
    """CPU limit of one cgroup in processors; 0 if it has none or cannot be read."""
    try:
        if (limit := folder / "cpu.max").exists():
            quota, period = limit.read_text("ascii").split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text("ascii")
            period = (folder / "cpu.cfs_period_us").read_text("ascii")
        return max(0.0, int(quota) / int(period))
    except (OSError, ValueError, ZeroDivisionError):  # "max": no limit
        return 0.0
