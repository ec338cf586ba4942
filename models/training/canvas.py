"""Training of the canvas adapter on a frozen coder, on a time budget; resumable to the bit.

Usage: ``python -m models.training.canvas --base coder.gguf --minutes 100`` after ``python -m
models.training.corpus`` and ``python -m models.training.canvas_corpus``. The run goes on from the newest
checkpoint of its folder.
"""

from __future__ import annotations

import argparse
import json
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file

from fimserver.cards import get_card
from fimserver.hashing import sha256
from models.training.canvas_data import Examples
from models.training.canvas_eval import Development
from models.training.canvas_model import Adapter, Coder
from models.training.canvas_prompts import gguf_prompts
from models.training.canvas_shrink import shrink
from models.training.canvas_trainer import Recipe, Trainer
from models.training.corpus import CACHE, SEPARATOR

CORPUS = {"python": ("train.txt", 0.75), "typescript": ("typescript.txt", 0.25)}
VALIDATION = "valid.txt"
COUNTED_CHARS = 4_000_000  # of each language, to find the frequent tokens
STATE = "state.safetensors"


@dataclass(frozen=True)
class Progress:
    """Where a run stands: steps, canvas places predicted, and minutes over all runs."""

    step: int = 0
    places: int = 0
    minutes: float = 0.0


class Run:
    """Steps with a log, a checkpoint every few minutes, and a measurement on development spans."""

    def __init__(self, trainer: Trainer, development: Development, folder: Path, base: str) -> None:
        self.trainer, self.development, self.folder = trainer, development, folder
        self.base, self.fingerprint = base, trainer.coder.fingerprint()
        self.progress, self.stopped = Progress(), False

    def go(self, minutes: float, max_steps: int, every_minutes: float, measure_every: int) -> None:
        """Train until the time is up, ``max_steps`` is reached, or a signal asks for the end."""
        started = saved = last = time.monotonic()
        saves = 0
        while (
            not self.stopped
            and time.monotonic() - started < minutes * 60
            and not 0 < max_steps <= self.progress.step
        ):
            values = self.trainer.step(self.progress.step)
            now = time.monotonic()
            self.progress = Progress(
                self.progress.step + 1,
                self.progress.places + int(values["taught"]),
                self.progress.minutes + (now - last) / 60,
            )
            last = now
            if self.progress.step % 10 == 0:
                self.log(values)
            if now - saved > every_minutes * 60:
                saved, saves = now, saves + 1
                self.checkpoint(measure=saves % measure_every == 0)
        self.checkpoint(measure=max_steps == 0)

    def checkpoint(self, *, measure: bool) -> None:
        """Write the state. Raises ``RuntimeError`` if the frozen weights have changed."""
        if self.trainer.coder.fingerprint() != self.fingerprint:
            raise RuntimeError("the frozen weights have changed: nothing was saved")
        save(self.trainer, self.progress, self.base, self.folder / STATE)
        if measure:
            self.log(self.development.measure(self.trainer.average))

    def log(self, values: Mapping[str, float]) -> None:
        """One line of JSON, for people and for plots."""
        entry = {**asdict(replace(self.progress, minutes=round(self.progress.minutes, 1)))}
        line = json.dumps(entry | {name: round(value, 4) for name, value in values.items()})
        print(line, flush=True)
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(line + "\n")

    def stop(self, _signal: int, _frame: FrameType | None) -> None:
        self.stopped = True


def save(trainer: Trainer, progress: Progress, base: str, path: Path) -> None:
    """Write adapter, average, optimiser and progress; atomic, so that a kill leaves the former one."""
    tensors = {f"adapter.{name}": value for name, value in trainer.adapter.state_dict().items()}
    tensors |= {f"average.{name}": value for name, value in trainer.average.state_dict().items()}
    for number, state in trainer.optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{number}.{name}": torch.as_tensor(value) for name, value in state.items()}
    metadata = {
        "progress": json.dumps(asdict(progress)),
        "base": base,
        "recipe": json.dumps(asdict(trainer.recipe)),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: value.contiguous() for name, value in tensors.items()}, path.with_suffix(".part"), metadata
    )
    path.with_suffix(".part").replace(path)


def load(trainer: Trainer, base: str, path: Path) -> Progress:
    """Read what ``save`` wrote. Raises ``ValueError`` for a checkpoint of another base."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        if metadata["base"] != base:
            raise ValueError(
                f"{path} was trained on weights {metadata['base'][:12]}…, not on {base[:12]}…: use its own"
                " base"
            )
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    trainer.adapter.load_state_dict(_under(tensors, "adapter."))
    trainer.average.load_state_dict(_under(tensors, "average."))
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in _under(tensors, "optimiser.").items():
        number, _, field = name.partition(".")
        state.setdefault(int(number), {})[field] = value
    trainer.optimiser.load_state_dict(trainer.optimiser.state_dict() | {"state": state})
    return Progress(**json.loads(metadata["progress"]))


def frequent_tokens(
    documents: Mapping[str, Sequence[str]], encode: Callable[[str], list[int]], count: int, size: int
) -> torch.Tensor:
    """The ``count`` most frequent tokens of the start of each language's documents, sorted by id."""
    counts = Counter[int]()
    for texts in documents.values():
        chars = 0
        for text in texts[:: max(1, len(texts) // 1000)]:
            counts.update(encode(text[:20_000]))
            chars += len(text[:20_000])
            if chars > COUNTED_CHARS:
                break
    best = sorted(counts, key=lambda token: (-counts[token], token))[:count]
    return torch.tensor(sorted(token for token in best if token < size))


def read_documents(corpus: Path) -> dict[str, list[str]]:
    """Return the training documents by language. Raises ``SystemExit`` if the corpus has not been built."""
    missing = [name for name, _ in CORPUS.values() if not (corpus / name).exists()]
    if missing:
        raise SystemExit(
            f"{corpus / missing[0]} is not there: run `python -m models.training.corpus` and `…canvas_corpus`"
            " first"
        )
    return {
        language: (corpus / name).read_text("utf-8").split(SEPARATOR)
        for language, (name, _) in CORPUS.items()
    }


def _under(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def read_base(path: Path) -> Any:
    """Model of a GGUF file, dequantised."""
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        str(path.parent), gguf_file=path.name, dtype=torch.bfloat16
    )
    return model.eval()


def make_run(args: argparse.Namespace, recipe: Recipe) -> Run:
    """Read base and corpus, and go on from the checkpoint of the folder if there is one."""
    coder, base = Coder(read_base(args.base), args.device, torch.bfloat16), sha256(args.base)
    prompts = gguf_prompts(get_card(args.card), args.base)
    documents = read_documents(args.corpus)
    examples = Examples(documents, {name: share for name, (_, share) in CORPUS.items()}, prompts, recipe.seed)
    held_out = Examples(
        {"python": (args.corpus / VALIDATION).read_text("utf-8").split(SEPARATOR)},
        {"python": 1.0},
        prompts,
        0,
    )
    args.folder.mkdir(parents=True, exist_ok=True)
    development = Development(
        coder,
        held_out,
        args.spans,
        args.folder / f"spans-{prompts.fim.layout}-{base[:12]}-{args.spans}.json",
    )
    frequent = frequent_tokens(documents, prompts.encode, recipe.words, len(coder.head)).to(args.device)
    run = Run(Trainer(coder, examples, frequent, recipe), development, args.folder, base)
    if (args.folder / STATE).exists():
        run.progress = load(run.trainer, base, args.folder / STATE)
    elif args.init:
        start_from(run.trainer, base, args.init)
    return run


class Averaged(Protocol):
    """An adapter in training, with the average of its last steps."""

    adapter: Adapter
    average: Adapter


def start_from(trainer: Averaged, base: str, path: Path) -> None:
    """Take the average of a checkpoint of another recipe, cut to the ranks of this one.

    Tensors that it lacks keep their initial values.
    """
    with safe_open(path, "pt") as file:
        if file.metadata()["base"] != base:
            raise ValueError(f"{path} was trained on other weights: use its own base")
        names = [name for name in file.keys() if name.startswith("average.")]  # noqa: SIM118
        average = {name: file.get_tensor(name) for name in names}
    sizes = {name: value.shape for name, value in trainer.adapter.state_dict().items()}
    for adapter in (trainer.adapter, trainer.average):
        adapter.load_state_dict(shrink(_under(average, "average."), sizes), strict=False)


def main() -> None:
    """Parse options, resume, train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, required=True, help="GGUF file of the frozen coder")
    parser.add_argument(
        "--card", default="qwen2.5-coder-0.5b-instruct", help="card whose layout the prompts have"
    )
    parser.add_argument("--minutes", type=float, default=100)
    parser.add_argument("--max-steps", type=int, default=0, help="end before the budget; 0: no limit")
    parser.add_argument("--checkpoint-minutes", type=float, default=8)
    parser.add_argument(
        "--measure-every", type=int, default=3, help="checkpoints from one measurement to the next"
    )
    parser.add_argument("--corpus", type=Path, default=CACHE)
    parser.add_argument("--folder", type=Path, default=CACHE / "canvas", help="checkpoint and log")
    parser.add_argument("--init", type=Path, help="checkpoint of another recipe to start a new run from")
    parser.add_argument("--spans", type=int, default=48, help="development spans")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    for name, default in asdict(Recipe()).items():
        kind: dict[str, Any] = (
            {"action": "store_true"}
            if isinstance(default, bool)
            else {"type": type(default), "default": default}
        )
        parser.add_argument(f"--{name.replace('_', '-')}", **kind)
    args = parser.parse_args()
    recipe = Recipe(**{name: getattr(args, name) for name in asdict(Recipe())})
    run = make_run(args, recipe)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, run.stop)
    run.log(
        {
            "threads": torch.get_num_threads(),
            **({} if run.progress.step else run.development.measure(run.trainer.average)),
        }
    )
    run.go(args.minutes, args.max_steps, args.checkpoint_minutes, args.measure_every)


if __name__ == "__main__":
    main()
