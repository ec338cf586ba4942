"""Catalogue of models: installed, found in other programs, and available, with facts for this machine."""

from __future__ import annotations

import json
import re
import shutil
import struct
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import platformdirs

from fimserver.cards import Card, gguf_files, is_present, model_folder, read_cards
from fimserver.defaults import choose, cpu_gib
from fimserver.keystrokes import measured_ms
from fimserver.machine import Machine, this_machine
from fimserver.settings import Settings
from fimserver.store.discovery import Found, discover, may_match
from fimserver.types import ROUTES

GPU_SPARE = 1.2  # GPU memory needed, relative to the weights
CACHES = ("int8",)  # folders in the user's cache folder that are made again when needed
DTYPES = {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}
UNKNOWN_WEIGHTS = "16-bit"  # assumed for safetensors that are not installed, also for their size
QUANTISATION = re.compile(r"[-.](i?q\d\w*|bf16|f16|f32)(-\d{5}-of-\d{5})?\.gguf$", re.IGNORECASE)
State = Literal["here", "elsewhere", "found", "unknown", "absent"]


@dataclass(frozen=True)
class CatalogueEntry:
    """One model.

    ``state``: here; elsewhere: here by a link; found: in another program; unknown: found, but without a card;
    absent.
    """

    name: str
    state: State
    routes: tuple[str, ...]
    default_of: tuple[str, ...]
    size_bytes: int  # on disk, or to download
    parameters_m: float
    weights: str  # quantisation or number format
    licence: str
    osi: bool
    where: str  # path or URL
    fits: bool | None  # ``None``: unknown
    keystroke_ms: float | None  # measured on this machine

    def as_json(self) -> Mapping[str, object]:
        """Return plain values."""
        return asdict(self)


def entries(
    settings: Settings, machine: Machine | None = None, found: list[Found] | None = None
) -> list[CatalogueEntry]:
    """Return all models: installed ones, then those of other programs, then available ones, by name."""
    machine = machine or this_machine()
    found = discover() if found is None else found
    defaults: dict[str, str] = {
        route: settings.card(route) or choose(route, machine, settings).card.name for route in ROUTES
    }
    speeds = measured_ms("cuda" if machine.gpu_gib else "cpu")
    rows = [_entry(card, settings, machine, found, defaults, speeds) for card in read_cards().values()]
    rows += [
        _unknown(item)
        for item in found
        if _is_coder(item) and not any(may_match(c, item) for c in read_cards().values())
    ]
    order = ("here", "elsewhere", "found", "unknown", "absent")
    return sorted(rows, key=lambda entry: (order.index(entry.state), entry.name))


def caches() -> Mapping[Path, int]:
    """Return the cache folders with their sizes in bytes."""
    folders = [platformdirs.user_cache_path("fimserver") / name for name in CACHES]
    return {folder: _folder_bytes(folder) for folder in folders if folder.is_dir()}


def clear_caches() -> int:
    """Remove the cache folders and return the number of freed bytes."""
    sizes = caches()
    for folder in sizes:
        shutil.rmtree(folder, ignore_errors=True)
    return sum(sizes.values())


def _entry(
    card: Card,
    settings: Settings,
    machine: Machine,
    found: list[Found],
    defaults: Mapping[str, str],
    speeds: Mapping[str, float],
) -> CatalogueEntry:
    folder = model_folder(card, settings.models_dir)
    other = next((item for item in found if may_match(card, item)), None)
    state: State = "absent"
    if is_present(card, settings.models_dir):
        state = "elsewhere" if _is_link(folder) else "here"
    elif other:
        state = "found"
    at = folder if state in {"here", "elsewhere"} else other.path if other else None
    return CatalogueEntry(
        name=card.name,
        state=state,
        routes=card.routes,
        default_of=tuple(route for route, name in defaults.items() if name == card.name),
        size_bytes=_bytes_at(at) if at else card.download_bytes or int(card.parameters_m * 2e6),
        parameters_m=card.parameters_m,
        weights=_named_weights(card) or (_weights(at) if at else UNKNOWN_WEIGHTS),
        licence=card.licence,
        osi=card.osi,
        where=_where(card, state, at, other),
        fits=fits(card, machine),
        keystroke_ms=speeds.get(card.name),
    )


def fits(card: Card, machine: Machine) -> bool:
    """Whether a model fits into GPU memory, or into RAM on a machine without a GPU."""
    if machine.gpu_gib > 0:
        return card.weights_gib * GPU_SPARE <= machine.gpu_gib
    return card.parameters_m < 100 or cpu_gib(card) <= machine.ram_gib


def _unknown(item: Found) -> CatalogueEntry:
    where = f"{item.path} ({item.owner}: {item.name})"
    weights = _quantisation(item.path.name) if item.path.is_file() else _weights(item.path)
    return CatalogueEntry(
        item.name, "unknown", (), (), item.size_bytes, 0.0, weights, "", False, where, None, None
    )


def _where(card: Card, state: State, at: Path | None, other: Found | None) -> str:
    if state == "elsewhere" and at is not None:
        return str(at.resolve() if at.is_symlink() else next(path.resolve() for path in _weight_files(at)))
    if state == "found" and other:
        return f"{other.path} ({other.owner})"
    return str(at) if at else f"https://huggingface.co/{card.hub}"


def _is_coder(item: Found) -> bool:
    """Whether its name looks like one of the model families in the cards."""
    families = {re.split(r"-\d", card.name)[0] for card in read_cards().values() if card.fim} - {
        "nano",
        "nano-draft",
    }
    name = re.sub(r"[^a-z0-9.]+", "-", item.name.lower())
    return any(family in name for family in families)


def _is_link(folder: Path) -> bool:
    return folder.is_symlink() or any(path.is_symlink() for path in _weight_files(folder))


def _weight_files(folder: Path) -> Iterator[Path]:
    if folder.is_file():
        yield folder
    else:
        yield from sorted(path for path in folder.iterdir() if path.suffix in {".gguf", ".safetensors"})


def _bytes_at(place: Path) -> int:
    return place.stat().st_size if place.is_file() else _folder_bytes(place)


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _weights(place: Path) -> str:
    path = next(_weight_files(place), None)
    if path is None:
        return ""
    is_gguf = path.suffix == ".gguf" or place.is_file()  # Ollama's blobs have no suffix
    return _quantisation(path.name) if is_gguf else _dtype(path)


def _named_weights(card: Card) -> str:
    """Quantisation of the GGUF file that a card pins, whatever the file is called here."""
    return next(map(_quantisation, gguf_files(card)), "")


def _quantisation(name: str) -> str:
    """Read the quantisation from the name of a GGUF file: Q4_K_M, F16."""
    found = QUANTISATION.search(name)
    return found[1].upper() if found else "GGUF"


def _dtype(path: Path) -> str:
    """Number format of the first tensor in a safetensors file."""
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    except (OSError, ValueError, struct.error):
        return UNKNOWN_WEIGHTS
    dtype = next((value["dtype"] for key, value in header.items() if key != "__metadata__"), "")
    return DTYPES.get(dtype, str(dtype))
