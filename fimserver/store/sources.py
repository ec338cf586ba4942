"""Sources of a model's files.

What each must offer, and which ones a card has, in the order they are tried.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from fimserver.cards import Card

ANSWER_S = 5.0  # a source that has not answered by then is named, and the next one is tried
STALL_S = 30.0  # of silence in the middle of a file
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class ModelFile:
    """One file of a model. What is not known beforehand is 0 or empty."""

    name: str
    size_bytes: int = 0
    sha256: str = ""
    git_blob_id: str = ""  # what a hub says of small files


@dataclass(frozen=True)
class Asked:
    """The source was asked just now: the wait for its answer starts here."""


@dataclass(frozen=True)
class Received:
    """So many bytes have arrived that are not data yet; 0: the source has answered."""

    bytes: int = 0


Event = bytes | Asked | Received | None  # ``None``: nothing new


class Source(Protocol):
    """A place that gives the files of one model, from any offset on."""

    @property
    def label(self) -> str:
        """What to call it in a message."""
        ...

    @property
    def extra_bytes(self) -> int:
        """Disk space that it needs beside the files while it works."""
        ...

    def files(self) -> tuple[ModelFile, ...]:
        """The files that it would give. Raises ``SourceError``."""
        ...

    def read(self, file: ModelFile, offset: int) -> Iterator[Event]:
        """The bytes of a file from ``offset`` on. Raises ``SourceError``."""
        ...


def pinned_files(card: Card) -> tuple[ModelFile, ...]:
    """The files that the card names with size and hash; empty where the hub has to be asked."""
    names = [name for name in card.files if name.endswith(".gguf")]
    return tuple(ModelFile(name, card.download_bytes, card.files[name]) for name in names)
