"""The file of a canvas adapter from a checkpoint of its training.

Usage: ``python -m models.training.canvas_export FOLDER/state.safetensors models/adapters/NAME.safetensors``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from safetensors import safe_open

from fimserver.engine.forward.adapter import CanvasAdapter, save_adapter
from fimserver.hashing import sha256
from models.training.canvas_trainer import Recipe


def export(state: Path, out: Path, weights: str = "average") -> CanvasAdapter:
    """Write the ``average`` of the last steps, or the last step's ``adapter``; the scale goes into ``up``."""
    with safe_open(state, "pt") as file:
        about = file.metadata()
        names = [name for name in file.keys() if name.startswith(f"{weights}.")]  # noqa: SIM118
        tensors = {name: file.get_tensor(name) for name in names}
    recipe = Recipe(**json.loads(about["recipe"]))
    sizes = recipe.sizes()
    downs = {name.split(".")[-1]: t for name, t in tensors.items() if ".down." in name}
    branches = {
        key.replace("_", ".", 1): (down, tensors[f"{weights}.up.{key}"] * recipe.scale)
        for key, down in downs.items()
    }
    sampler = tuple(tensors.get(f"{weights}.sampler.{name}") for name in ("inward", "outward"))
    adapter = CanvasAdapter(
        about["base"],
        sizes,
        (1 / max(sizes), 1.0),
        tensors[f"{weights}.mask"],
        branches,
        None if sampler[0] is None or sampler[1] is None else (sampler[0], sampler[1]),
    )
    save_adapter(adapter, out)
    return adapter


def main() -> None:
    """Write the file and print its hash, for the card."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("state", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--weights", choices=["average", "adapter"], default="average")
    args = parser.parse_args()
    export(args.state, args.out, args.weights)
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB, SHA-256 {sha256(args.out)}")


if __name__ == "__main__":
    main()
