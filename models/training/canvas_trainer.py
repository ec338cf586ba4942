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

from models.training.canvas_data import Example, Examples, Work, plans, work
from models.training.canvas_model import Clean, Coder
from models.training.losses import streak

STREAK_INFILL = 0.25  # weight of infills beside the streak


@dataclass(frozen=True)
class Recipe:
    """What a run does."""

    seed: int = 1
    fresh: int = 2  # documents a step that are new
    lag: int = 12  # steps after which they come a second time, with other canvases
    rows: int = 160  # canvas rows a document
    blocks: str = "8,8,16"  # sizes of a canvas, one step after the other
    drafts: str = "1,2,4"  # sizes of a draft, one step after the other; 0: that of a canvas
    draft_share: float = 0.75  # of the rows
    sampler: int = 896  # width of the network that sees the token before a place; 0: none
    foreign: float = 0.05  # weight of a draft's place after tokens that the coder would not have written
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
    streak: bool = False  # leading masks learn the expected length of an accepted draft
    shuffled_teacher: bool = False  # control: each row learns what belongs to another document

    def ranks(self) -> dict[str, int]:
        ranks = {
            "qkv": self.attention_rank,
            "out": self.attention_rank,
            "gate_up": self.mlp_rank,
            "down": self.mlp_rank,
        }
        return {name: rank for name, rank in ranks.items() if rank}

    def sizes(self) -> tuple[int, ...]:
        """Sizes of canvases and drafts, each once."""
        every = [int(size) for size in f"{self.blocks},{self.drafts}".split(",")]
        return tuple(sorted({size for size in every if size}))

    def block(self, step: int) -> int:
        return _in_turn(self.blocks, step)

    def draft(self, step: int) -> tuple[float, int]:
        return self.draft_share, _in_turn(self.drafts, step)

    def rate(self, step: int) -> float:
        falling = (self.decay_from + self.decay_steps - step) / self.decay_steps if self.decay_steps else 1.0
        return self.lr * min(1.0, (step + 1) / self.warmup_steps, max(0.0, falling))


class Trainer:
    """The adapter, its optimiser, and one step."""

    def __init__(self, coder: Coder, examples: Examples, frequent: torch.Tensor, recipe: Recipe) -> None:
        self.coder, self.examples, self.recipe = coder, examples, recipe
        self.adapter, self.average = (
            coder.adapter(recipe.ranks(), recipe.scale, recipe.seed, recipe.sampler) for _ in range(2)
        )
        self.average.requires_grad_(requires_grad=False)
        self.optimiser = torch.optim.AdamW(
            self.adapter.parameters(), lr=recipe.lr, betas=(0.9, 0.95), weight_decay=0.0
        )
        self.frequent = frequent
        self.texts: dict[int, Clean] = {}
        self.own: dict[int, list[bool]] = {}

    def step(self, number: int) -> dict[str, float]:
        """One update. Raises ``FloatingPointError`` when the gradient is zero or not finite."""
        documents, size = self._documents(number), self.recipe.block(number)
        examples = {n: self.examples(n) for n in documents}
        texts = {n: self.texts.get(n) or self.coder.clean(e.ids) for n, e in examples.items()}
        self.own |= {n: self._own(e, texts[n]) for n, e in examples.items() if n not in self.own}
        self.texts = {n: t for n, t in (self.texts | texts).items() if n >= documents[0]}
        self.own = {n: self.own[n] for n in self.texts}
        works = []
        for n, e in examples.items():
            chosen = plans(
                e, self.recipe.rows, size, self._rng(number, n), self.own[n], self.recipe.draft(number)
            )
            works.append(work(e, chosen, self.examples.prompts.end, self.coder.device, self.own[n]))
        losses = self.losses(list(texts.values()), works, number)
        losses["loss"].backward()  # type: ignore[no-untyped-call]
        self._update(number)
        return {name: float(value.detach()) for name, value in losses.items()}

    @torch.no_grad()
    def _own(self, example: Example, text: Clean) -> list[bool]:
        """For each token, whether it is the coder's likeliest (of frequent tokens and those of the text)."""
        ids = torch.tensor(example.ids, device=self.coder.device)
        words = torch.unique(torch.cat([self.frequent, ids]))
        guesses = words[self.coder.logits(text.hidden[:-1], words).argmax(-1)]
        return [False, *(guesses == ids[1:]).tolist()]

    def _documents(self, number: int) -> list[int]:
        """Numbers of a step's documents: those of ``lag`` steps ago, and new ones."""
        again = [max(0, number - self.recipe.lag)] if number >= self.recipe.lag else []
        return [step * self.recipe.fresh + i for step in (*again, number) for i in range(self.recipe.fresh)]

    def _rng(self, step: int, document: int) -> random.Random:
        return random.Random(f"{self.recipe.seed} canvases {step} {document}")

    def losses(self, texts: list[Clean], works: list[Work], number: int) -> dict[str, torch.Tensor]:
        """Weighted mean loss, and its parts as plain means."""
        hidden = self.coder.denoise(self.adapter, texts, [w.canvases for w in works])
        targets = torch.cat([w.targets for w in works])
        chosen = targets >= 0
        teachers, previous, expected = (
            torch.cat([getattr(w, name) for w in works])[chosen]
            for name in ("teacher", "previous", "expected")
        )
        taught = torch.cat([t.hidden[w.teacher.clamp(min=0)] for t, w in zip(texts, works, strict=True)])
        starts = torch.cat([w.canvases.positions - _first_positions(w) for w in works])[chosen]
        words, shift, known = self._words(targets[chosen], number)
        hidden = hidden[chosen]
        informed = self.adapter.after(hidden, self.coder.embedding[previous])
        with torch.no_grad():
            teacher = (self.coder.logits(taught[chosen], words) + shift).softmax(-1)
        place = torch.searchsorted(words[:known], targets[chosen])
        leading = teachers >= 0
        if self.recipe.shuffled_teacher:
            other = len(place) // 2  # rows lie by document: so many further on is another one's
            teacher, place = teacher.roll(other, 0), place.roll(other, 0)
        weights = torch.where(leading, self.recipe.place_decay**starts, 1.0)
        weights = weights * torch.where(leading & ~expected, self.recipe.foreign, 1.0)
        weights = weights / weights.sum()
        values: dict[str, torch.Tensor] = {}
        loss = torch.zeros((), device=hidden.device)
        first = leading & (starts == 0) & expected
        for name, rows in {"": hidden, "informed_": informed}.items():
            if name and not self.adapter.sampler:
                continue
            logits = self.coder.logits(rows, words) + shift
            text_loss = F.cross_entropy(logits, place, reduction="none")
            entropy = torch.special.xlogy(teacher, teacher).sum(-1)
            law_loss = entropy - (teacher * logits.log_softmax(-1)).sum(-1)
            if not self.recipe.streak:
                loss = loss + (torch.where(leading, law_loss, text_loss) * weights).sum()
            else:
                loss = loss + STREAK_INFILL * text_loss[~leading].mean()
                if rows is informed:
                    asked = leading & expected
                    loss = loss + streak_of(logits[asked], teacher[asked].argmax(-1), starts[asked])
            agrees = (logits.argmax(-1) == teacher.argmax(-1)).float()
            values |= {
                f"{name}kl": law_loss[leading & expected].mean().detach(),
                f"{name}infill": text_loss[~leading].mean().detach(),
                f"{name}first_agrees": agrees[first].mean(),
                f"{name}infill_right": (logits.argmax(-1) == place).float()[~leading].mean(),
            }
        return {"loss": loss} | values | {"taught": chosen.sum(), "expected": (leading & expected).sum()}

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


def streak_of(logits: torch.Tensor, own: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    """Streak loss of drafts (arXiv 2511.00606): less the expected number of tokens that would be accepted.

    ``logits`` (N, V) and ``own`` (N,), the frozen coder's own token, of the places of drafts one after the
    other; ``starts`` (N,): the number of the place in its draft.
    """
    log_q = logits.log_softmax(-1).gather(-1, own[:, None])[:, 0]
    draft = (starts == 0).cumsum(0) - 1
    shape = int(draft[-1]) + 1, int(starts.max()) + 1
    places = log_q.new_zeros(shape).index_put((draft, starts), log_q)
    learn = torch.zeros(shape, dtype=torch.bool, device=starts.device)
    return streak(places, learn.index_put((draft, starts), torch.ones_like(starts, dtype=torch.bool)))


def _in_turn(sizes: str, step: int) -> int:
    every = sizes.split(",")
    return int(every[step % len(every)])


def _first_positions(rows: Work) -> torch.Tensor:
    """Position of the first place of each row's canvas: the first text position that the row does not see."""
    text = rows.canvases.mask.shape[1] - rows.canvases.mask.shape[0]
    return rows.canvases.mask[:, :text].sum(1)
