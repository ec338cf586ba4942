"""Checks what the programs need of a machine, before anything heavy is imported; one line per problem."""

from __future__ import annotations

import sys
from importlib import metadata

PYTHON = (3, 11)
PACKAGES = {"torch": (2, 10), "transformers": (5, 3)}


def missing() -> list[str]:
    """What is missing here, a GPU apart; empty where all is there. Imports nothing heavy."""
    found = []
    if sys.version_info < PYTHON:
        found.append(f"Python {PYTHON[0]}.{PYTHON[1]} or newer: this is {sys.version.split()[0]}")
    for name, floor in PACKAGES.items():
        wanted = f"{name} {'.'.join(map(str, floor))} or newer"
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            found.append(f"{wanted}: it is not installed for {sys.executable}")
            continue
        if numbers(version) < floor:
            found.append(f"{wanted}: this is {version}")
    return found


def without_device(name: str) -> str:
    """Why there is no device of this name, ``cuda`` or ``cpu``; empty where there is."""
    import torch

    if name != "cuda" or torch.cuda.is_available():
        return ""
    build = "is built without CUDA" if torch.version.cuda is None else "finds no usable GPU"
    return f"a CUDA GPU: torch {torch.__version__} {build} (--toy runs every step at toy sizes on a CPU)"


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: 2.11.0+cu130 is (2, 11)."""
    parts = version.split("+", maxsplit=1)[0].split(".")[:2]
    return tuple(int("".join(c for c in part if c.isdigit()) or 0) for part in parts)
