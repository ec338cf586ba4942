"""The weight formats by name: which files a model has, and how they are opened.

``WEIGHTS`` is the place for another format; the first one whose files are there is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from fimserver.cards import Card, gguf_files
from fimserver.engine.weights.checkpoint import Checkpoint


class WeightFormat(Protocol):
    """One format of checkpoints."""

    def files(self, card: Card, folder: Path) -> Sequence[Path]:
        """The files that hold the weights, in order; empty where the model is not there in this format."""
        ...

    def read(self, card: Card, folder: Path) -> Checkpoint:
        """Open them. Raises ``LoadError``. The libraries of a format are not imported before."""
        ...


class SafetensorsFormat:
    """A folder of ``config.json``, tokenizer files and one or more safetensors files."""

    def files(self, card: Card, folder: Path) -> Sequence[Path]:  # noqa: ARG002 - the seam
        return sorted(folder.glob("*.safetensors")) if (folder / "config.json").is_file() else []

    def read(self, card: Card, folder: Path) -> Checkpoint:
        from fimserver.engine.weights.safetensors import open_checkpoint  # noqa: PLC0415 - slow to import

        return open_checkpoint(card, folder)


class GGUFFormat:
    """One GGUF file, or its shards. Their names are in the card's ``[files]``."""

    def files(self, card: Card, folder: Path) -> Sequence[Path]:
        paths = [folder / name for name in gguf_files(card)]
        return paths if all(path.is_file() for path in paths) else []

    def read(self, card: Card, folder: Path) -> Checkpoint:
        from fimserver.engine.weights.gguf import open_checkpoint  # noqa: PLC0415 - slow to import

        return open_checkpoint(card, folder / gguf_files(card)[0])


WEIGHTS: Mapping[str, WeightFormat] = {"safetensors": SafetensorsFormat(), "gguf": GGUFFormat()}


def format_of(card: Card, folder: Path) -> WeightFormat | None:
    """The format in which a model is there, or ``None``."""
    return next((fmt for fmt in WEIGHTS.values() if fmt.files(card, folder)), None)


def size_bytes(card: Card, folder: Path) -> int:
    """Bytes of the files that hold the weights; 0 where there are none."""
    fmt = format_of(card, folder)
    return sum(path.stat().st_size for path in fmt.files(card, folder)) if fmt else 0
