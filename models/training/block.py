"""Training of a coder's block drafter on packed texts within minutes of a GPU.

Usage: ``python -m models.training.block --packed FOLDER --minutes 4 --out OUT`` after
``python -m models.training.packed``. The budget counts from the start of the program, and the rate falls to
zero over it. Every minute the network is written, in parts that a machine with a limit on the size of a file
can return: ``cat OUT/block.part* > block.safetensors`` is the file that ``load_net`` reads.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from fimserver.engine.drafters.nets import BlockNetwork, BlockShape, load_net, save_net
from models.training.block_batches import Anchors, Base, draw_anchors, losses_of, new_block
from models.training.canvas_batches import TextBatch, collate, in_batches, read
from models.training.canvas_model import Coder
from models.training.canvas_packed import batches_of, read_cut
from models.training.packed import BASE, TEXTS, VALID, Texts
from models.training.parts import write_parts

STARTED = time.monotonic()
WARMUP_STEPS = 40
ADAMW_SHARE = 0.2
MOST = 1 << 20  # anchors: all
FEWEST = 16  # anchors of a step: a batch of short texts may have none
LOG_EVERY = 20  # steps
SAVE_EVERY_S = 60


@dataclass(frozen=True)
class Recipe:
    """What a step does: texts and anchors, full rates, and the share of the budget without streaks.

    ``lr``: of Muon, which trains the matrices; AdamW trains the rest at ``ADAMW_SHARE`` of it.
    """

    rows: int = 32
    anchors: int = 4096
    lr: float = 5e-3
    clip: float = 1.0
    plain_share: float = 0.67


class Run:
    """A drafter, its optimisers and one step of training."""

    def __init__(self, net: BlockNetwork, base: Base, recipe: Recipe, seed: int) -> None:
        self.net, self.base, self.recipe = net, base, recipe
        self.device = torch.device(base.coder.device)
        self.generator = torch.Generator().manual_seed(seed)
        self.steps = 0
        inner = [*net.layers.parameters(), *net.see.parameters()]
        matrices = [p for p in inner if p.ndim == 2]
        chosen = {id(p) for p in matrices}
        others = [p for p in net.parameters() if id(p) not in chosen]
        self.optimisers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=recipe.lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=recipe.lr, betas=(0.9, 0.95), weight_decay=0.0),
        ]

    def step(self, batch: TextBatch, share: float, *, streak: bool) -> dict[str, torch.Tensor] | None:
        """One update at ``share`` of the full rate; ``None``, and nothing done, without enough anchors."""
        drawn = draw_anchors(batch, self.recipe.anchors, self.generator)
        if len(drawn.at) < FEWEST:
            return None
        on_device = batch.to(self.device)
        anchors = Anchors(*(t.to(self.device, non_blocking=True) for t in drawn))
        seen = read(self.base.coder, on_device)
        with self.autocast():
            loss, values = losses_of(self.net, self.base, on_device, seen, anchors, streak=streak)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.net.parameters(), self.recipe.clip)
        rate = self.recipe.lr * share * min(1.0, (self.steps + 1) / WARMUP_STEPS)
        for optimiser, part in zip(self.optimisers, (1.0, ADAMW_SHARE), strict=True):
            for group in optimiser.param_groups:
                group["lr"] = rate * part
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self.steps += 1
        return values | {"loss": loss.detach(), "norm": norm}

    @torch.no_grad()
    def measure(self, batches: list[TextBatch]) -> dict[str, torch.Tensor]:
        """Counts over all anchors of held-out texts."""
        every = []
        for batch in batches:
            drawn = draw_anchors(batch, MOST)
            if not len(drawn.at):
                continue
            on_device = batch.to(self.device)
            anchors = Anchors(*(t.to(self.device) for t in drawn))
            seen = read(self.base.coder, on_device)
            with self.autocast():
                every.append(losses_of(self.net, self.base, on_device, seen, anchors, streak=False)[1])
        return {name: torch.stack([values[name] for values in every]).sum(0) for name in every[0]}

    def autocast(self) -> torch.autocast:
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.base.coder.dtype == torch.bfloat16
        )


def by_slot(values: Mapping[str, torch.Tensor], name: str = "") -> dict[str, object]:
    """Share of slots that are right where those before are, and the tokens of a draft that are accepted."""
    reached, right = (values[f"{name}{key}"].float() for key in ("reached", "right"))
    shares = right / reached.clamp(min=1)
    return {
        f"{name}at": [round(share, 3) for share in shares.tolist()],
        f"{name}tokens": round(float(shares.cumprod(0).sum()), 3),
    }


def frequent_words(texts: Texts, count: int) -> torch.Tensor:
    """The ``count`` most frequent tokens of prefixes and middles, ascending."""
    number = torch.repeat_interleave(torch.arange(len(texts)), texts.starts.diff())
    inside = torch.arange(len(texts.ids)) >= (texts.starts[:-1] + texts.prefix_at)[number]
    counts = torch.bincount(texts.ids[inside], minlength=len(texts.kept))
    return counts.argsort(descending=True, stable=True)[:count].sort().values


def make_base(folder: Path, texts: Texts, words: int, device: str) -> Base:
    """The frozen coder of a packed base."""
    model = read_cut(folder / BASE)
    positions = torch.arange(2 * int(texts.starts.diff().max()))
    cos, sin = model.model.rotary_emb(torch.zeros(1), positions[None])
    coder = Coder(model, device, torch.bfloat16)
    return Base.of(coder, (cos[0], sin[0]), frequent_words(texts, words))


def make_net(base: Base, texts: Texts, args: argparse.Namespace) -> BlockNetwork:
    """An untrained drafter with the sizes of the coder, or the one of ``--init``."""
    coder = base.coder
    if args.init:
        net = load_net(BlockNetwork, args.init, texts.base).to(coder.device)
        if net.words is None or not torch.equal(net.words.cpu().long(), texts.kept[base.words.cpu()]):
            raise SystemExit(f"{args.init} drafts other words than the packed texts have: pack those again")
        return net.train().requires_grad_(requires_grad=True)
    shape = BlockShape(
        tuple(map(int, args.borrowed.split(","))),
        args.window,
        coder.embedding.shape[1],
        coder.heads,
        coder.kv_heads,
        coder.head_dim,
        args.mlp,
        coder.eps,
        len(base.words),
        normed=True,
        sees_token=True,
        sampler=args.sampler,
    )
    some = collate(texts, range(min(8, len(texts)))).to(coder.device)
    torch.manual_seed(args.seed)
    return new_block(base, shape, texts.kept, read(coder, some))


def train(run: Run, texts: Texts, valid: Texts, args: argparse.Namespace) -> None:
    """Train until the budget is spent."""
    recipe, budget, saved = run.recipe, args.minutes * 60, time.monotonic()
    held_out = [collate(valid, numbers) for numbers in in_batches(valid, min(16, len(valid)), 0)]
    anchors = torch.zeros(())
    first = time.monotonic() - STARTED
    for batch in batches_of(texts, recipe.rows, args.seed):
        elapsed = time.monotonic() - STARTED
        done = (elapsed - first) / max(1.0, budget - first)
        if done >= 1 or 0 < args.max_steps <= run.steps:
            break
        values = run.step(batch, 1 - done, streak=done > recipe.plain_share)
        if values is None:
            continue
        anchors = anchors + values["reached"][0]
        if run.steps % LOG_EVERY == 0:
            log(args.out, run, {"anchors": int(anchors), "loss": float(values["loss"])} | _said(values))
        if time.monotonic() - saved > SAVE_EVERY_S:
            saved = time.monotonic()
            save_parts(run.net, args.out, texts.base)
            log(args.out, run, {"valid": _said(run.measure(held_out))})
    save_parts(run.net, args.out, texts.base)
    log(args.out, run, {"anchors": int(anchors), "valid": _said(run.measure(held_out))})


def _said(values: Mapping[str, torch.Tensor]) -> dict[str, object]:
    return by_slot(values) | (by_slot(values, "plain_") if "plain_right" in values else {})


def log(out: Path, run: Run, values: Mapping[str, object]) -> None:
    """One line of JSON. Raises ``FloatingPointError`` if the loss is not finite."""
    entry = {"step": run.steps, "seconds": round(time.monotonic() - STARTED, 1), **values}
    print(json.dumps(entry), flush=True)
    with (out / "log.jsonl").open("a") as file:
        file.write(json.dumps(entry) + "\n")
    loss = values.get("loss", 0.0)
    if loss != loss:  # noqa: PLR0124 - NaN
        raise FloatingPointError("the loss is NaN: lower the learning rate")


def save_parts(net: BlockNetwork, out: Path, target: str) -> None:
    """Write the network's file in parts."""
    whole = out / "block.tmp"
    save_net(net, whole, target)
    write_parts(whole, out / "block")


def parse() -> argparse.Namespace:
    """Options of the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packed", type=Path, required=True, help="folder that models.training.packed wrote")
    parser.add_argument("--minutes", type=float, default=4, help="from the start of the program to its end")
    parser.add_argument("--max-steps", type=int, default=0, help="end before the budget; 0: no limit")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--init", type=Path, help="a drafter's file to go on from; it has its sizes")
    parser.add_argument("--borrowed", default="15,23", help="for each layer, the coder's layer that it reads")
    parser.add_argument("--mlp", type=int, default=768)
    parser.add_argument("--window", type=int, default=7)
    parser.add_argument("--words", type=int, default=8192, help="frequent tokens that can be drafted")
    parser.add_argument("--sampler", type=int, default=128, help="its width; 0: none")
    parser.add_argument("--rows", type=int, default=Recipe.rows, help="texts of a step")
    parser.add_argument("--anchors", type=int, default=Recipe.anchors, help="most anchors of a step")
    parser.add_argument("--lr", type=float, default=Recipe.lr)
    parser.add_argument("--plain-share", type=float, default=Recipe.plain_share)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def main() -> None:
    """Read, train, write."""
    args = parse()
    args.out.mkdir(parents=True, exist_ok=True)
    texts, valid = (Texts.load(args.packed / name) for name in (TEXTS, VALID))
    base = make_base(args.packed, texts, args.words, args.device)
    net = make_net(base, texts, args)
    recipe = Recipe(args.rows, args.anchors, args.lr, plain_share=args.plain_share)
    print(f"{sum(p.numel() for p in net.parameters())} parameters", flush=True)
    train(Run(net, base, recipe, args.seed), texts, valid, args)


if __name__ == "__main__":
    main()
