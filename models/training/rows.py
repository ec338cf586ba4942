"""Training row: one FIM sequence and several canvases that attend to parts of it, with their targets.

The layout is suffix, prefix, canvas:

    <suffix> S <prefix> P <middle> M <eot>   causal, next-token targets
    canvas c = M[k : k + size] + <eot>…      partly masked; sees the sequence up to M[k - 1] and itself, both
    ways
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import NamedTuple

import torch
from tokenizers import Tokenizer

from models.training.holes import Hole, cut
from models.training.tokenizer import EOT, MASK, MIDDLE, PAD, PREFIX, SUFFIX

IGNORE = -100
CONTEXT, MIDDLE_PART, CANVAS = 0, 1, 2
CANVAS_SIZES = ((16, 4), (32, 2), (16, 4), (8, 8))  # (slots, how many canvases): 64 slots in any row


class Layout(NamedTuple):
    """Sizes of a row in tokens."""

    context: int = 448  # <suffix> S <prefix> P <middle>
    middle: int = 48  # M <eot>
    canvas: int = 64

    @property
    def sequence(self) -> int:
        return self.context + self.middle

    @property
    def row(self) -> int:
        return self.sequence + self.canvas


class Row(NamedTuple):
    """Lists of ``Layout.row`` numbers.

    ``limit``: last sequence index visible; ``group``: 0 sequence, else canvas.

    ``part`` says what a target belongs to: ``CONTEXT``, ``MIDDLE_PART`` (both next-token) or ``CANVAS``.
    """

    ids: list[int]
    positions: list[int]
    limit: list[int]
    group: list[int]
    part: list[int]
    targets: list[int]


class Batch(NamedTuple):
    """Tensors of ``Row`` stacked: all (B, T), and ``mask`` (B, 1, T, T), true where a row may look."""

    ids: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor
    targets: torch.Tensor
    part: torch.Tensor


class RowMaker:
    """Turns holes into rows with one tokenizer."""

    def __init__(self, tokenizer: Tokenizer, layout: Layout) -> None:
        self.tokenizer = tokenizer
        self.layout = layout
        names = (EOT, MASK, PAD, SUFFIX, PREFIX, MIDDLE)
        ids: list[int] = [tokenizer.get_vocab()[name] for name in names]
        self.eot, self.mask, self.pad, self.suffix, self.prefix, self.middle = ids

    def tokens(self, hole: Hole, rng: random.Random) -> tuple[list[int], list[int]]:
        """Context ids and middle ids (with end-of-text if the middle is whole)."""
        room = self.layout.context - 3
        want_suffix = 0 if rng.random() < 0.12 else rng.randint(8, room // 2)
        suffix = self.encode(hole.text[hole.end : hole.end + want_suffix * 6])[:want_suffix]
        prefix_room = room - len(suffix)
        prefix = self.encode(hole.text[max(0, hole.start - prefix_room * 6) : hole.start])[-prefix_room:]
        shown = hole.middle[: self.layout.middle * 8]
        ending = [self.eot] if shown == hole.middle else []
        middle = (self.encode(shown) + ending)[: self.layout.middle]
        return [self.suffix, *suffix, self.prefix, *prefix, self.middle], middle

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def row(self, hole: Hole, rng: random.Random) -> Row:
        """One training row from one hole."""
        context, middle = self.tokens(hole, rng)
        sequence = context + middle
        ids = sequence + [self.pad] * (self.layout.sequence - len(sequence))
        targets = self._next_tokens(sequence) + [IGNORE] * (self.layout.sequence - len(sequence))
        positions = list(range(self.layout.sequence))
        limit = list(range(self.layout.sequence))
        group = [0] * self.layout.sequence
        part = [CONTEXT] * (len(context) - 1)
        part += [MIDDLE_PART] * (self.layout.sequence - len(part)) + [CANVAS] * self.layout.canvas
        for slots, start, masked, name in self._canvases(middle, rng):
            ids += [self.mask if m or t == IGNORE else t for t, m in zip(slots, masked, strict=True)]
            targets += [t if m else IGNORE for t, m in zip(slots, masked, strict=True)]
            positions += range(len(context) + start, len(context) + start + len(slots))
            limit += [len(context) - 1 + start] * len(slots)
            group += [name] * len(slots)
        return Row(ids, positions, limit, group, part, targets)

    def _next_tokens(self, sequence: list[int]) -> list[int]:
        """Next-token targets; where a marker comes next there is nothing to learn."""
        following = [*sequence[1:], IGNORE]
        markers = {self.suffix, self.prefix, self.middle}
        return [IGNORE if t in markers else t for t in following]

    def _canvases(
        self, middle: list[int], rng: random.Random
    ) -> Iterator[tuple[list[int], int, list[bool], int]]:
        """Pairs of canvases at one start: complementary masks, or one all masked and one at random."""
        size, count = rng.choice(CANVAS_SIZES)
        beyond = self.eot if middle[-1] == self.eot else IGNORE  # a middle that was cut has no known end
        for pair in range(count // 2):
            start = 0 if pair == 0 else rng.randrange(len(middle))
            slots = (middle[start:] + [beyond] * size)[:size]
            order = list(range(size))
            rng.shuffle(order)
            level = max(1, round(rng.uniform(0.5, 1.0) * size))
            first = set(range(size)) if rng.random() < 0.4 else set(order[:level])
            second = set(range(size)) - first or set(order[: rng.randint(1, size)])
            for turn, chosen in enumerate((first, second)):
                yield slots, start, [i in chosen for i in range(size)], 1 + 2 * pair + turn


def collate(rows: list[Row]) -> Batch:
    """Stack rows and make their attention masks."""
    ids, positions, limit, group, part, targets = (torch.tensor(x) for x in zip(*rows, strict=True))
    column = torch.arange(ids.shape[1])
    in_sequence = (group[:, None, :] == 0) & (column[None, None, :] <= limit[:, :, None])  # (B, T, T)
    same_canvas = (group[:, :, None] == group[:, None, :]) & (group[:, :, None] > 0)
    return Batch(ids, positions, (in_sequence | same_canvas)[:, None], targets, part)


class RowStream:
    """Rows by step number, so that a resumed run sees what an unbroken one would have seen."""

    def __init__(self, texts: list[str], maker: RowMaker, seed: int) -> None:
        self.texts = texts
        self.maker = maker
        self.seed = seed
        # A file is drawn in proportion to the square root of its size.
        self.cumulative = list(itertools.accumulate(len(text) ** 0.5 for text in texts))

    def batch(self, step: int, rows: int) -> Batch:
        """The batch of one step."""
        rng = random.Random(f"{self.seed}/{step}")
        texts = rng.choices(self.texts, cum_weights=self.cumulative, k=rows)
        return collate([self.maker.row(cut(text, rng), rng) for text in texts])
