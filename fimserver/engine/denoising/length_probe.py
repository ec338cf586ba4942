"""Length probe: predicts the number of tokens of a middle from one pass over a canvas of masks.

A linear map of the hidden states gives the length, while the calibrated search (``canvas_length.py``) needs a
pass for each length that it tries. The idea is that of PILL ("Predict, Don't Iterate", 2026); the features of
the hidden states and the fit (``models/training/length_probe.py``) are our own choice.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from fimserver.engine.denoising.canvas import CanvasForward, predicting
from fimserver.engine.forward.network import Network
from fimserver.engine.forward.passes import Pass, until_spent
from fimserver.engine.small_file import read_small
from fimserver.errors import LoadError, NonFiniteError
from fimserver.types import Deadline

KIND = "length probe"
PARTS = 3  # vectors that ``features`` takes from the hidden states


@dataclass(frozen=True)
class LengthProbe:
    """A linear map from the hidden states of ``slots`` masks to the logarithm of a length in tokens.

    ``target``: SHA-256 of the weights that it was fitted to. ``weight`` (3 d,), for ``features``.
    """

    target: str
    slots: int
    weight: torch.Tensor
    bias: float

    def length(self, found: torch.Tensor, limit: int) -> int:
        """Predict a length, 1 to ``limit`` tokens, from ``features`` (3 d,). Raises ``NonFiniteError``."""
        exponent = float(found @ self.weight.to(found.device)) + self.bias
        if not math.isfinite(exponent):
            raise NonFiniteError(
                "the model's hidden states are NaN or infinity: its weights are damaged, download it again"
            )
        return round(math.exp(min(max(exponent, 0.0), math.log(limit))))


def features(hidden: torch.Tensor) -> torch.Tensor:
    """Concatenate the first, the last and the mean of hidden states (n, d) to (3 d,), in fp32."""
    states = hidden.float()
    return torch.cat([states[0], states[-1], states.mean(0)])


def masked_states(
    canvas: CanvasForward, network: Network, slots: int, mask: int
) -> Generator[Pass, None, torch.Tensor]:
    """Run ``slots`` masks; return the hidden states (n, d) before the head of ``network``."""
    yield from predicting(canvas, [mask] * slots)
    return network.hidden[0]


def predict_length(
    canvas: CanvasForward,
    network: Network,
    probe: LengthProbe,
    mask: int,
    limit: int,
    deadline: Deadline,
    at_least: int = 0,
) -> Generator[Pass, None, int]:
    """Run the probe; return the length, from ``at_least`` to ``limit`` tokens.

    Returns the shortest if the deadline passed before the pass. Raises ``NonFiniteError``.
    """
    shortest = max(1, min(at_least, limit))
    if deadline.spent():
        return shortest
    hidden = yield from until_spent(masked_states(canvas, network, probe.slots, mask), deadline)
    return shortest if hidden is None else max(shortest, probe.length(features(hidden), limit))


def save_probe(probe: LengthProbe, path: Path) -> None:
    """Write a probe in fp32."""
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"kind": KIND, "target": probe.target, "slots": str(probe.slots)}
    save_file({"weight": probe.weight.float(), "bias": torch.tensor(probe.bias)}, path, about)


def load_probe(path: Path, target: str, width: int) -> LengthProbe:
    """Read the file of a probe for the weights ``target``, whose hidden states have ``width`` components.

    Raises ``LoadError`` if it is missing, damaged, of another kind, or for another model.
    """
    again = "fit it again with `python -m models.training.length_probe`"
    try:
        about, tensors = read_small(path)
        weight, bias = tensors["weight"], float(tensors["bias"])
        probe = LengthProbe(about["target"], int(about["slots"]), weight, bias)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        why = type(error).__name__
        raise LoadError(f"length probe {path} cannot be read ({why}): get it, or {again}") from None
    if about.get("kind") != KIND:
        raise LoadError(f"{path.name} holds {about.get('kind')!r}, not {KIND!r}")
    if probe.target != target:
        raise LoadError(
            f"length probe {path.name} was fitted to weights {probe.target[:12]}…, the model has"
            f" {target[:12]}…: {again}"
        )
    if weight.shape != (PARTS * width,) or probe.slots < 1:
        raise LoadError(
            f"length probe {path.name} has weights of shape {tuple(weight.shape)} for {probe.slots} masks,"
            f" the model needs {PARTS * width}: {again}"
        )
    if not (bool(torch.isfinite(weight).all()) and math.isfinite(bias)):
        raise LoadError(f"length probe {path.name} holds NaN or infinity: {again}")
    return probe
