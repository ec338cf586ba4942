"""Export of weights into the package as the nano model: copied, and hashed into the card.

Usage: ``python -m models.training.ship FOLDER [--card nano]`` and ``… ship --drafter heads FILE``. Ship only
what evaluates clearly better than what is there.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from fimserver.cards import MODELS, read_card
from fimserver.hashing import sha256
from models.training.corpus import CACHE

SHIPPED = ("config.json", "model.safetensors", "tokenizer.json")
MARK = "\n[files] # written by models/training/ship.py\n"


def ship(source: Path, folder: Path, card: Path) -> None:
    """Copy weights (and a tokenizer, if present) from ``source`` and pin all hashes in ``card``."""
    folder.mkdir(exist_ok=True)
    for name in SHIPPED:
        if (source / name).is_file() and source.resolve() != folder.resolve():
            shutil.copyfile(source / name, folder / name)
    pin(folder, card)


def ship_drafter(source: Path, kind: str, folder: Path, card: Path) -> None:
    """Copy a drafter's file to where the card names it, and pin it."""
    path = folder / read_card(card).drafters[kind]
    path.parent.mkdir(exist_ok=True)
    shutil.copyfile(source, path)
    pin(folder, card)


def pin(folder: Path, card: Path) -> None:
    """Write the hashes of the weights and of the drafters that are there into ``card``."""
    files = [
        *SHIPPED,
        *sorted(name for name in read_card(card).drafters.values() if (folder / name).is_file()),
    ]
    text = card.read_text("utf-8").split(MARK)[0].rstrip("\n") + "\n"
    pins = "".join(f'"{name}" = "{sha256(folder / name)}"\n' for name in files)
    card.write_text(text + MARK + pins, "utf-8")
    read_card(card)


def sources_table(sources: Path, name: str) -> str:
    """Return a Markdown table of the packages for training and for validation."""
    rows = sorted(json.loads(sources.read_text("utf-8")), key=lambda s: (s["split"], s["name"]))
    lines = [f"# Sources of {name}", "", "| package | version | licence | used for |", "|---|---|---|---|"]
    lines += [f"| {s['name']} | {s['version']} | {s['licence']} | {s['split']} |" for s in rows]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Ship one folder, or one drafter."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path, help="a folder of weights, or a drafter's file")
    parser.add_argument("--card", default="nano")
    parser.add_argument("--drafter", choices=["heads", "diffusion"], help="what the file is")
    parser.add_argument("--sources", type=Path, default=CACHE / "sources.json")
    args = parser.parse_args()
    folder, card = MODELS / args.card, MODELS / "cards" / f"{args.card}.toml"
    if args.drafter:
        ship_drafter(args.path, args.drafter, folder, card)
        return
    ship(args.path, folder, card)
    (folder / "SOURCES.md").write_text(sources_table(args.sources, args.card), "utf-8")


if __name__ == "__main__":
    main()
