"""A file of packed matrices, mapped into memory: processes that use the same one share its pages.

Beside it, in ``packed.json``, is what the matrices look like, for which torch and processor they were packed,
and a product of each with fixed numbers, which has to come out the same.
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
    """Writes packed matrices to a file of a folder, one at a time, and their index when it is left."""

    def __init__(self, folder: Path) -> None:
        """Raises ``OSError``."""
        self._folder = folder
        self._file = (folder / FILE).open("wb")
        self._entries: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        """Raises ``OSError``."""
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
    """The matrices of a folder by name; none where it has none.

    Raises ``ValueError`` where they were packed for another machine or are damaged, and ``OSError``.
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
    """The sum of a file's words of 8 bytes, modulo 2^64, and of the bytes after them."""
    memory = _mapped(path)
    words = memory[: len(memory) // 8 * 8].view(torch.int64)
    return int(words.sum()) + int(memory[8 * len(words) :].sum())


def _mapped(path: Path) -> torch.Tensor:
    """The bytes of a file, which the system begins to read at once where they are not in memory."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
    return torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)


def _check(packed: Packed) -> list[float]:
    """Sums of a product with fixed numbers, one a row."""
    inner, outer = packed.matrix.shape
    rows = torch.arange(_CHECKED_ROWS * inner).remainder(255).to(torch.uint8).view(_CHECKED_ROWS, inner)
    sums = Int8Linear(packed, torch.ones(outer)).integers(rows)
    weights = torch.arange(outer).remainder(7).double()
    return [float(row) for row in sums.double() @ weights]


def _machine() -> str:
    return f"torch {torch.__version__} on {processor()}"
