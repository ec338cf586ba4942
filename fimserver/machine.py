"""Free memory of this machine, read without torch: RAM (within a container's limit) and GPU memory."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

GIB = 2**30
NVIDIA_S = 3.0


@dataclass(frozen=True)
class Machine:
    """Free memory. ``gpu_gib`` is 0 without a GPU."""

    gpu_gib: float
    ram_gib: float

    def less(self, taken_gib: float) -> Machine:
        """Return what is left after ``taken_gib`` on the models' device. A full GPU still counts as one."""
        if self.gpu_gib > 0:
            return Machine(max(0.001, self.gpu_gib - taken_gib), self.ram_gib)
        return Machine(0.0, self.ram_gib - taken_gib)


def this_machine() -> Machine:
    """Return what is free now."""
    return Machine(_gpu_gib(), free_ram_gib())


def free_ram_gib(proc: Path = Path("/proc/meminfo"), group: Path = Path("/sys/fs/cgroup")) -> float:
    """Return the memory that a new process can use without swapping; 0 if unknown."""
    free = _available_bytes(proc)
    limit = _number(group / "memory.max")
    used = _number(group / "memory.current")
    if limit is not None:
        free = min(free, max(0, limit - (used or 0)))
    return free / GIB


def _available_bytes(proc: Path) -> int:
    """Return MemAvailable on Linux, half of all memory elsewhere."""
    try:
        for line in proc.read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (ValueError, OSError):
        return 0


def _number(path: Path) -> int | None:
    """Read a number from a cgroup file; ``None`` for ``max``."""
    try:
        return int(path.read_text("ascii"))
    except (OSError, ValueError):
        return None


def _gpu_gib() -> float:
    """Return the free memory of the GPU with the most, according to its driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return 0.0
    command = [program, "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, timeout=NVIDIA_S, check=True
        )
        return max((float(line) / 1024 for line in done.stdout.split()), default=0.0)
    except (OSError, ValueError, subprocess.SubprocessError):
        return 0.0
