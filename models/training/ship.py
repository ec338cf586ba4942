"""Knows how exported weights become the nano model of the package: copied, hashed into the card. Knows nothing of training.

Usage: ``python -m models.training.ship FOLDER``. Ship only what evaluates clearly better than what is there.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from fimserver.cards import MODELS, read_card
from fimserver.engine.load import sha256

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


def main() -> None:
    """Ship one folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    ship(args.folder, MODELS / "nano", MODELS / "cards" / "nano.toml")


if __name__ == "__main__":
    main()
