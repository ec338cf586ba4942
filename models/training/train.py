"""Training of the nano model: one network, next-token loss on the sequence, masked loss on the canvases.

Usage: ``make train`` or ``python -m models.training.train --minutes 100``. A run first
continues from the newest checkpoint at a constant learning rate, then anneals a copy to zero and exports it;
the checkpoint before annealing stays, so that a later run goes on from there (warmup-stable-decay, arXiv
2404.06395).
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.progress import Progress as Bar
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch.nn import functional as F
from transformers import Qwen3ForCausalLM

from models.training.corpus import CACHE, SEPARATOR
from models.training.rows import Batch, Layout, RowMaker, RowStream
from models.training.shape import Shape

PARTS = ("context", "middle", "canvas")
NANO = Path(__file__).parent.parent / "nano"


@dataclass(frozen=True)
class Recipe:
    """What a run does.

    The weights are those of the mean losses; ``canvas_weight`` 0 trains the ar route alone.
    """

    seed: int = 1
    rows: int = 16
    matrix_lr: float = 0.02  # Muon, hidden matrices
    vector_lr: float = 0.003  # AdamW, embeddings and norms
    weight_decay: float = 0.05
    warmup_steps: int = 100
    context_weight: float = 1.0
    middle_weight: float = 0.3
    canvas_weight: float = 0.3
    clip: float = 1.0


@dataclass(frozen=True)
class Progress:
    """Where a run stands."""

    step: int = 0
    tokens: int = 0


class Trainer:
    """The network, its two optimisers, and one step of training."""

    def __init__(self, shape: Shape, recipe: Recipe, device: str, *, eager: bool = False) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.device = device
        model: Any = Qwen3ForCausalLM(shape.config())
        self.model = model.to(device)
        matrices = [p for n, p in self.model.named_parameters() if p.ndim == 2 and "embed" not in n]
        vectors = [p for n, p in self.model.named_parameters() if p.ndim != 2 or "embed" in n]
        self.optimisers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=recipe.matrix_lr, weight_decay=recipe.weight_decay),
            torch.optim.AdamW(vectors, lr=recipe.vector_lr, betas=(0.9, 0.95), weight_decay=0.0),
        ]
        self.base_lrs = [recipe.matrix_lr, recipe.vector_lr]
        self.losses = self._losses if eager else torch.compile(self._losses)

    def _losses(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Cross entropy of every target, (B, T), zero where there is none, and where there is one."""
        hidden = self.model.model(
            input_ids=batch.ids, position_ids=batch.positions, attention_mask=batch.mask, use_cache=False
        ).last_hidden_state
        logits = self.model.lm_head(hidden).float()
        loss = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="none").view_as(
            batch.targets
        )
        return loss, batch.targets >= 0

    def means(self, batch: Batch) -> torch.Tensor:
        """Mean loss of each part of the rows, (3,): context, middle (both next-token), canvas."""
        moved = Batch(*(t.to(self.device) for t in batch))
        with torch.autocast(self.device, torch.bfloat16):
            loss, has_target = self.losses(moved)
        chosen = [has_target & (moved.part == part) for part in range(len(PARTS))]
        return torch.stack([(loss * c).sum() / c.sum() for c in chosen])

    def step(self, batch: Batch, lr_scale: float) -> list[float]:
        """One update; returns the mean losses. Raises ``FloatingPointError`` when they are not finite."""
        means = self.means(batch)
        weights = (self.recipe.context_weight, self.recipe.middle_weight, self.recipe.canvas_weight)
        loss = (means * means.new_tensor(weights)).sum()
        torch.autograd.backward(loss)
        if not math.isfinite(loss.item()):
            raise FloatingPointError(
                f"loss is {loss.item()}: lower the learning rate and resume from the checkpoint"
            )
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        for optimiser, lr in zip(self.optimisers, self.base_lrs, strict=True):
            optimiser.param_groups[0]["lr"] = lr * lr_scale
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        return means.tolist()

    @torch.no_grad()
    def validate(self, batches: list[Batch]) -> dict[str, float]:
        """Mean losses over fixed batches, in nats a token."""
        means = torch.stack([self.means(batch) for batch in batches]).mean(0)
        return {f"valid_{name}": value for name, value in zip(PARTS, means.tolist(), strict=True)}

    def save(self, path: Path, progress: Progress) -> None:
        """Write weights, optimiser state and progress; atomic, so that a kill leaves the former one."""
        path.mkdir(parents=True, exist_ok=True)
        tensors = {f"model.{n}": p.detach() for n, p in self.model.named_parameters()}
        for i, optimiser in enumerate(self.optimisers):
            for j, state in optimiser.state_dict()["state"].items():
                tensors |= {f"optimiser.{i}.{j}.{k}": torch.as_tensor(v) for k, v in state.items()}
        metadata = {"progress": json.dumps(asdict(progress))}
        part = path / "state.safetensors.part"
        save_file({k: v.contiguous() for k, v in tensors.items()}, part, metadata)
        part.replace(path / "state.safetensors")

    def load(self, path: Path) -> Progress:
        """Read what ``save`` wrote."""
        with safe_open(path / "state.safetensors", "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
            progress = json.loads(file.metadata()["progress"])
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(tensors[f"model.{name}"])
        for i, optimiser in enumerate(self.optimisers):
            state: dict[int, dict[str, Any]] = {}
            for key, value in tensors.items():
                if key.startswith(f"optimiser.{i}."):
                    j, name = key.split(".", 3)[2:]
                    state.setdefault(int(j), {})[name] = value
            optimiser.load_state_dict(optimiser.state_dict() | {"state": state})
        return Progress(**progress)

    def start_from(self, folder: Path) -> None:
        """Read exported weights; the optimisers start anew."""
        weights = load_file(folder / "model.safetensors")
        self.model.load_state_dict({k: v.float() for k, v in weights.items()}, strict=False)
        self.model.tie_weights()

    def export(self, folder: Path) -> None:
        """Write the model in transformers' format, in bf16."""
        copy: Any = Qwen3ForCausalLM(self.model.config)
        copy.load_state_dict(self.model.state_dict())
        copy.to(torch.bfloat16).save_pretrained(folder)


class Batches(Protocol):
    """Batches by step number, so that a resumed run sees what an unbroken one would have seen."""

    def batch(self, step: int, rows: int) -> Batch:
        """The batch of one step."""
        ...


class Run:
    """One run on a time budget: constant rate, checkpoints, then annealing and export."""

    def __init__(
        self, trainer: Trainer, train: Batches, valid: list[Batch], folder: Path, max_steps: int = 0
    ) -> None:
        self.trainer, self.train, self.valid, self.folder = trainer, train, valid, folder
        self.started = time.monotonic()
        self.progress = Progress()
        self.max_steps = max_steps
        self.bar = Bar(disable=not sys.stdout.isatty())
        self.task = self.bar.add_task("training", total=None)

    def minutes(self) -> float:
        return (time.monotonic() - self.started) / 60

    def constant(self, until_minutes: float, every_minutes: float = 5.0) -> None:
        """Train at the full rate, with a checkpoint and a validation every few minutes."""
        next_save = self.minutes() + every_minutes
        while self.minutes() < until_minutes and not 0 < self.max_steps <= self.progress.step:
            self.one_step(min(1.0, (self.progress.step + 1) / self.trainer.recipe.warmup_steps))
            if self.minutes() > next_save:
                next_save = self.minutes() + every_minutes
                self.checkpoint()
        self.checkpoint()

    def anneal(self, until_minutes: float) -> None:
        """Train on while the rate falls to zero in the remaining time, without checkpoints."""
        begun = self.minutes()
        while self.minutes() < until_minutes:
            self.one_step((until_minutes - self.minutes()) / (until_minutes - begun))

    def one_step(self, lr_scale: float) -> None:
        batch = self.train.batch(self.progress.step, self.trainer.recipe.rows)
        means = self.trainer.step(batch, lr_scale)
        tokens = self.progress.tokens + int((batch.targets >= 0).sum())
        self.progress = replace(self.progress, step=self.progress.step + 1, tokens=tokens)
        self.bar.update(self.task, completed=self.minutes(), description=f"step {self.progress.step}")
        if self.progress.step % 20 == 0:
            self.log(dict(zip(PARTS, means, strict=True)) | {"lr": lr_scale})

    def checkpoint(self) -> None:
        self.trainer.save(self.folder / "checkpoint", self.progress)
        self.log(self.trainer.validate(self.valid))

    def log(self, values: dict[str, float]) -> None:
        """One line for people, the same as JSON for plots."""
        entry = {
            **asdict(self.progress),
            "minutes": round(self.minutes(), 1),
            **{k: round(v, 4) for k, v in values.items()},
        }
        self.bar.console.print(
            " ".join(f"{k}={v}" for k, v in entry.items()), highlight=False, soft_wrap=True
        )
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")


def read_texts(corpus: Path, split: str) -> list[str]:
    """Documents of a split. Raises ``SystemExit`` when the corpus has not been built."""
    path = corpus / f"{split}.txt"
    if not path.exists():
        raise SystemExit(f"{path} is not there: run `python -m models.training.corpus` first")
    return path.read_text("utf-8").split(SEPARATOR)


def main() -> None:
    """Parse options, resume, train, export."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=100, help="whole budget of this run")
    parser.add_argument(
        "--anneal-share", type=float, default=0.2, help="last part of the budget, with a falling rate"
    )
    parser.add_argument(
        "--max-steps", type=int, default=0, help="end before the budget, to compare runs; 0: no limit"
    )
    parser.add_argument("--corpus", type=Path, default=CACHE)
    parser.add_argument("--tokenizer", type=Path, default=NANO / "tokenizer.json")
    parser.add_argument("--folder", type=Path, default=CACHE / "run", help="checkpoint and log")
    parser.add_argument("--export", type=Path, default=CACHE / "run" / "export")
    parser.add_argument(
        "--init", type=Path, help="exported weights to start from where there is no checkpoint"
    )
    parser.add_argument(
        "--eager", action="store_true", help="do not compile, as where there is no C++ compiler"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    for group in (Shape(), Recipe()):
        for name, default in asdict(group).items():
            parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    args = parser.parse_args()
    shape = Shape(**{name: getattr(args, name) for name in asdict(Shape())})
    recipe = Recipe(**{name: getattr(args, name) for name in asdict(Recipe())})
    args.folder.mkdir(parents=True, exist_ok=True)
    maker = RowMaker(Tokenizer.from_file(str(args.tokenizer)), Layout())
    valid_rows = RowStream(read_texts(args.corpus, "valid"), maker, seed=0)
    run = Run(
        Trainer(shape, recipe, args.device, eager=args.eager or not shutil.which("c++")),
        RowStream(read_texts(args.corpus, "train"), maker, recipe.seed),
        [valid_rows.batch(i, recipe.rows) for i in range(8)],
        args.folder,
        args.max_steps,
    )
    if (args.folder / "checkpoint" / "state.safetensors").exists():
        run.progress = run.trainer.load(args.folder / "checkpoint")
    elif args.init:
        run.trainer.start_from(args.init)
    run.bar.update(run.task, total=args.minutes)
    with run.bar:
        run.constant(args.minutes * (1 - args.anneal_share))
        if not args.max_steps:
            run.anneal(args.minutes)
    run.log(run.trainer.validate(run.valid))
    run.trainer.export(args.export)


if __name__ == "__main__":
    main()
