"""Training step of a drafter on a frozen target, and the state that a run keeps."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from fimserver.engine.drafters.nets import BlockNetwork, Heads
from models.training import losses
from models.training.acceptance import Tally, tally
from models.training.anchors import Batch
from models.training.ask import outputs, taught
from models.training.target import Frozen, Seen


@dataclass(frozen=True)
class Recipe:
    """What a run does. Losses: ``losses.py``."""

    loss: str = "ce"
    seed: int = 1
    rows: int = 8
    anchors: int = 24  # of a row
    gamma: float = 6.0
    fill_share: float = 0.3
    text_share: float = 0.5
    lr: float = 1e-3
    weight_decay: float = 0.01
    warmup_steps: int = 50
    clip: float = 1.0


@dataclass(frozen=True)
class Progress:
    """Where a run stands."""

    step: int = 0
    anchors: int = 0
    minutes: float = 0.0


class Trainer:
    """The drafter, its optimiser, and one step of training."""

    def __init__(
        self, net: Heads | BlockNetwork, target: Frozen, recipe: Recipe, *, bf16: bool = True
    ) -> None:
        self.net, self.target, self.recipe, self.bf16 = net.train().requires_grad_(True), target, recipe, bf16
        matrices = [p for p in net.parameters() if p.ndim > 1]
        vectors = [p for p in net.parameters() if p.ndim == 1]
        groups = [
            {"params": matrices, "weight_decay": recipe.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        self.optimiser = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.95))

    def loss(self, batch: Batch) -> torch.Tensor:
        """The recipe's loss over all windows of a batch."""
        with torch.autocast(self.target.device.type, torch.bfloat16, enabled=self.bf16):
            seen = self.target.see(batch.ids)
            batch = taught(self.net, seen, batch)
            out = outputs(self.net, self.target, seen, batch)
            logits = self.target.head(out[batch.learn], self.net.words)  # (n, V)
        learn = batch.learn.flatten(0, 1)
        if self.recipe.loss in {"tv", "kl"}:
            theirs = self._theirs(seen, batch)
            values = (
                losses.total_variation(logits.float().softmax(-1), theirs)
                if self.recipe.loss == "tv"
                else losses.divergence(logits.float(), theirs)
            )
            return losses.decayed(_spread(values, learn), learn, self.recipe.gamma)
        chosen = logits.float().log_softmax(-1).gather(1, batch.targets[batch.learn][:, None])[:, 0]
        logq = _spread(chosen, learn)
        if self.recipe.loss == "ce":
            return losses.cross_entropy(logq, learn, self.recipe.gamma)
        return (losses.streak if self.recipe.loss == "streak" else losses.streak_of_ce)(logq, learn)

    @torch.no_grad()
    def _theirs(self, seen: Seen, batch: Batch) -> torch.Tensor:
        """What the target itself gives every token that is learned, (n, V)."""
        before = batch.at[..., None] + torch.arange(batch.targets.shape[2], device=batch.at.device)
        row = torch.arange(len(batch.ids), device=batch.at.device)[:, None, None].expand_as(before)
        with torch.autocast(self.target.device.type, torch.bfloat16, enabled=self.bf16):
            hidden = seen.hidden[row[batch.learn], before[batch.learn]]
            return self.target.head(hidden, self.net.words).float().softmax(-1)

    def step(self, batch: Batch, lr_scale: float) -> float:
        """One update; returns the loss. Raises ``FloatingPointError`` when it is not finite."""
        loss = self.loss(batch.to(self.target.device))
        torch.autograd.backward(loss)
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"loss is {loss.item()}: lower the learning rate and start again")
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), self.recipe.clip)
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.lr * lr_scale
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return loss.item()

    def validate(self, parts: Mapping[str, Sequence[Batch]]) -> dict[str, Any]:
        """What is accepted of windows that are held out: mean length, expected streak, and by position."""
        values: dict[str, Any] = {}
        for name, some in parts.items():
            with torch.autocast(self.target.device.type, torch.bfloat16, enabled=self.bf16):
                result = Tally.of(
                    [tally(self.net, self.target, batch.to(self.target.device)) for batch in some]
                )
            values |= {f"{name}_accepted": result.mean_accepted(), f"{name}_streak": result.mean_streak()}
            values[f"{name}_at"] = result.by_position()
        return values

    def save(self, path: Path, progress: Progress, run: str) -> None:
        """Write weights, optimiser state, progress and what the ``run`` is.

        Atomic, so that a kill leaves the former one.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {f"net.{name}": tensor for name, tensor in self.net.state_dict().items()}
        for i, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{i}.{name}": torch.as_tensor(value) for name, value in state.items()}
        part = path.with_suffix(".part")
        metadata = {"progress": json.dumps(asdict(progress)), "run": run}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part, metadata)
        part.replace(path)

    def load(self, path: Path, run: str) -> Progress | None:
        """The inverse of ``save``; ``None``, and nothing done, where the file is of another run."""
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        if metadata["run"] != run:
            return None
        self.net.load_state_dict({key[4:]: value for key, value in tensors.items() if key.startswith("net.")})
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimiser."):
                i, name = key.split(".")[1:]
                state.setdefault(int(i), {})[name] = value
        self.optimiser.load_state_dict(self.optimiser.state_dict() | {"state": state})
        return Progress(**json.loads(metadata["progress"]))


def _spread(values: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """Values (n,) back to their places in (N, W); 0 elsewhere."""
    return values.new_zeros(where.shape).masked_scatter(where, values)
