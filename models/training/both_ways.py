"""Trains a small network with full attention, from nano's weights.

It is what the caches of such networks are measured on (``bench.canvas_cache tokens``); it is not shipped. The
layout is nano's, the loss that of masked diffusion (arXiv 2406.07524):

    <suffix> S <prefix> P <middle> M   both ways; M is masked wholly or in part, as are pieces of S and P

Usage: ``python -m models.training.both_ways --minutes 20``. Goes on from its checkpoint, as nano's training.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer

from models.training.corpus import CACHE
from models.training.holes import Hole, cut
from models.training.rows import CANVAS, CONTEXT, IGNORE, MIDDLE_PART, Batch, Layout, RowMaker, RowStream
from models.training.shape import Shape
from models.training.train import NANO, Recipe, Run, Trainer, read_texts

LONGEST = 48  # tokens of a middle
PIECES = 0.25  # so much of prefix and suffix is masked, in pieces of up to LONGEST_PIECE tokens
LONGEST_PIECE = 8


class MaskedRows:
    """Batches by step number: even rows have a middle that is masked wholly, odd ones in part."""

    def __init__(self, texts: list[str], tokenizer: Tokenizer, seed: int, tokens: int = 192) -> None:
        self.stream = RowStream(texts, RowMaker(tokenizer, Layout()), seed)
        self.tokens = tokens

    def batch(self, step: int, rows: int) -> Batch:
        """``rows`` of ``tokens`` places."""
        rng = random.Random(f"both ways/{self.stream.seed}/{step}")
        made = [self._row(rng, whole=i % 2 == 0) for i in range(rows)]
        ids, targets, part, length = (torch.tensor(column) for column in zip(*made, strict=True))
        place = torch.arange(self.tokens)
        filled = (place < length[:, None])[:, None, None, :]  # padding is seen by nothing
        mask = filled.expand(-1, 1, self.tokens, -1).contiguous()
        return Batch(ids, place.expand(rows, -1).contiguous(), mask, targets, part)

    def _row(self, rng: random.Random, *, whole: bool) -> tuple[list[int], list[int], list[int], int]:
        """Ids, targets and parts, ``tokens`` of each, and how many places are filled."""
        maker = self.stream.maker
        prefix, middle, suffix = self._sides(rng)
        text = [maker.suffix, *suffix, maker.prefix, *prefix, maker.middle, *middle]
        start = len(text) - len(middle)
        level = len(middle) if whole else rng.randint(1, len(middle))
        hidden = {start + i for i in rng.sample(range(len(middle)), level)}
        markers = {maker.suffix, maker.prefix, maker.middle}
        pieces = self._pieces(rng, [i for i, token in enumerate(text[:start]) if token not in markers])
        rest = self.tokens - len(text)
        ids = [maker.mask if i in hidden or i in pieces else t for i, t in enumerate(text)]
        targets = [t if i in hidden or i in pieces else IGNORE for i, t in enumerate(text)]
        kind = MIDDLE_PART if whole else CANVAS
        part = [kind if i in hidden else CONTEXT for i in range(self.tokens)]
        return ids + [maker.pad] * rest, targets + [IGNORE] * rest, part, len(text)

    def _sides(self, rng: random.Random) -> tuple[list[int], list[int], list[int]]:
        """Prefix, middle and suffix as tokens, cut apart before they are tokenised."""
        encode = self.stream.maker.encode
        while True:
            hole: Hole = cut(rng.choices(self.stream.texts, cum_weights=self.stream.cumulative)[0], rng)
            middle = encode(hole.middle) if len(hole.middle) <= 8 * LONGEST else []
            if 0 < len(middle) <= LONGEST:
                break
        room = self.tokens - 3 - len(middle)
        suffix = encode(hole.text[hole.end : hole.end + 6 * room])[: rng.randint(0, room // 2)]
        left = room - len(suffix)
        prefix = encode(hole.text[max(0, hole.start - 6 * left) : hole.start])[-left:]
        return prefix, middle, suffix

    def _pieces(self, rng: random.Random, places: list[int]) -> set[int]:
        """Those of ``places`` that are masked."""
        found: set[int] = set()
        while places and len(found) < PIECES * len(places):
            first = rng.randrange(len(places))
            found |= set(places[first : first + rng.randint(1, LONGEST_PIECE)])
        return found


def main() -> None:
    """Parse options, go on or start from nano, train, export."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20, help="whole budget of this run")
    parser.add_argument("--corpus", type=Path, default=CACHE)
    parser.add_argument("--folder", type=Path, default=CACHE / "both-ways", help="checkpoint, log, export")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    recipe = Recipe(
        seed=args.seed,
        rows=args.rows,
        matrix_lr=0.002,
        vector_lr=0.0004,
        warmup_steps=20,
        context_weight=0.5,
        middle_weight=0.5,
        canvas_weight=0.5,
    )
    args.folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_file(str(NANO / "tokenizer.json"))
    held = MaskedRows(read_texts(args.corpus, "valid"), tokenizer, seed=0)
    run = Run(
        Trainer(Shape(), recipe, args.device, eager=True),
        MaskedRows(read_texts(args.corpus, "train"), tokenizer, recipe.seed),
        [held.batch(i, 32) for i in range(4)],
        args.folder,
    )
    if (args.folder / "checkpoint" / "state.safetensors").exists():
        run.progress = run.trainer.load(args.folder / "checkpoint")
    else:
        run.trainer.start_from(NANO)
    run.log(run.trainer.validate(run.valid))
    run.constant(0.5 * args.minutes)
    run.anneal(args.minutes)
    run.log(run.trainer.validate(run.valid))
    export = args.folder / "export"
    run.trainer.export(export)
    tokenizer.save(str(export / "tokenizer.json"))


if __name__ == "__main__":
    main()
