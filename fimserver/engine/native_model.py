"""A network of transformers with the weights of a checkpoint, loaded strictly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from fimserver.cards import Card
from fimserver.engine.weights.checkpoint import Checkpoint
from fimserver.errors import LoadError

_HARMLESS = "rotary_emb.inv_freq"  # a buffer that old checkpoints stored; it is computed


def native_model(
    card: Card, folder: Path, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype
) -> Any:
    """Load a network in evaluation mode. Raises ``LoadError`` for any tensor that does not fit."""
    # Imported here, as loading int8 weights does not need it.
    from safetensors import SafetensorError  # noqa: PLC0415

    try:
        model, info = checkpoint.native(device, dtype)
    except (SafetensorError, OSError, RuntimeError, ValueError, KeyError) as error:
        raise LoadError(
            f"{card.name}: weights in {folder} cannot be read ({_line(error)}): {repair_hint(card)}"
        ) from None
    for problem in _problems(info):
        raise LoadError(f"{card.name}: {problem}: {repair_hint(card)}")
    return model.eval().requires_grad_(False)


def _problems(info: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each problem that a strict load would refuse."""
    for kind, text in (("missing_keys", "lacks tensor"), ("unexpected_keys", "has an unknown tensor"),
                       ("mismatched_keys", "has a tensor of another shape:")):  # fmt: skip
        for key in sorted(map(str, info.get(kind, ()))):
            if _HARMLESS not in key:
                yield f"the checkpoint {text} {key}"
    yield from map(str, info.get("error_msgs", ()))


def repair_hint(card: Card) -> str:
    """Return what the user can do about damaged files of a model."""
    return f"run `fimserver models get {card.name}`" if card.hub else "reinstall fimserver"


def _line(error: BaseException) -> str:
    return (
        f"{type(error).__name__}: {str(error).splitlines()[0][:160]}" if str(error) else type(error).__name__
    )
