"""Length probe: predicts the number of tokens of a middle from one pass over a canvas of masks.

A linear map of the hidden states gives the length, where the calibrated search (``canvas_length.py``) needs a
pass for each length that it tries. The idea is that of PILL ("Predict, Don't Iterate", 2026); what is read of
the hidden states, and how the map is fitted (``models/training/length_probe.py``), are our own choice.
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
PARTS = 3  # vectors that ``features`` reads of the hidden states


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
        """Tokens of a middle, 1 to ``limit``, by ``features`` (3 d,). Raises ``NonFiniteError``."""
        exponent = float(found @ self.weight.to(found.device)) + self.bias
        if not math.isfinite(exponent):
            raise NonFiniteError("the length probe read NaN or infinity in the model's hidden states")
        return round(math.exp(min(max(exponent, 0.0), math.log(limit))))


def features(hidden: torch.Tensor) -> torch.Tensor:
    """The first, the last and the mean of hidden states (n, d), one after another (3 d,), in fp32."""
    states = hidden.float()
    return torch.cat([states[0], states[-1], states.mean(0)])


def masked_states(
    canvas: CanvasForward, network: Network, slots: int, mask: int
) -> Generator[Pass, None, torch.Tensor]:
    """The pass over ``slots`` masks; returns what the head of ``network`` saw in it (n, d)."""
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
    """The pass of the probe; returns the length, ``at_least`` so many tokens and up to ``limit``.

    Returns the shortest where time was up before the pass. Raises ``NonFiniteError``.
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

    Raises ``LoadError`` where it is missing, damaged, of another kind, or for another model.
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
            f"length probe {path.name} was fitted to weights {probe.target[:12]}…, these are"
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
