"""Environment of a measurement: machine, load, and versions of libraries."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

LIBRARIES = ("torch", "transformers", "tokenizers", "numpy")


def environment() -> dict[str, Any]:
    """Return facts for a report: processor, clock if readable, load, GPU, versions, commit."""
    return {
        "machine": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "clock_mhz": _clock_mhz(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "gpu": _line("nvidia-smi", "--query-gpu=name,clocks.sm,driver_version", "--format=csv,noheader"),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "commit": _line("git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"),
        **{name: _version(name) for name in LIBRARIES},
    }


def _processor() -> str:
    return next(iter(_cpuinfo("model name")), platform.processor() or platform.machine())


def _clock_mhz() -> float | None:
    return max(map(float, _cpuinfo("cpu MHz")), default=None)


def _cpuinfo(name: str) -> list[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return []
    return [line.partition(":")[2].strip() for line in lines if line.startswith(name)]


def _line(*command: str) -> str | None:
    """Return the first line that a command prints, or ``None`` if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip().split("\n")[0] or None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
