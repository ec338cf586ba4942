"""One step of training of a canvas adapter on a frozen coder.

Leading masks learn the frozen coder's own next-token law (KL); masks that see later text learn the text
(cross entropy).
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from models.training.canvas_data import Examples, Work, plans, work
from models.training.canvas_model import Clean, Coder


@dataclass(frozen=True)
class Recipe:
    """What a run does."""

    seed: int = 1
    fresh: int = 2  # documents a step that are new
    lag: int = 12  # steps after which they come a second time, with other canvases
    rows: int = 128  # canvas rows a document
    blocks: str = "8,8,16"  # sizes of a canvas, one step after the other
    attention_rank: int = 32
    mlp_rank: int = 16
    scale: float = 4.0
    lr: float = 3e-4
    warmup_steps: int = 50
    decay_steps: int = 0  # the rate falls to zero over so many steps from ``decay_from`` on
    decay_from: int = 0
    place_decay: float = 0.85  # weight of a draft's place over that of the one before
    words: int = 12_288  # frequent tokens that every step scores
    sampled_words: int = 6_144  # others, drawn anew at each step
    clip: float = 1.0
    average: float = 0.95
    shuffled_teacher: bool = False  # control: each row learns what belongs to another

    def ranks(self) -> dict[str, int]:
        ranks = {
            "qkv": self.attention_rank,
            "out": self.attention_rank,
            "gate_up": self.mlp_rank,
            "down": self.mlp_rank,
        }
        return {name: rank for name, rank in ranks.items() if rank}

    def sizes(self) -> tuple[int, ...]:
        """Canvas sizes, each once."""
        return tuple(sorted({int(size) for size in self.blocks.split(",")}))

    def block(self, step: int) -> int:
        sizes = self.blocks.split(",")
        return int(sizes[step % len(sizes)])

    def rate(self, step: int) -> float:
        falling = (self.decay_from + self.decay_steps - step) / self.decay_steps if self.decay_steps else 1.0
        return self.lr * min(1.0, (step + 1) / self.warmup_steps, max(0.0, falling))


class Trainer:
    """The adapter, its optimiser, and one step."""

    def __init__(self, coder: Coder, examples: Examples, frequent: torch.Tensor, recipe: Recipe) -> None:
        self.coder, self.examples, self.recipe = coder, examples, recipe
        self.adapter = coder.adapter(recipe.ranks(), recipe.scale, recipe.seed)
        self.average = coder.adapter(recipe.ranks(), recipe.scale, recipe.seed).requires_grad_(
            requires_grad=False
        )
        self.optimiser = torch.optim.AdamW(
            self.adapter.parameters(), lr=recipe.lr, betas=(0.9, 0.95), weight_decay=0.0
        )
        self.frequent = frequent
        self.texts: dict[int, Clean] = {}

    def step(self, number: int) -> dict[str, float]:
        """One update. Raises ``FloatingPointError`` when the gradient is zero or not finite."""
        documents, size = self._documents(number), self.recipe.block(number)
        examples = {n: self.examples(n) for n in documents}
        texts = {n: self.texts.get(n) or self.coder.clean(e.ids) for n, e in examples.items()}
        self.texts = {n: t for n, t in (self.texts | texts).items() if n >= documents[0]}
        works = [
            work(
                e,
                plans(e, self.recipe.rows // size, size, self._rng(number, n)),
                self.examples.markers.end,
                self.coder.device,
            )
            for n, e in examples.items()
        ]
        losses = self.losses(list(texts.values()), works, number)
        losses["loss"].backward()  # type: ignore[no-untyped-call]
        self._update(number)
        return {name: float(value.detach()) for name, value in losses.items()}

    def _documents(self, number: int) -> list[int]:
        """Numbers of a step's documents: those of ``lag`` steps ago, and new ones."""
        again = [max(0, number - self.recipe.lag)] if number >= self.recipe.lag else []
        return [step * self.recipe.fresh + i for step in (*again, number) for i in range(self.recipe.fresh)]

    def _rng(self, step: int, document: int) -> random.Random:
        return random.Random(f"{self.recipe.seed} canvases {step} {document}")

    def losses(self, texts: list[Clean], works: list[Work], number: int) -> dict[str, torch.Tensor]:
        """Weighted mean loss, and its two parts as plain means."""
        hidden = self.coder.denoise(self.adapter, texts, [w.canvases for w in works])
        targets = torch.cat([w.targets for w in works])
        teachers = torch.cat([w.teacher for w in works])
        taught = torch.cat([t.hidden[w.teacher.clamp(min=0)] for t, w in zip(texts, works, strict=True)])
        starts = torch.cat([w.canvases.positions - _first_positions(w) for w in works])
        chosen = targets >= 0
        words, shift, known = self._words(targets[chosen], number)
        logits = self.coder.logits(hidden[chosen], words) + shift
        with torch.no_grad():
            teacher = (self.coder.logits(taught[chosen], words) + shift).softmax(-1)
        place = torch.searchsorted(words[:known], targets[chosen])
        leading = teachers[chosen] >= 0
        if self.recipe.shuffled_teacher:
            teacher, place = teacher.roll(1, 0), place.roll(1, 0)
        text_loss = F.cross_entropy(logits, place, reduction="none")
        law_loss = -(teacher * logits.log_softmax(-1)).sum(-1) + torch.special.xlogy(teacher, teacher).sum(-1)
        weights = torch.where(leading, self.recipe.place_decay ** starts[chosen], 1.0)
        loss = (torch.where(leading, law_loss, text_loss) * weights).sum() / weights.sum()
        right = (logits.argmax(-1) == place).float()
        first = leading & (starts[chosen] == 0)
        return {
            "loss": loss,
            "kl": law_loss[leading].mean().detach(),
            "text": text_loss[leading].mean().detach(),
            "infill": text_loss[~leading].mean().detach(),
            "first_right": right[first].mean(),
            "infill_right": right[~leading].mean(),
            "taught": chosen.sum(),
        }

    def _words(self, targets: torch.Tensor, number: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Tokens that are scored, an offset for the logits of sampled ones, and the number not sampled."""
        known = torch.unique(torch.cat([self.frequent, targets]))
        size = len(self.coder.head)
        generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + number)
        drawn = torch.unique(torch.randint(size, (self.recipe.sampled_words,), generator=generator)).to(
            known.device
        )
        drawn = drawn[~torch.isin(drawn, known)]
        shift = torch.zeros(len(known) + len(drawn), device=known.device)
        shift[len(known) :] = math.log(max(1, size - len(known)) / max(1, len(drawn)))
        return torch.cat([known, drawn]), shift, len(known)

    def _update(self, number: int) -> None:
        norm = float(torch.nn.utils.clip_grad_norm_(self.adapter.parameters(), self.recipe.clip))
        if not 0 < norm < math.inf:
            raise FloatingPointError(
                f"the gradient's norm is {norm} at step {number}: lower the rate and resume"
            )
        self.optimiser.param_groups[0]["lr"] = self.recipe.rate(number)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        with torch.no_grad():
            weight = max(1 - self.recipe.average, 1 / (number + 2))
            for slow, fast in zip(self.average.parameters(), self.adapter.parameters(), strict=True):
                slow.lerp_(fast, weight)


def _first_positions(rows: Work) -> torch.Tensor:
    """Position of the first place of each row's canvas: the first text position that the row does not see."""
    text = rows.canvases.mask.shape[1] - rows.canvases.mask.shape[0]
    return rows.canvases.mask[:, :text].sum(1)
