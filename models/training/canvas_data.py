"""Training examples of the canvas adapter.

Files cut the way a cursor cuts them, and canvases over their middles.

Everything about example number n follows from the seed and n, so that a run can be resumed at any step.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from models.training.canvas_model import Canvases
from models.training.canvas_prompts import CHARS_PER_TOKEN, Prompts
from models.training.holes import Hole, block, characters, in_line, line_tail, lines

MASK = -1
NO_TARGET = -100
CUTS = {
    "lines": (lines, 0.35),
    "block": (block, 0.25),
    "line_tail": (line_tail, 0.2),
    "in_line": (in_line, 0.1),
    "characters": (characters, 0.1),
}
SHORT_TOKENS = 12  # a middle below that gives little to predict for the price of its context
KEEP_SHORT = 0.3
FIRST_DRAFT = 16  # tokens of a prompt, or of a prefix that comes last, before its first draft
LATE = 0.1  # share of the canvases that may start anywhere up to the end
MASK_RATIOS = (0.1, 1.0)


@dataclass(frozen=True)
class Example:
    """A prompt with its middle.

    ``ids`` is prompt and middle, with the end token if the middle was not cut short. The middle begins with
    the end of the prefix where the coder heals tokens.
    """

    ids: tuple[int, ...]
    prompt: int  # length of the prompt in tokens
    prefix_at: int = 0  # where the prefix begins, if the prompt ends with it

    @property
    def middle(self) -> tuple[int, ...]:
        return self.ids[self.prompt :]


@dataclass(frozen=True)
class Plan:
    """One canvas: its first place in the middle, which places are masked, and whether all of them are."""

    start: int
    masked: tuple[bool, ...]

    @property
    def draft(self) -> bool:
        return all(self.masked)


@dataclass(frozen=True)
class Work:
    """Canvases of one example as tensors.

    ``targets`` (R,): the token that a row must predict; ``teacher`` (R,): the text row whose next-token law
    is the target distribution, or -1 where the text itself is the target. ``previous`` (R,): the token of the
    text at the row's own place, which is before the one to predict. ``expected`` (R,): whether the coder
    itself would have written all that the text has between what the row sees and what it must predict.
    """

    canvases: Canvases
    targets: torch.Tensor
    teacher: torch.Tensor
    previous: torch.Tensor
    expected: torch.Tensor


class Examples:
    """Documents by language, cut and tokenised on demand."""

    def __init__(
        self,
        documents: Mapping[str, Sequence[str]],
        shares: Mapping[str, float],
        prompts: Prompts,
        seed: int,
        middle_tokens: int = 64,
        before: tuple[int, int] = (48, 384),
        after: tuple[int, int] = (8, 160),
    ) -> None:
        """``before``, ``after``: fewest and most tokens of a prefix and of a suffix."""
        self.documents, self.prompts = documents, prompts
        self.shares, self.seed, self.middle_tokens = shares, seed, middle_tokens
        self.before, self.after = before, after

    def __call__(self, number: int) -> Example:
        """Example ``number``; its middle has at least one token."""
        rng = random.Random(f"{self.seed} example {number}")
        while True:
            language = rng.choices(list(self.shares), list(self.shares.values()))[0]
            example = self._cut(rng.choice(self.documents[language]), rng)
            if example is not None and (len(example.middle) >= SHORT_TOKENS or rng.random() < KEEP_SHORT):
                return example

    def _cut(self, text: str, rng: random.Random) -> Example | None:
        kind = rng.choices(list(CUTS), [weight for _, weight in CUTS.values()])[0]
        start, end = CUTS[kind][0](text, rng)
        if start >= end:
            return None
        before, after = _log_uniform(rng, *self.before), _log_uniform(rng, *self.after)
        return example_of(Hole(text, start, end, kind), self.prompts, before, after, self.middle_tokens)


def example_of(hole: Hole, prompts: Prompts, before: int, after: int, middle_tokens: int = 64) -> Example:
    """The prompt of a hole, with ``before`` and ``after`` tokens of its sides at most, and its middle."""
    prompt = prompts.cut(hole.text[: hole.start], hole.text[hole.end :], before, after)
    spelled = prompt.held + hole.middle[: middle_tokens * CHARS_PER_TOKEN]
    middle = [*prompts.encode(spelled), prompts.end][:middle_tokens]
    return Example((*prompt.ids, *middle), len(prompt.ids), prompt.prefix_at)


def plans(
    example: Example,
    rows: int,
    size: int,
    rng: random.Random,
    own: Sequence[bool] = (),
    draft: tuple[float, int] = (0.5, 0),
) -> list[Plan]:
    """Canvases of about ``rows`` rows in all: drafts, all masks, then canvases of ``size`` with random masks.

    ``own``: for each token of the example, whether the coder would have written it; drafts start at such
    places alone, since a draft that follows another token is never used: in the middle first, then also in
    the prompt (places below 0). ``draft``: their share of the rows, and their size (0: ``size``). Few
    canvases reach far over the end.
    """
    length = len(example.middle)
    share, draft_size = draft[0], draft[1] or size
    count = round(rows * share) // draft_size
    early = range(max(1, length - size // 2))
    last = max(1, length - max(1, draft_size // 2))
    starts = [i for i in range(last) if not own or own[example.prompt + i]]
    others = [
        i
        for i in range(example.prefix_at + FIRST_DRAFT - example.prompt, 0)
        if own and own[example.prompt + i]
    ]
    drafts = rng.sample(starts, min(len(starts), count))
    drafts += rng.sample(others, min(len(others), count - len(drafts)))
    chosen = [Plan(start, (True,) * draft_size) for start in drafts]
    for _ in range(round(rows * (1 - share)) // size):
        ratio = rng.uniform(*MASK_RATIOS)
        start = rng.randrange(length) if rng.random() < LATE else rng.choice(early)
        chosen.append(Plan(start, (True, *(rng.random() < ratio for _ in range(size - 1)))))
    return chosen


def work(
    example: Example, chosen: Sequence[Plan], end: int, device: str = "cpu", own: Sequence[bool] = ()
) -> Work:
    """Rows, masks and targets of canvases that follow one text (rows keep the next-token shift)."""
    rows = [row for plan in chosen for row in _rows(example, plan, end, own)]
    ids, positions, targets, teacher, previous, expected = (
        torch.tensor(column, device=device) for column in zip(*rows, strict=True)
    )
    owner = torch.arange(len(chosen), device=device).repeat_interleave(
        torch.tensor([len(p.masked) for p in chosen], device=device)
    )
    starts = torch.tensor([example.prompt + p.start for p in chosen], device=device)[owner]
    text = torch.arange(len(example.ids), device=device)[None] < starts[:, None]
    canvases = Canvases(ids, positions, torch.cat([text, owner[:, None] == owner], 1))
    return Work(canvases, targets, teacher, previous, expected)


def _rows(
    example: Example, plan: Plan, end: int, own: Sequence[bool]
) -> list[tuple[int, int, int, int, int, bool]]:
    """Id, position, target, teacher row, token before the target, and whether it was expected, of each place.

    After the end of the middle, all places are masked and none has a target.
    """
    ids, size = example.ids, len(plan.masked)
    places = range(example.prompt + plan.start, example.prompt + plan.start + size)
    ended = [i for i, token in enumerate(ids) if token == end and i >= example.prompt]
    known_until = ended[0] if ended else len(ids)
    shown = [not masked and place < known_until for place, masked in zip(places, plan.masked, strict=True)]
    result = []
    expected = True
    for i, place in enumerate(places):
        following = place + 1
        open_place = following < len(ids) and (i + 1 == size or not shown[i + 1])
        leading = not any(shown)
        target = ids[following] if open_place else NO_TARGET
        teacher = place if open_place and leading else -1
        previous = ids[place] if place < len(ids) else 0
        expected = expected and place < len(ids) and (not own or own[place])
        result.append((previous if shown[i] else MASK, place, target, teacher, previous, expected))
    return result


def _log_uniform(rng: random.Random, low: int, high: int) -> int:
    return round(low * math.exp(rng.random() * math.log(high / low)))
