"""Knows how a pinned revision of a model comes from the hub and is verified. The only module that uses the network."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.hf_api import ModelInfo, RepoSibling

from fimserver.cards import Card
from fimserver.errors import InputError, LoadError, ModelMissingError
from fimserver.hashing import git_blob_id, sha256

# Weights as safetensors only; nothing that could run code.
PATTERNS = ("*.safetensors", "*.json", "tokenizer.model", "merges.txt", "LICENSE*")


def get_model(card: Card, folder: Path) -> dict[str, str]:
    """Download into ``folder``, verify every file, write ``manifest.json``; returns SHA-256 by file.

    What is there already is kept, an interrupted download goes on. Raises ``ModelError`` or ``InputError``.
    """
    if card.hub is None:
        raise InputError(f"{card.name} is shipped with fimserver: nothing to download")
    part = folder.with_name(folder.name + ".part")
    try:
        info = HfApi().model_info(card.hub, revision=card.revision or None, files_metadata=True)
        snapshot_download(card.hub, revision=info.sha, local_dir=part, allow_patterns=list(PATTERNS))
    except Exception as error:  # noqa: BLE001 - the HTTP library behind the hub client differs by version
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ModelMissingError(f"{card.name}: {card.hub} could not be downloaded: {reason}; run the command again") from None
    files = verify(card, part, info)
    (part / "manifest.json").write_text(json.dumps({"hub": card.hub, "revision": info.sha, "files": files}, indent=1))
    shutil.rmtree(part / ".cache", ignore_errors=True)
    if folder.exists():
        shutil.rmtree(folder)
    part.replace(folder)
    return files


def verify(card: Card, folder: Path, info: ModelInfo) -> dict[str, str]:
    """Compare what came with the card and with what the hub announced. Raises ``LoadError`` that names the file."""
    announced = {sibling.rfilename: sibling for sibling in info.siblings or []}
    found: dict[str, str] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and ".cache" not in p.parts):
        name = path.relative_to(folder).as_posix()
        if name == "manifest.json":
            continue
        if name not in announced:  # left over from another revision
            path.unlink()
            continue
        found[name] = sha256(path)
        pinned = card.files.get(name)
        if (pinned and found[name] != pinned) or not _is_announced(path, found[name], announced[name]):
            path.unlink()
            raise LoadError(f"{card.name}: {name} is not the file that is pinned (its hash differs): run the command again")
    return _complete(card, found)


def _complete(card: Card, found: dict[str, str]) -> dict[str, str]:
    if missing := next((name for name in card.files if name not in found), None):
        raise LoadError(f"{card.name}: {missing} is missing from {card.hub}: the card needs a newer fimserver")
    if not any(name.endswith(".safetensors") for name in found):
        raise LoadError(f"{card.name}: {card.hub} has no safetensors weights, and others are never loaded")
    return found


def _is_announced(path: Path, digest: str, sibling: RepoSibling) -> bool:
    """Whether a file is what the hub said it would send: SHA-256 of large files, git's blob id of small ones."""
    if sibling.lfs:
        return digest == sibling.lfs.sha256
    return sibling.blob_id in {None, git_blob_id(path)}
