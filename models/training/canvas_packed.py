"""Training of the canvas adapter on packed texts within minutes of a GPU.

Usage, after ``python -m models.training.packed``::

    python -m models.training.canvas_packed --packed FOLDER --init STATE.safetensors --minutes 5 --out OUT

The rate falls to zero over the budget. Every minute the average of the last steps is written, in parts:
``cat OUT/state.part* > state.safetensors`` is the checkpoint that ``canvas_export`` reads.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

from fimserver.engine.weights.gguf import config_fields, read_gguf
from models.training.canvas import start_from
from models.training.canvas_batches import (
    Pattern,
    TextBatch,
    Weights,
    collate,
    draw,
    in_batches,
    losses,
    read,
)
from models.training.canvas_model import Adapter, Coder
from models.training.canvas_trainer import Recipe
from models.training.packed import BASE, TEXTS, VALID, Texts
from models.training.parts import write_parts

WARMUP_STEPS = 40


@dataclass
class Run:
    """Adapter, its average and its optimiser."""

    coder: Coder
    adapter: Adapter
    average: Adapter
    optimiser: torch.optim.Optimizer
    recipe: Recipe
    base: str
    pattern: Pattern = field(default_factory=Pattern)
    weights: Weights = field(default_factory=Weights)
    steps: int = 0
    places: int = 0

    def step(self, batch: TextBatch, share: float) -> dict[str, torch.Tensor]:
        """One update at ``share`` of the full rate; no value is read from the device."""
        seen = read(self.coder, batch)
        canvases = draw(batch, seen, self.pattern)
        loss, values = losses(self.coder, self.adapter, seen, canvases, self.weights)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.adapter.parameters(), self.recipe.clip)
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.lr * share * min(1.0, (self.steps + 1) / WARMUP_STEPS)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.steps += 1
        with torch.no_grad():
            weight = max(1 - self.recipe.average, 1 / (self.steps + 1))
            torch._foreach_lerp_(list(self.average.parameters()), list(self.adapter.parameters()), weight)
        return values | {"loss": loss.detach(), "norm": norm, "taught": canvases.open.sum()}

    @torch.no_grad()
    def measure(self, batches: list[TextBatch]) -> dict[str, float]:
        """Means over held-out texts, with the average."""
        torch.manual_seed(7)
        every = []
        for batch in batches:
            seen = read(self.coder, batch)
            canvases = draw(batch, seen, self.pattern)
            every.append(losses(self.coder, self.average, seen, canvases, self.weights)[1])
        return {f"valid_{name}": float(torch.stack([v[name] for v in every]).mean()) for name in every[0]}


def make_run(folder: Path, recipe: Recipe, device: str, base: str) -> Run:
    """The frozen coder of a packed base, with an adapter that has not learned yet."""
    coder = Coder(read_cut(folder / BASE), device, torch.bfloat16 if device != "cpu" else torch.float32)
    adapter, average = (
        coder.adapter(recipe.ranks(), recipe.scale, recipe.seed, recipe.sampler) for _ in range(2)
    )
    average.requires_grad_(requires_grad=False)
    optimiser = torch.optim.AdamW(
        adapter.parameters(), lr=recipe.lr, betas=(0.9, 0.98), weight_decay=0.0, fused=device != "cpu"
    )
    return Run(coder, adapter, average, optimiser, recipe, base)


def read_cut(path: Path) -> Any:
    """Model of a GGUF file without a tokenizer."""
    file = read_gguf(path)
    fields = config_fields(file)
    config = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
    with torch.device("meta"):
        model: Any = transformers.AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    tensors = {name: file.tensor(name).to(torch.bfloat16) for name in file.tensors}
    model.load_state_dict(tensors, strict=not config.tie_word_embeddings, assign=True)
    return model.eval()


def batches_of(texts: Texts, rows: int, seed: int) -> Iterator[TextBatch]:
    """Batches without an end, made ahead by a thread."""

    def every() -> Iterator[list[int]]:
        epoch = seed
        while True:
            yield from in_batches(texts, rows, epoch)
            epoch += 1

    numbers = every()
    with ThreadPoolExecutor(1) as thread:
        ahead = [thread.submit(collate, texts, next(numbers)) for _ in range(4)]
        while True:
            yield ahead.pop(0).result()
            ahead.append(thread.submit(collate, texts, next(numbers)))


def train(run: Run, texts: Texts, valid: Texts, args: argparse.Namespace) -> None:
    """Train until the time is up, with log lines and a state every minute."""
    started = saved = time.monotonic()
    held_out = [collate(valid, numbers).to(args.device) for numbers in in_batches(valid, args.rows, 0)]
    log(args.out, run, 0.0, run.measure(held_out))
    budget = args.minutes * 60
    totals: list[torch.Tensor] = []
    for batch in batches_of(texts, args.rows, run.recipe.seed):
        elapsed = time.monotonic() - started
        if elapsed > budget or 0 < args.max_steps <= run.steps:
            break
        values = run.step(batch.to(args.device), max(0.0, 1 - elapsed / budget))
        totals.append(values["taught"])
        if run.steps % args.log_every == 0:
            run.places += int(torch.stack(totals).sum())
            totals.clear()
            read_values = {name: float(value) for name, value in values.items()}
            if not 0 < read_values["norm"] < float("inf"):
                raise FloatingPointError(f"the gradient's norm is {read_values['norm']} at step {run.steps}")
            log(args.out, run, elapsed, read_values)
        if time.monotonic() - saved > 60:
            saved = time.monotonic()
            save_parts(run, args.out)
    save_parts(run, args.out)
    log(args.out, run, time.monotonic() - started, run.measure(held_out))


def log(out: Path, run: Run, seconds: float, values: Mapping[str, float]) -> None:
    """One line of JSON."""
    entry = {"step": run.steps, "places": run.places, "seconds": round(seconds, 1)}
    line = json.dumps(entry | {name: round(value, 4) for name, value in values.items()})
    print(line, flush=True)
    with (out / "log.jsonl").open("a") as file:
        file.write(line + "\n")


def save_parts(run: Run, out: Path) -> None:
    """Write the average in bf16, in parts."""
    tensors = {f"average.{name}": t.detach().bfloat16().cpu() for name, t in run.average.state_dict().items()}
    metadata = {
        "base": run.base,
        "recipe": json.dumps(asdict(run.recipe)),
        "progress": json.dumps({"step": run.steps, "places": run.places}),
    }
    whole = out / "state.tmp"
    save_file(tensors, whole, metadata)
    write_parts(whole, out / "state")


def main() -> None:
    """Parse options, train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packed", type=Path, required=True, help="folder that models.training.packed wrote")
    parser.add_argument("--init", type=Path, help="checkpoint to start from")
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--max-steps", type=int, default=0, help="end before the budget; 0: no limit")
    parser.add_argument("--rows", type=int, default=32, help="texts of a step")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--average", type=float, default=0.98)
    parser.add_argument("--attention-rank", type=int, default=28)
    parser.add_argument("--mlp-rank", type=int, default=14)
    parser.add_argument("--sampler", type=int, default=704)
    parser.add_argument("--seed", type=int, default=9)
    parser.add_argument("--log-every", type=int, default=20)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    texts, valid = (Texts.load(args.packed / name) for name in (TEXTS, VALID))
    recipe = Recipe(
        seed=args.seed,
        lr=args.lr,
        average=args.average,
        attention_rank=args.attention_rank,
        mlp_rank=args.mlp_rank,
        sampler=args.sampler,
        warmup_steps=WARMUP_STEPS,
        drafts="1,2,4",
        blocks="8,16",
    )
    run = make_run(args.packed, recipe, args.device, texts.base)
    if args.init:
        start_from(run, texts.base, args.init)
    train(run, texts, valid, args)


if __name__ == "__main__":
    main()
