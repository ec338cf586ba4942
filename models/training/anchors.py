"""Anchors: the places at which drafters draft in training and measurement, with the tokens that follow.

An anchor is the place of the last known token of a text; its window is the tokens after it. Texts are real
files (anchors anywhere) and what the target wrote (anchors in the middle alone).
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch.nn import functional as F

from models.training.holes import Hole, cut
from models.training.rows import IGNORE
from models.training.windows import Windows


class Text(NamedTuple):
    """Token ids, and the first place where an anchor may be."""

    ids: list[int]
    first: int


class Batch(NamedTuple):
    """Texts ``ids`` (B, T), padded on the right, with A anchors each.

    ``at`` (B, A): their places. ``targets`` (B, A, W): the tokens after them, IGNORE from the end of the text
    or a marker on. ``filled`` (B, A): how many of these the drafter is shown. A text with fewer anchors has
    some without targets.
    """

    ids: torch.Tensor
    at: torch.Tensor
    targets: torch.Tensor
    filled: torch.Tensor

    @property
    def learn(self) -> torch.Tensor:
        """Mask (B, A, W) of the slots that have a target to learn."""
        return (self.targets != IGNORE) & ~self.shown()

    def shown(self) -> torch.Tensor:
        """Mask (B, A, W) of the slots that are given to the drafter."""
        return torch.arange(self.targets.shape[2], device=self.at.device) < self.filled[..., None]

    def slots(self, window: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The anchor and the ``window`` tokens after it (B, A, W + 1), and which of them are masked."""
        place = torch.arange(window + 1, device=self.at.device)
        after = (self.at[..., None] + place).clamp(max=self.ids.shape[1] - 1)
        return self.ids.gather(1, after.flatten(1)).view_as(after), place > self.filled[..., None]

    def as_written(self, own: torch.Tensor) -> Batch:
        """The same with the target's own next tokens ``own`` (B, T), one after each place, as targets.

        A window ends where the text is not what the target would have written after its anchor.
        """
        rows = self.at[..., None] + torch.arange(self.targets.shape[2], device=self.at.device)
        rows = rows.clamp(max=self.ids.shape[1] - 1)

        def at(values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
            return values.gather(1, places.flatten(1)).view_as(places)

        same = (at(self.ids, rows) == at(own, rows - 1)).cumprod(-1).bool()
        return self._replace(targets=at(own, rows).masked_fill(~same | (self.targets == IGNORE), IGNORE))

    def within(self, words: torch.Tensor) -> Batch:
        """The same with targets as places in ``words``, ascending ids; a window ends before any other."""
        place = torch.searchsorted(words, self.targets.to(words.dtype)).clamp(max=len(words) - 1)
        known = (words[place] == self.targets).cumprod(-1).bool()
        return self._replace(targets=place.masked_fill(~known, IGNORE))

    def to(self, device: torch.device) -> Batch:
        return Batch(*(t.to(device) for t in self))


@dataclass(frozen=True)
class Anchors:
    """How anchors are drawn: at most ``count`` of a text, with ``window`` tokens after each."""

    count: int = 24
    window: int = 16
    fill_share: float = 0.0  # of the windows that have up to half of their slots filled
    markers: frozenset[int] = frozenset()  # no text: nothing is drafted across them

    def collate(self, texts: Sequence[Text], rng: random.Random) -> Batch:
        """One batch with random anchors."""
        width = max(len(text.ids) for text in texts)
        ids = torch.tensor([text.ids + [0] * (width - len(text.ids)) for text in texts])
        drawn = [self._draw(text, rng) for text in texts]
        most = max(len(at) for at, _, _ in drawn)
        at = torch.ones(len(texts), most, dtype=torch.int64)
        targets = torch.full((len(texts), most, self.window), IGNORE)
        filled = torch.zeros_like(at)
        for row, (places, following, shown) in enumerate(drawn):
            at[row, : len(places)], targets[row, : len(places)], filled[row, : len(places)] = (
                places,
                following,
                shown,
            )
        return Batch(ids, at, targets, filled)

    def _draw(self, text: Text, rng: random.Random) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        places, following = self.all_of(text)
        chosen = torch.tensor(
            sorted(rng.sample(range(len(places)), min(self.count, len(places)))), dtype=torch.int64
        )
        known = (following[chosen] != IGNORE).sum(1).tolist()
        shown = [min(self._fill(rng), n - 1) for n in known]
        return places[chosen], following[chosen], torch.tensor(shown, dtype=torch.int64)

    def _fill(self, rng: random.Random) -> int:
        return rng.randint(1, self.window // 2) if rng.random() < self.fill_share else 0

    def all_of(self, text: Text) -> tuple[torch.Tensor, torch.Tensor]:
        """Every place (N,) of a text that can be an anchor, with the tokens after it (N, W)."""
        ids = torch.tensor(text.ids)
        marker = torch.isin(ids, torch.tensor(sorted(self.markers), dtype=ids.dtype))
        after = F.pad(ids.masked_fill(marker, IGNORE)[1:], (0, self.window), value=IGNORE).unfold(
            0, self.window, 1
        )
        after = after.masked_fill((after == IGNORE).cumsum(1) > 0, IGNORE)  # (T, W)
        usable = ~marker & (after[:, 0] != IGNORE)
        usable[: text.first] = False
        return usable.nonzero()[:, 0], after[usable]


class Maker(Protocol):
    """Turns a hole into token ids."""

    def tokens(self, hole: Hole, rng: random.Random) -> tuple[list[int], list[int]]:
        """Context ids and middle ids."""
        ...


@dataclass(frozen=True)
class Files:
    """Real files, each drawn in proportion to the square root of its size, cut as a cursor cuts them."""

    texts: Sequence[str]
    maker: Maker

    @cached_property
    def cumulative(self) -> list[float]:
        return list(itertools.accumulate(len(text) ** 0.5 for text in self.texts))

    def text(self, rng: random.Random) -> Text:
        """One file with its middle in its place; anchors may be anywhere."""
        chosen = rng.choices(self.texts, cum_weights=self.cumulative)[0]
        context, middle = self.maker.tokens(cut(chosen, rng), rng)
        return Text(context + middle, 1)


class Mixture:
    """Batches by step number, so that a resumed run sees what an unbroken one would have seen.

    A share of the rows is real text; the rest are windows, each in proportion to the anchors that it has room
    for.
    """

    def __init__(
        self,
        windows: Windows,
        anchors: Anchors,
        seed: int,
        files: Files | None = None,
        share: float = 0.0,
        epoch: int = 0,
    ) -> None:
        """``epoch``: steps after which the same batches come again; 0: none does."""
        self.windows, self.anchors, self.seed, self.files, self.share = windows, anchors, seed, files, share
        self.epoch = epoch
        room = (windows.middles() - 1).clamp(0, anchors.count)
        self.cumulative = list(itertools.accumulate(room.tolist()))

    def batch(self, step: int, rows: int) -> Batch:
        """The batch of one step."""
        rng = random.Random(f"{self.seed}/{step % self.epoch if self.epoch else step}")
        return self.anchors.collate([self._text(rng) for _ in range(rows)], rng)

    def _text(self, rng: random.Random) -> Text:
        if self.files and rng.random() < self.share:
            return self.files.text(rng)
        return written(self.windows, rng.choices(range(len(self.windows)), cum_weights=self.cumulative)[0])


def written(windows: Windows, index: int) -> Text:
    """A window as a text; its first anchor is the first token that the target wrote."""
    context, middle, _ = windows[index]
    return Text(context + middle, len(context))
