"""A file of packed matrices, mapped into memory, so that processes share its pages.

An index, ``packed.json``, has the layouts of the matrices, the torch and processor that they were packed for,
and a product of each with fixed numbers as a check.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Self

import torch

from fimserver.engine.forward.int8 import Int8Linear
from fimserver.engine.forward.packed import (
    ALIGNMENT,
    Packed,
    PackedForm,
    bytes_of,
    form_of,
    keeps_packed,
    pack,
    unpacked,
)
from fimserver.engine.weights.arithmetic import processor

FILE = "packed.bin"
INDEX = "packed.json"
_CHECKED_ROWS = 2


class PackedFile:
    """Context manager that writes packed matrices to a file, one at a time, and their index at its end."""

    def __init__(self, folder: Path) -> None:
        """Open the file in ``folder``. Raises ``OSError``."""
        self._folder = folder
        self._file = (folder / FILE).open("wb")
        self._entries: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        """Write the index, unless there was an error. Raises ``OSError``."""
        self._file.close()
        if error is None:
            index = {"machine": _machine(), "matrices": self._entries}
            (self._folder / INDEX).write_text(json.dumps(index), "utf-8")

    def add(self, name: str, values: torch.Tensor) -> None:
        """Pack and write a matrix (out, in) int8. Raises ``OSError``."""
        packed = pack(values)
        self._file.write(bytes(-self._file.tell() % ALIGNMENT))
        entry = {"at": self._file.tell(), "check": _check(packed)}
        self._entries[name] = entry | form_of(packed)._asdict()
        self._file.write(bytes_of(packed))


def read_packed(folder: Path) -> dict[str, Packed]:
    """Return the matrices of a folder by name; empty if it has no index.

    Raises ``ValueError`` if they were packed for another machine or are damaged, or ``OSError``.
    """
    if not (folder / INDEX).is_file():
        return {}
    index = json.loads((folder / INDEX).read_text("utf-8"))
    if index["machine"] != _machine() or not keeps_packed():
        raise ValueError(f"packed for {index['machine']}")
    memory = _mapped(folder / FILE)
    found = {}
    for name, entry in index["matrices"].items():
        form = PackedForm(entry["sizes"], entry["bytes"], entry["layout"])
        found[name] = unpacked(memory, entry["at"], form)
    name = min(found, key=lambda name: index["matrices"][name]["bytes"])
    if _check(found[name]) != index["matrices"][name]["check"]:
        raise ValueError(f"{name} gives other products")
    return found


def file_sum(path: Path) -> int:
    """Return a checksum: the sum of the file's 8-byte words modulo 2^64, and of the bytes after them."""
    memory = _mapped(path)
    words = memory[: len(memory) // 8 * 8].view(torch.int64)
    return int(words.sum()) + int(memory[8 * len(words) :].sum())


def _mapped(path: Path) -> torch.Tensor:
    """Map a file into memory, and ask the system to begin reading it."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
    return torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)


def _check(packed: Packed) -> list[float]:
    """Multiply with fixed numbers; returns one weighted sum per row."""
    inner, outer = packed.matrix.shape
    rows = torch.arange(_CHECKED_ROWS * inner).remainder(255).to(torch.uint8).view(_CHECKED_ROWS, inner)
    sums = Int8Linear(packed, torch.ones(outer)).integers(rows)
    weights = torch.arange(outer).remainder(7).double()
    return [float(row) for row in sums.double() @ weights]


def _machine() -> str:
    return f"torch {torch.__version__} on {processor()}"
