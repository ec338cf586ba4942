"""Registry of weight formats: finds and opens the files of a model.

``WEIGHTS`` is the registry; the first format whose files are present is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from fimserver.cards import Card, gguf_files
from fimserver.engine.weights.checkpoint import Checkpoint


class WeightFormat(Protocol):
    """One file format of checkpoints."""

    def files(self, card: Card, folder: Path) -> Sequence[Path]:
        """Return the files that hold the weights, in order; empty if there are none of this format."""
        ...

    def read(self, card: Card, folder: Path) -> Checkpoint:
        """Open the checkpoint, importing the libraries of the format. Raises ``LoadError``."""
        ...


class SafetensorsFormat:
    """A folder of ``config.json``, tokenizer files and one or more safetensors files."""

    def files(self, card: Card, folder: Path) -> Sequence[Path]:  # noqa: ARG002 - the seam
        return sorted(folder.glob("*.safetensors")) if (folder / "config.json").is_file() else []

    def read(self, card: Card, folder: Path) -> Checkpoint:
        from fimserver.engine.weights.safetensors import open_checkpoint  # noqa: PLC0415 - slow to import

        return open_checkpoint(card, folder)


class GGUFFormat:
    """One GGUF file, or its shards; their names are in the card's ``[files]``."""

    def files(self, card: Card, folder: Path) -> Sequence[Path]:
        paths = [folder / name for name in gguf_files(card)]
        return paths if all(path.is_file() for path in paths) else []

    def read(self, card: Card, folder: Path) -> Checkpoint:
        from fimserver.engine.weights.gguf import open_checkpoint  # noqa: PLC0415 - slow to import

        return open_checkpoint(card, folder / gguf_files(card)[0])


WEIGHTS: Mapping[str, WeightFormat] = {"safetensors": SafetensorsFormat(), "gguf": GGUFFormat()}


def format_of(card: Card, folder: Path) -> WeightFormat | None:
    """Return the format of a model's files, or ``None`` if there are none."""
    return next((fmt for fmt in WEIGHTS.values() if fmt.files(card, folder)), None)


def size_bytes(card: Card, folder: Path) -> int:
    """Return the bytes of the files that hold the weights; 0 if there are none."""
    fmt = format_of(card, folder)
    return sum(path.stat().st_size for path in fmt.files(card, folder)) if fmt else 0
