"""Training of a drafter on a frozen target, within a time budget.

Usage: ``make drafters``, or ``python -m models.training.drafters block --minutes 20`` and then, for streaks,
``… block --minutes 10 --loss streak --init FILE``. A run that was cut off goes on from its checkpoint.

Heads of a coder (``heads --target FILE.gguf --width 256``) need no windows: they learn what it would write in
real files, as long as these agree with it. It runs in int8, as it is served, and what it computes for the
batches of an epoch is kept.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress as Bar

from fimserver.cards import get_card
from fimserver.engine.drafters.nets import BlockNetwork, Heads, load_net, save_net
from fimserver.hashing import sha256
from models.training import losses
from models.training.acceptance import batches, window_of
from models.training.anchors import Anchors, Batch, Files, Mixture
from models.training.canvas import frequent_tokens, read_documents
from models.training.coder_target import CARD, CoderTarget
from models.training.corpus import CACHE
from models.training.distil import Progress, Recipe, Trainer
from models.training.rows import RowMaker
from models.training.target import NANO, Target
from models.training.train import read_texts
from models.training.windows import LAYOUT, Windows, read_windows, windows_path

EVERY = 10_000  # anchors of a text: all that it has room for


class Run:
    """One run: the rate falls to zero along the budget, which includes the minutes of runs cut off before."""

    def __init__(
        self, trainer: Trainer, data: Mixture, valid: Mapping[str, Sequence[Batch]], folder: Path, name: str
    ) -> None:
        self.trainer, self.data, self.valid, self.folder, self.name = trainer, data, valid, folder, name
        self.started = time.monotonic()
        self.progress = self.before = Progress()
        self.bar = Bar(disable=not sys.stdout.isatty())
        self.task = self.bar.add_task("training", total=None)
        folder.mkdir(parents=True, exist_ok=True)

    def resume(self) -> None:
        """Go on from the checkpoint, where there is one of the same run."""
        if not self.checkpoint.exists():
            return
        progress = self.trainer.load(self.checkpoint, self.name)
        if progress is None:
            print(
                f"{self.checkpoint} is of a run with other options or another target: starting anew",
                flush=True,
            )
        else:
            self.progress = self.before = progress

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.safetensors"

    def train(self, minutes: float, every_minutes: float = 3.0) -> None:
        """Train until the budget is spent, with a checkpoint and a validation every few minutes."""
        next_save = self.progress.minutes + every_minutes
        while self.progress.minutes < minutes:
            warm = (self.progress.step + 1) / self.trainer.recipe.warmup_steps
            self.one_step(min(1.0, warm) * (1 - self.progress.minutes / minutes))
            if self.progress.minutes > next_save:
                next_save = self.progress.minutes + every_minutes
                self.save()
        self.save()

    def one_step(self, lr_scale: float) -> None:
        batch = self.data.batch(self.progress.step, self.trainer.recipe.rows)
        loss = self.trainer.step(batch, lr_scale)
        self.progress = Progress(
            self.progress.step + 1,
            self.progress.anchors + int(batch.learn.any(-1).sum()),
            self.before.minutes + (time.monotonic() - self.started) / 60,
        )
        self.bar.update(self.task, completed=self.progress.minutes, description=f"step {self.progress.step}")
        if self.progress.step % 20 == 0:
            self.log({"loss": loss, "lr": lr_scale})

    def save(self) -> None:
        self.trainer.save(self.checkpoint, self.progress, self.name)
        self.log(self.trainer.validate(self.valid))

    def log(self, values: dict[str, Any]) -> None:
        """One line for people, the same as JSON for plots."""
        entry = {name: _rounded(value) for name, value in (asdict(self.progress) | values).items()}
        self.bar.console.print(
            " ".join(f"{k}={v}" for k, v in entry.items()), highlight=False, soft_wrap=True
        )
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")


def _rounded(value: Any) -> Any:
    return [round(v, 3) for v in value] if isinstance(value, list) else round(value, 4)


def parse() -> argparse.Namespace:
    """Options; those of the recipe have the defaults of the kind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("heads", "block"))
    parser.add_argument("--minutes", type=float, default=20, help="whole budget of this run")
    parser.add_argument("--loss", choices=losses.NAMES, default="ce")
    parser.add_argument("--init", type=Path, help="a drafter's file to start from")
    parser.add_argument("--target", type=Path, default=NANO, help="a folder, or a coder's GGUF file")
    parser.add_argument("--card", default=CARD, help="of the coder")
    parser.add_argument("--corpus", type=Path, default=CACHE, help="texts and windows")
    parser.add_argument(
        "--folder", type=Path, help="checkpoint and log; default: drafters/KIND-LOSS beside the corpus"
    )
    parser.add_argument("--out", type=Path, help="default: drafters/KIND-LOSS.safetensors beside the corpus")
    parser.add_argument(
        "--text-share", type=float, help="of the rows that are real text; default 0.5, for streaks 0"
    )
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--width", type=int, default=0, help="of each head inside; default: the target's")
    parser.add_argument("--words", type=int, default=8192, help="frequent tokens that a coder's heads draft")
    parser.add_argument("--epoch", type=int, default=400, help="steps of a coder's batches, which are kept")
    parser.add_argument("--window", type=int, default=16, help="slots of the block drafter")
    parser.add_argument(
        "--borrowed", default="3,5", help="layers of the target whose keys and values the block drafter reads"
    )
    parser.add_argument(
        "--valid", type=int, default=96, help="held-out windows of each temperature to validate on"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    own = {"loss", "text_share"}
    for name, default in asdict(Recipe()).items():
        if name not in own:
            parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), help=f"default {default}")
    args = parser.parse_args()
    if args.loss == "streak" and not args.init:
        parser.error("streak is flat where nothing is right yet: give --init FILE that was trained with ce")
    return args


def recipe_of(args: argparse.Namespace) -> Recipe:
    """The recipe of a kind and a loss, with what was asked for."""
    recipe = Recipe(args.loss)
    if args.kind == "heads":
        recipe = replace(
            recipe, anchors=48, gamma=4.0, fill_share=0.0, lr=5e-3
        )  # at 1e-3 they learn half as fast
    if args.target.suffix == ".gguf":
        recipe = replace(recipe, text_share=1.0, anchors=EVERY)
    elif "streak" in args.loss:
        recipe = replace(recipe, text_share=0.0)
    given = {name: getattr(args, name) for name in asdict(recipe) if getattr(args, name) is not None}
    return replace(recipe, **given)


def net_of(args: argparse.Namespace, target: Target | CoderTarget) -> Heads | BlockNetwork:
    """A new network, or the one of ``--init``."""
    if args.init:
        return (
            load_net(Heads, args.init, target.sha256)
            if args.kind == "heads"
            else load_net(BlockNetwork, args.init, target.sha256)
        )
    if isinstance(target, CoderTarget):
        documents = read_documents(args.corpus)
        words = frequent_tokens(documents, target.prompts.encode, args.words, target.network.vocab_size)
        return target.new_heads(args.heads, args.width, words)
    if args.kind == "heads":
        return target.new_heads(args.heads)
    return target.new_block(tuple(map(int, args.borrowed.split(","))), args.window)


def run_of(args: argparse.Namespace, net: Heads | BlockNetwork, target: Target | CoderTarget) -> Run:
    """Everything that a run needs, read."""
    recipe, name = recipe_of(args), f"{args.kind}-{args.loss}"
    anchors = Anchors(recipe.anchors, window_of(net), recipe.fill_share, target.markers)
    if isinstance(target, CoderTarget):
        data, valid = coder_data(args, target, recipe, anchors)
    else:
        data, valid = windows_data(args, target, recipe, anchors)
    what = {
        "kind": args.kind,
        "target": target.sha256,
        "init": sha256(args.init) if args.init else "",
        **asdict(net.shape),
    }
    return Run(
        Trainer(net, target, recipe),
        data,
        valid,
        args.folder or args.corpus / "drafters" / name,
        json.dumps(what | asdict(recipe)),
    )


Data = tuple[Mixture, dict[str, list[Batch]]]  # to train on, and to validate on by part


def windows_data(args: argparse.Namespace, target: Target, recipe: Recipe, anchors: Anchors) -> Data:
    """Return batches of windows that the target wrote, and of real files."""
    train, held_out = (
        read_windows(windows_path(args.corpus, split), target.sha256) for split in ("train", "valid")
    )
    files = None
    if recipe.text_share:
        files = Files(read_texts(args.corpus, "train"), RowMaker(target.tokenizer, LAYOUT))
    plain = replace(anchors, fill_share=0.0)
    valid = {
        part: batches(held_out.only(greedy=part == "greedy"), args.valid, plain)
        for part in ("greedy", "sampled")
    }
    return Mixture(train, anchors, recipe.seed, files, recipe.text_share), valid


def coder_data(args: argparse.Namespace, target: CoderTarget, recipe: Recipe, anchors: Anchors) -> Data:
    """Real files of all languages, where targets are what the coder itself would write."""
    none, plain = Windows.of([]), replace(anchors, fill_share=0.0)
    texts = [text for some in read_documents(args.corpus).values() for text in some]
    held_out = Mixture(none, plain, 0, Files(read_texts(args.corpus, "valid"), target), 1.0)
    valid = [held_out.batch(number, recipe.rows) for number in range(args.valid // recipe.rows)]
    files = Files(texts, target)
    return Mixture(none, anchors, recipe.seed, files, 1.0, args.epoch), {"own": valid}


def main() -> None:
    """Read what is needed, resume, train, export."""
    args = parse()
    warnings.filterwarnings(
        "ignore", "Mismatch dtype between input and weight"
    )  # q and k under autocast: slower, no more
    target = (
        CoderTarget(args.target.parent, get_card(args.card), args.corpus / "seen")
        if args.target.suffix == ".gguf"
        else Target(args.target, args.device)
    )
    torch.manual_seed(recipe_of(args).seed)
    net = net_of(args, target).to(target.device)
    run = run_of(args, net, target)
    run.resume()
    run.bar.update(run.task, total=args.minutes)
    with run.bar:
        run.train(args.minutes)
    save_net(
        net, args.out or args.corpus / "drafters" / f"{args.kind}-{args.loss}.safetensors", target.sha256
    )


if __name__ == "__main__":
    main()
