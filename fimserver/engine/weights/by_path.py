"""Makes cards for models named by a path: a GGUF file, or the folder of a checkpoint."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from fimserver.cards import Card, Fim, get_card, is_place, read_card, read_cards
from fimserver.errors import CardError, LoadError
from fimserver.hashing import sha256
from fimserver.kept_json import change_kept, read_kept

LONGEST_PROMPT = 8192
LONGEST_MIDDLE = 256  # tokens
POSITIONS = 2048  # if the file does not say
KEPT = platformdirs.user_cache_path("fimserver") / "cards.json"


@dataclass(frozen=True)
class CoderFamily:
    """A family of coders with the FIM markers of ``card``. ``name``: matches the names of its models."""

    card: str
    architecture: str
    name: re.Pattern[str]


FAMILIES = (
    CoderFamily("qwen2.5-coder-0.5b", "qwen2", re.compile(r"qwen[-_ .]?2\.5[-_ .]?coder", re.IGNORECASE)),
    CoderFamily("deepseek-coder-1.3b", "llama", re.compile(r"deepseek[-_ .]?coder", re.IGNORECASE)),
    CoderFamily("seed-coder-8b", "llama", re.compile(r"seed[-_ .]?coder", re.IGNORECASE)),
)


def find_card(name: str) -> Card:
    """Return the card of a name, or of the model at a path. Raises ``CardError`` or ``LoadError``."""
    if not is_place(name):
        return get_card(name)
    path = Path(name).expanduser().absolute()
    if path.suffix == ".toml":
        return read_card(path)
    if path.is_dir():
        return card_of_folder(path)
    if not path.is_file():
        raise CardError(
            f"{path} does not exist: name a card (`fimserver models` lists them), a GGUF file or a folder"
        )
    return card_of_gguf(path)


def card_of_folder(folder: Path) -> Card:
    """Return the card of a folder with ``config.json`` and safetensors, or with one GGUF model.

    Raises ``CardError`` or ``LoadError``.
    """
    if not any(folder.glob("*.safetensors")):
        files = sorted(p for p in folder.glob("*.gguf") if "-of-" not in p.name or "-00001-of-" in p.name)
        if len(files) != 1:
            raise CardError(
                f"{folder} holds {len(files) or 'no'} GGUF models and no safetensors: name one GGUF file"
            )
        return card_of_gguf(files[0])
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        kind = config["model_type"]
        positions = int(config.get("max_position_embeddings", POSITIONS))
    except (OSError, ValueError, KeyError, TypeError):
        raise CardError(
            f"{folder}: config.json is missing or cannot be read: download the model again"
        ) from None
    if (card := read_cards().get(folder.name.lower())) is not None and card.architecture == kind:
        return card.model_copy(update={"folder": str(folder)})
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return _card(
        folder,
        [],
        folder.name,
        kind,
        parameters_m=size / 2e6,
        licence="unknown",
        tokens=None,
        positions=positions,
    )


def card_of_gguf(path: Path) -> Card:
    """Return the card that pins a GGUF file by its hash, or one made by its family.

    The result is stored by the file's size and time. Raises ``LoadError``.
    """
    stat = path.stat()
    key = f"{path}|{stat.st_size}|{stat.st_mtime_ns}"
    kept = read_kept(KEPT)
    if key in kept:
        with contextlib.suppress(ValueError):  # stored by another version of fimserver
            return Card.model_validate_json(json.dumps(kept[key]))
    card = _find_gguf(path)
    change_kept(KEPT, key, lambda _: card.model_dump(mode="json"))
    return card


def _find_gguf(path: Path) -> Card:
    from fimserver.engine.weights.gguf import read_gguf  # noqa: PLC0415 - slow to import

    digest = sha256(path)
    pinned = next((card for card in read_cards().values() if card.files.get(path.name) == digest), None)
    if pinned is not None:
        return pinned.model_copy(update={"folder": str(path.parent)})
    file = read_gguf(path)
    name = " ".join(str(file.metadata.get(f"general.{key}", "")) for key in ("name", "basename"))
    return _card(
        path.parent,
        file.paths,
        f"{path.stem} {name}",
        file.architecture,
        parameters_m=file.parameters / 1e6,
        licence=str(file.metadata.get("general.license", "unknown")),
        tokens=frozenset(file.metadata.get("tokenizer.ggml.tokens") or ()),
        positions=int(file.metadata.get(f"{file.architecture}.context_length", POSITIONS)),
    )


def _card(
    folder: Path,
    files: Sequence[Path],
    name: str,
    architecture: str,
    *,
    parameters_m: float,
    licence: str,
    tokens: frozenset[str] | None,
    positions: int,
) -> Card:
    """Make a card with the FIM markers of the family that the name belongs to.

    Raises ``LoadError`` if it belongs to none.
    """
    where = files[0] if files else folder
    fim = _markers(where, name, architecture, tokens)
    stem = (
        re.sub(r"[^a-z0-9.-]+", "-", (files[0].stem if files else folder.name).lower()).strip("-.") or "model"
    )
    return Card(
        name=stem,
        licence=licence,
        osi=False,
        parameters_m=max(parameters_m, 0.001),
        architecture=architecture,
        prompt_tokens=max(64, min(LONGEST_PROMPT, positions - LONGEST_MIDDLE)),
        max_new_tokens=LONGEST_MIDDLE,
        fim=fim,
        files={path.name: sha256(path) for path in files},
        folder=str(folder),
    )


def _markers(where: Path, name: str, architecture: str, tokens: frozenset[str] | None) -> Fim:
    for family in FAMILIES:
        fim = get_card(family.card).fim
        if fim is None or family.architecture != architecture or not family.name.search(name):
            continue
        missing = None if tokens is None else next((t for t in fim.tokens if t not in tokens), None)
        if missing is None:
            return fim
        raise LoadError(
            f"{where} lacks the FIM token {missing!r}, so it cannot fill in the middle: get another file"
        )
    raise LoadError(
        f"{where} belongs to no known family of coders with fill-in-the-middle (is it a chat model?):"
        " `fimserver models` lists coders"
    )
