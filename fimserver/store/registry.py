"""Sources of a card, in the order they are tried."""

from __future__ import annotations

from pathlib import Path

from fimserver.cards import Card
from fimserver.errors import InputError
from fimserver.store.hub import HubSource
from fimserver.store.index import IndexSource
from fimserver.store.sources import Source
from fimserver.store.url import UrlSource


def sources_of(card: Card, work: Path, url: str = "") -> list[Source]:
    """Return the sources of a card, in order: only ``url`` if given, else the hub, then the Python index.

    ``work``: a folder for temporary files. Raises ``InputError`` if there is no source.
    """
    if url:
        return [UrlSource(card, url)]
    sources: list[Source] = []
    if card.hub:
        sources.append(HubSource(card))
    if card.index:
        sources.append(IndexSource(card, card.index, work))
    if not sources:
        raise InputError(f"{card.name} is shipped with fimserver: nothing to download")
    return sources
