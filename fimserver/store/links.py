"""Links in the folder of models to models elsewhere on this disk, and removal of models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from fimserver.cards import Card, gguf_files, model_folder, read_cards
from fimserver.errors import InputError
from fimserver.hashing import sha256


def add(path: Path, models_dir: Path, name: str = "") -> Card:
    """Link a model at ``path`` under the name of its card, which is found by hash or given as ``name``.

    ``path`` is a GGUF file that a card pins, or a folder with ``config.json`` and safetensors. Raises
    ``InputError``.
    """
    path = path.expanduser().absolute()
    if path.is_file():
        card, digest = _card_of_file(path)
        _link_file(card, path, digest, models_dir)
    elif path.is_dir():
        card = _card_of_folder(path, name)
        _free(card, models_dir)
        (models_dir / card.name).symlink_to(path, target_is_directory=True)
    else:
        raise InputError(f"{path} does not exist")
    return card


def link(card: Card, path: Path, models_dir: Path) -> None:
    """Link a discovered model whose hash has been checked."""
    if path.is_dir():
        _free(card, models_dir)
        (models_dir / card.name).symlink_to(path, target_is_directory=True)
    else:
        _link_file(card, path, card.files[gguf_files(card)[0]], models_dir)


def remove(name: str, models_dir: Path) -> int:
    """Remove a downloaded or linked model and partial downloads; return the number of freed bytes.

    The target of a link stays. Raises ``InputError`` if there is nothing to remove.
    """
    folder = models_dir / name
    if name not in read_cards() or not name:
        raise InputError(f"no model named {name!r}: `fimserver models` lists them")
    if model_folder(read_cards()[name], models_dir) != folder:
        raise InputError(f"{name} is shipped with fimserver and cannot be removed")
    places = [
        place for place in (folder, folder.with_name(f"{name}.part")) if place.is_symlink() or place.exists()
    ]
    if not places:
        raise InputError(f"{name} is not in {models_dir}")
    freed = sum(own_bytes(place) for place in places)
    for place in places:
        _delete(place)
    (models_dir / f".{name}.lock").unlink(missing_ok=True)
    return freed


def own_bytes(folder: Path) -> int:
    """Size of the files in a folder that are not links; 0 for a link."""
    if folder.is_symlink():
        return 0
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _card_of_file(path: Path) -> tuple[Card, str]:
    with path.open("rb") as file:
        is_gguf = path.suffix == ".gguf" or file.read(4) == b"GGUF"
    if not is_gguf:
        raise InputError(f"{path} is not a GGUF file; for safetensors give the folder that they are in")
    digest = sha256(path)
    card = next((card for card in read_cards().values() if digest in card.files.values()), None)
    if card is None:
        raise InputError(
            f"{path} is none of the files that cards pin by hash; name it as it is: --ar-card {path}"
        )
    return card, digest


def _card_of_folder(path: Path, name: str) -> Card:
    try:
        config: Mapping[str, object] = json.loads((path / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        raise InputError(
            f"{path} has no config.json that can be read: give a folder with config.json and safetensors"
        ) from None
    if not any(path.glob("*.safetensors")):
        raise InputError(f"{path} has no *.safetensors: other weights are never loaded")
    cards = read_cards()
    hub = next(
        (
            part.removeprefix("models--").replace("--", "/")
            for part in path.parts
            if part.startswith("models--")
        ),
        "",
    )
    card = cards.get(name or path.name) or next(
        (card for card in cards.values() if hub and card.hub == hub), None
    )
    if card is None or (name and name not in cards):
        raise InputError(f"{path}: say which model it is with --as NAME; `fimserver models` lists the names")
    if config.get("model_type") != card.architecture:
        raise InputError(
            f"{path} is of the kind {config.get('model_type')!r}, and {card.name} is {card.architecture!r}"
        )
    return card


def _link_file(card: Card, path: Path, digest: str, models_dir: Path) -> None:
    _free(card, models_dir)
    folder = models_dir / card.name
    name = next(name for name, pinned in card.files.items() if pinned == digest)
    folder.mkdir()
    (folder / name).symlink_to(path)
    manifest = {"source": f"link to {path}", "files": {name: digest}}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1), "utf-8")


def _free(card: Card, models_dir: Path) -> None:
    """Remove what is in the place of a link. Raises ``InputError`` if that is a downloaded model."""
    folder = models_dir / card.name
    if model_folder(card, models_dir) != folder:
        raise InputError(f"{card.name} is shipped with fimserver")
    models_dir.mkdir(parents=True, exist_ok=True)
    if not folder.is_symlink() and folder.exists() and own_bytes(folder) > 1 << 20:
        raise InputError(
            f"{card.name} is in {folder} already; remove it first: fimserver models rm {card.name}"
        )
    _delete(folder)


def _delete(place: Path) -> None:
    if place.is_symlink():
        place.unlink()
    elif place.exists():
        shutil.rmtree(place)
