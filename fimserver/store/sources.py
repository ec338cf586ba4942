"""Sources of a model's files: their protocol, and the events while they are read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from fimserver.cards import Card

ANSWER_S = 5.0  # a source that has not answered by then has failed, and the next one is tried
STALL_S = 30.0  # longest silence in the middle of a file
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class ModelFile:
    """One file of a model. Unknown facts are 0 or empty."""

    name: str
    size_bytes: int = 0
    sha256: str = ""
    git_blob_id: str = ""  # hash that a hub has for small files


@dataclass(frozen=True)
class Asked:
    """The source has just been asked: the wait for its answer starts again."""


@dataclass(frozen=True)
class Received:
    """Bytes that have arrived but are not data yet; 0: the source has answered."""

    bytes: int = 0


Event = bytes | Asked | Received | None  # ``None``: nothing new


class Source(Protocol):
    """A source of the files of one model, readable from any offset."""

    @property
    def label(self) -> str:
        """Name for messages."""
        ...

    @property
    def extra_bytes(self) -> int:
        """Temporary disk space that it needs besides the files."""
        ...

    def files(self) -> tuple[ModelFile, ...]:
        """Return the files that it has. Raises ``SourceError``."""
        ...

    def read(self, file: ModelFile, offset: int) -> Iterator[Event]:
        """Read a file from ``offset`` on. Raises ``SourceError``."""
        ...


def pinned_files(card: Card) -> tuple[ModelFile, ...]:
    """Return the files that the card pins with size and hash; empty if the hub must be asked."""
    names = [name for name in card.files if name.endswith(".gguf")]
    return tuple(ModelFile(name, card.download_bytes, card.files[name]) for name in names)
