"""Knows how exported weights become the nano model of the package: copied, hashed into the card. Knows nothing of training.

Usage: ``python -m models.training.ship FOLDER``. Ship only what evaluates clearly better than what is there.
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


def ship(source: Path, nano: Path, card: Path) -> None:
    """Copy the weights from ``source`` (the tokenizer too, where it has one) and pin all hashes in ``card``."""
    for name in SHIPPED:
        if (source / name).is_file() and source.resolve() != nano.resolve():
            shutil.copyfile(source / name, nano / name)
    text = card.read_text("utf-8").split(MARK)[0].rstrip("\n") + "\n"
    pins = "".join(f'"{name}" = "{sha256(nano / name)}"\n' for name in SHIPPED)
    card.write_text(text + MARK + pins, "utf-8")
    read_card(card)


def sources_table(sources: Path) -> str:
    """Markdown of what was learned from and what was kept for validation."""
    rows = sorted(json.loads(sources.read_text("utf-8")), key=lambda s: (s["split"], s["name"]))
    lines = ["# Sources of nano", "", "| package | version | licence | used for |", "|---|---|---|---|"]
    lines += [f"| {s['name']} | {s['version']} | {s['licence']} | {s['split']} |" for s in rows]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Ship one folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sources", type=Path, default=CACHE / "sources.json")
    args = parser.parse_args()
    ship(args.folder, MODELS / "nano", MODELS / "cards" / "nano.toml")
    (MODELS / "nano" / "SOURCES.md").write_text(sources_table(args.sources), "utf-8")


if __name__ == "__main__":
    main()
