"""Measures the acceptance of drafters: how many drafted tokens the target would have written.

Usage: ``python -m models.training.acceptance FILE… --count 512``, on held-out windows that the target wrote,
greedy and sampled apart. Intervals are 95 % bootstrap over windows (not anchors, which depend on each other);
files are compared in pairs on the same anchors.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open

from fimserver.engine.drafters.nets import BlockNetwork, Heads, load_net
from models.training.anchors import Anchors, Batch, written
from models.training.ask import block_outputs, heads_outputs, taught
from models.training.corpus import CACHE
from models.training.losses import survival
from models.training.rows import IGNORE
from models.training.target import NANO, Frozen, Seen, Target
from models.training.windows import Windows, read_windows, windows_path

DRAFTS = (1, 2, 4)
STEPS = (1, 2, 4)
SAMPLES = 2000


class Interval(NamedTuple):
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Tally:
    """Accepted tokens, summed over the anchors of each of R texts.

    The fields are: best of the first k drafts (R, K); expected streak (R,); ``anchors`` (R,), their number;
    ``reached`` and ``right`` (W,), how often the likeliest draft was right before a slot, and in it too.
    """

    accepted: torch.Tensor
    streak: torch.Tensor
    anchors: torch.Tensor
    reached: torch.Tensor
    right: torch.Tensor

    @classmethod
    def of(cls, parts: Sequence[Tally]) -> Tally:
        rows = (
            torch.cat([getattr(part, name) for part in parts]) for name in ("accepted", "streak", "anchors")
        )
        return cls(
            *rows,
            *(torch.stack([getattr(part, name) for part in parts]).sum(0) for name in ("reached", "right")),
        )

    def mean_accepted(self, drafts: int = 1) -> float:
        return float(self.accepted[:, drafts - 1].sum() / self.anchors.sum())

    def mean_streak(self) -> float:
        return float(self.streak.sum() / self.anchors.sum())

    def by_position(self) -> list[float]:
        """Return how often each slot is right, given that all before it are."""
        rates: list[float] = (self.right / self.reached.clamp(min=1)).tolist()
        return rates


@torch.no_grad()
def tally(net: Heads | BlockNetwork, target: Frozen, batch: Batch, steps: int = 1, drafts: int = 1) -> Tally:
    """Draft at every anchor of a batch, and compare."""
    seen = target.see(batch.ids)
    targets = taught(net, seen, batch).targets[..., : window_of(net)]
    logp = marginals(net, target, seen, batch, steps)  # (B, A, W, V)
    known = targets != IGNORE
    right = (joint(logp.flatten(0, 1), drafts) == targets.flatten(0, 1)[:, None]).cumprod(-1)  # (N, K, W)
    accepted = right.sum(-1).cummax(-1).values.view(*targets.shape[:2], -1)
    logq = logp.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    first = right[:, 0]
    before = torch.cat([torch.ones_like(first[:, :1]), first[:, :-1]], 1) * known.flatten(0, 1)
    return Tally(
        accepted.sum(1).double(),
        survival(logq, known).sum((1, 2)).double(),
        known[..., 0].sum(1).double(),
        before.sum(0).double(),
        first.sum(0).double(),
    )


def window_of(net: Heads | BlockNetwork) -> int:
    return net.shape.heads if isinstance(net, Heads) else net.shape.window


def marginals(
    net: Heads | BlockNetwork, target: Frozen, seen: Seen, batch: Batch, steps: int
) -> torch.Tensor:
    """Log-probabilities (B, A, W, V) of the slots, each from the denoising step that fills it."""
    if isinstance(net, Heads):
        return target.head(heads_outputs(net, target, seen, batch), net.words).float().log_softmax(-1)
    window = net.shape.window
    size = -(-window // steps)
    slots, place = batch.slots(window)[0], torch.arange(window + 1, device=batch.at.device)
    parts = []
    for done in range(0, window, size):
        masked = (place > done).expand_as(slots)
        out = block_outputs(net, target, seen, batch.at, slots, masked)[:, :, done : done + size]
        parts.append(target.head(out, net.words).float().log_softmax(-1))
        best = parts[-1].argmax(-1)
        best = best if net.words is None else net.words[best]
        slots = torch.cat([slots[..., : done + 1], best, slots[..., done + size + 1 :]], -1)
    return torch.cat(parts, 2)


def joint(logp: torch.Tensor, count: int) -> torch.Tensor:
    """The ``count`` likeliest sequences (N, count, W) of independent slots (N, W, V), likeliest first."""
    top, ids = logp.topk(count, -1)  # (N, W, count)
    score, chains = top[:, 0], ids[:, 0, :, None]
    for slot in range(1, logp.shape[1]):
        score, best = (score[:, :, None] + top[:, slot, None]).flatten(1).topk(count, -1)
        chains = chains.gather(1, (best // count)[..., None].expand(-1, -1, slot))
        chains = torch.cat([chains, ids[:, slot].gather(1, best % count)[..., None]], -1)
    return chains


def interval(values: torch.Tensor, anchors: torch.Tensor) -> Interval:
    """Mean over all anchors of values summed by text (R,); texts are drawn anew."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(values), (SAMPLES, len(values)), generator=generator)
    means = (values[drawn].sum(1) / anchors[drawn].sum(1)).quantile(
        torch.tensor([0.025, 0.975], dtype=values.dtype)
    )
    return Interval(float(values.sum() / anchors.sum()), *means.tolist())


def batches(windows: Windows, count: int, anchors: Anchors, rows: int = 8) -> list[Batch]:
    """At most ``count`` random windows with room for an anchor, in batches of about the same length."""
    roomy = (windows.middles() > 1).nonzero()[:, 0].tolist()
    chosen = random.Random(0).sample(roomy, min(count, len(roomy)))
    texts = sorted((written(windows, i) for i in chosen), key=lambda text: len(text.ids))
    rng = random.Random(0)
    made = (anchors.collate(texts[i : i + rows], rng) for i in range(0, len(texts), rows))
    return [batch for batch in made if batch.at.numel()]


def read_drafter(path: Path, target: Frozen) -> Heads | BlockNetwork:
    """Read a drafter of either kind, as its file says. Raises ``LoadError``."""
    with safe_open(path, "pt") as file:
        kind = (file.metadata() or {}).get("kind")
    net = (
        load_net(Heads, path, target.sha256)
        if kind == "Heads"
        else load_net(BlockNetwork, path, target.sha256)
    )
    return net.to(target.device)


Results = dict[tuple[str, int], dict[str, Tally]]  # (file, steps) -> greedy or sampled -> tally


def measure(nets: dict[str, Heads | BlockNetwork], target: Frozen, parts: dict[str, list[Batch]]) -> Results:
    """Measure every drafter, at every number of steps that it supports, on every part."""
    return {
        (name, steps): {
            part: Tally.of([tally(net, target, batch.to(target.device), steps, DRAFTS[-1]) for batch in some])
            for part, some in parts.items()
        }
        for name, net in nets.items()
        for steps in (STEPS if isinstance(net, BlockNetwork) else STEPS[:1])
    }


def accepted_table(results: Results, parts: Sequence[str]) -> str:
    """Return a Markdown table of the accepted length of the best of k drafts."""
    rows = []
    for (name, steps), tallies in results.items():
        for drafts in DRAFTS:
            cells = (
                str(interval(tallies[part].accepted[:, drafts - 1], tallies[part].anchors)) for part in parts
            )
            rows.append([name, str(steps), str(drafts), *cells])
    return markdown(["file", "steps", "drafts", *(f"accepted, {part}" for part in parts)], rows)


def position_table(results: Results, parts: Sequence[str]) -> str:
    """Return a Markdown table of how often each slot is right, given that all before it are."""
    rows = [
        [name, str(steps), part, " ".join(_rates(tallies[part]))]
        for (name, steps), tallies in results.items()
        for part in parts
    ]
    return markdown(["file", "steps", "part", "acceptance by position"], rows)


def _rates(result: Tally) -> list[str]:
    """Format the rates of the slots; one that no draft reached has none."""
    return [
        f"{rate:.2f}" if reached else "-"
        for rate, reached in zip(result.by_position(), result.reached, strict=True)
    ]


def difference_table(results: Results, parts: Sequence[str]) -> str:
    """Return a Markdown table of the differences from the first file, on the same anchors.

    An interval that contains 0 shows no difference.
    """
    base = next(iter(results))[0]
    rows = []
    for (name, steps), tallies in results.items():
        if name == base or (base, steps) not in results:
            continue
        for drafts in DRAFTS:
            cells = [str(_difference(tallies[part], results[base, steps][part], drafts)) for part in parts]
            rows.append([f"{name} - {base}", str(steps), str(drafts), *cells])
    return markdown(["difference", "steps", "drafts", *(f"accepted, {part}" for part in parts)], rows)


def _difference(ours: Tally, theirs: Tally, drafts: int) -> Interval:
    return interval((ours.accepted - theirs.accepted)[:, drafts - 1], ours.anchors)


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows]]
    return "\n".join(lines)


def main() -> None:
    """Measure files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--windows", default="valid", help="a split, or a file")
    parser.add_argument("--count", type=int, default=512, help="windows of each temperature")
    parser.add_argument("--target", type=Path, default=NANO)
    parser.add_argument("--corpus", type=Path, default=CACHE)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="write the means here too")
    args = parser.parse_args()
    target = Target(args.target, args.device)
    path = (
        windows_path(args.corpus, args.windows) if args.windows in {"train", "valid"} else Path(args.windows)
    )
    windows = read_windows(path, target.sha256)
    nets = {str(file): read_drafter(file, target) for file in args.files}
    anchors = Anchors(window=max(map(window_of, nets.values())), markers=target.markers)
    parts = {
        name: batches(windows.only(greedy=name == "greedy"), args.count, anchors)
        for name in ("greedy", "sampled")
    }
    results = measure(nets, target, parts)
    print(accepted_table(results, list(parts)), position_table(results, list(parts)), sep="\n\n")
    if len(nets) > 1:
        print("\n" + difference_table(results, list(parts)))
    if args.json:
        means = [
            {
                "file": name,
                "steps": steps,
                "part": part,
                "accepted": [t.mean_accepted(k) for k in DRAFTS],
                "at": t.by_position(),
            }
            for (name, steps), tallies in results.items()
            for part, t in tallies.items()
        ]
        args.json.write_text(json.dumps(means, indent=1))


if __name__ == "__main__":
    main()
