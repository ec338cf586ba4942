"""Discovery of models of other programs on this disk: Hugging Face's cache, Ollama, LM Studio, llama.cpp."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fimserver.cards import Card, gguf_files
from fimserver.hashing import sha256

MODEL_LAYER = "application/vnd.ollama.image.model"
SHARD = re.compile(r"-(\d{5})-of-\d{5}$")


@dataclass(frozen=True)
class Found:
    """A model of another program: a GGUF file, or a folder with ``config.json`` and safetensors."""

    owner: str  # the program
    name: str  # as the program calls it
    path: Path
    size_bytes: int
    sha256: str = ""  # if the program stores it in a name; never computed


Environment = Mapping[str, str]
Store = Callable[[Path, Environment], Iterator[Found]]


def discover(home: Path | None = None, environment: Environment = os.environ) -> list[Found]:
    """Return all models in the known stores. Skips stores that cannot be read."""
    home = home or Path.home()
    found: list[Found] = []
    for store in STORES.values():
        try:
            found += store(home, environment)
        except OSError:
            continue
    return found


def match(card: Card, found: list[Found]) -> Found | None:
    """Return the first model that has the files of a card. Hashes a GGUF file to be sure."""
    return next((item for item in found if _is(card, item)), None)


def may_match(card: Card, item: Found) -> bool:
    """Whether a model probably has the files of a card, without hashing them."""
    if names := gguf_files(card):
        same_name = (
            item.path.name.lower().endswith(names[0].lower()) and item.size_bytes == card.download_bytes
        )
        return item.sha256 == card.files[names[0]] if item.sha256 else same_name
    return item.path.is_dir() and item.name == card.hub and card.revision in {"", item.path.name}


def _is(card: Card, item: Found) -> bool:
    if not may_match(card, item):
        return False
    names = gguf_files(card)
    return not names or sha256(item.path) == card.files[names[0]]


def hugging_face(home: Path, environment: Environment) -> Iterator[Found]:
    """Hugging Face's cache: ``models--OWNER--NAME/snapshots/REVISION``; blobs are named by SHA-256."""
    cache = Path(environment.get("XDG_CACHE_HOME") or home / ".cache")
    root = Path(environment.get("HF_HOME") or cache / "huggingface")
    hub = Path(environment.get("HF_HUB_CACHE") or root / "hub")
    for snapshot in sorted(hub.glob("models--*/snapshots/*")):
        name = snapshot.parts[-3].removeprefix("models--").replace("--", "/")
        if (snapshot / "config.json").is_file() and any(snapshot.glob("*.safetensors")):
            size = sum(path.stat().st_size for path in snapshot.glob("*.safetensors"))
            yield Found("Hugging Face", name, snapshot, size)
        for path in _gguf(snapshot):
            blob = path.resolve().name
            yield _file(
                "Hugging Face",
                f"{name}/{path.name}",
                path,
                blob if re.fullmatch(r"[0-9a-f]{64}", blob) else "",
            )


def ollama(home: Path, environment: Environment) -> Iterator[Found]:
    """Ollama's store: a manifest lists blobs, which are named by their SHA-256."""
    roots = [Path(environment["OLLAMA_MODELS"])] if environment.get("OLLAMA_MODELS") else [
        home / ".ollama" / "models", Path("/usr/share/ollama/.ollama/models"), Path("/var/lib/ollama/models"),
    ]  # fmt: skip
    for root in roots:
        for manifest in sorted(path for path in root.glob("manifests/**/*") if path.is_file()):
            yield from _of_manifest(root, manifest)


def lm_studio(home: Path, _environment: Environment) -> Iterator[Found]:
    """LM Studio: ``models/PUBLISHER/REPOSITORY/FILE.gguf``, in the current or the older folder."""
    for root in (home / ".lmstudio" / "models", home / ".cache" / "lm-studio" / "models"):
        for path in _gguf(root, "*/*/"):
            yield _file("LM Studio", path.relative_to(root).as_posix(), path)


def llama_cpp(home: Path, environment: Environment) -> Iterator[Found]:
    """llama.cpp's cache: files named after owner and repository."""
    cache = (
        home / "Library" / "Caches"
        if sys.platform == "darwin"
        else Path(environment.get("XDG_CACHE_HOME") or home / ".cache")
    )
    root = Path(environment.get("LLAMA_CACHE") or cache / "llama.cpp")
    for path in _gguf(root):
        yield _file("llama.cpp", path.name, path)


STORES: Mapping[str, Store] = {
    "Hugging Face": hugging_face,
    "Ollama": ollama,
    "LM Studio": lm_studio,
    "llama.cpp": llama_cpp,
}


def _of_manifest(root: Path, manifest: Path) -> Iterator[Found]:
    try:
        layers = json.loads(manifest.read_text("utf-8"))["layers"]
        digests = [layer["digest"] for layer in layers if layer["mediaType"] == MODEL_LAYER]
    except (ValueError, KeyError, TypeError, OSError):
        return
    for digest in map(str, digests):
        path = root / "blobs" / digest.replace(":", "-")
        if re.fullmatch(r"sha256:[0-9a-f]{64}", digest) and path.is_file():
            yield _file(
                "Ollama", f"{manifest.parent.name}:{manifest.name}", path, digest.removeprefix("sha256:")
            )


def _gguf(folder: Path, below: str = "") -> list[Path]:
    """GGUF files in a folder; of a sharded file only the first shard."""
    paths = [path for path in sorted(folder.glob(f"{below}*.gguf")) if path.is_file()]
    shards = {path: SHARD.search(path.stem) for path in paths}
    return [path for path, shard in shards.items() if shard is None or shard[1] == "00001"]


def _file(owner: str, name: str, path: Path, digest: str = "") -> Found:
    return Found(owner, name, path, path.stat().st_size, digest)
