"""Fetches a model: links it if another program has it on this disk, else downloads it."""

from __future__ import annotations

from pathlib import Path

from fimserver.cards import Card, is_present, model_folder
from fimserver.store.discovery import discover, match
from fimserver.store.download import Watch, get_model
from fimserver.store.links import link
from fimserver.store.registry import sources_of


def fetch(card: Card, models_dir: Path, watch: Watch, url: str = "") -> Path:
    """Fetch a model and return its folder. With ``url`` only that source is used.

    Raises ``InputError`` and ``DownloadError``.
    """
    is_ours = model_folder(card, models_dir) == models_dir / card.name
    if not url and is_ours and not is_present(card, models_dir) and (found := match(card, discover())):
        link(card, found.path, models_dir)
        watch.say(f"{found.owner} has it on this disk ({found.path}): linked, nothing is downloaded")
        return models_dir / card.name
    return get_model(card, models_dir, lambda card, work: sources_of(card, work, url), watch)
