"""Measures of the canvas adapter on development spans.

Survival of drafts by place, and right guesses at random masks.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from torch.nn import functional as F

from models.training.canvas_data import Example, Examples, Plan, plans, work
from models.training.canvas_model import Adapter, Coder

WINDOW = 4  # masks of a draft
ANCHORS = (1, 4, 7)  # places of the coder's own text from which a draft is measured
GREEDY_TOKENS = 16


def greedy(coder: Coder, example: Example, tokens: int) -> Example:
    """The prompt of an example with the coder's own greedy middle, up to its end token or ``tokens``."""
    prompt = list(example.ids[: example.prompt])
    text = coder.clean(prompt)
    ids = list(prompt)
    for _ in range(tokens):
        ids.append(int(coder.logits(text.hidden[-1:]).argmax()))
        text = coder.clean(ids[-1:], text.kv)
    return Example(tuple(ids), example.prompt)


class Development:
    """Fixed spans of packages that are never trained on, as written and as the coder continues them."""

    def __init__(self, coder: Coder, examples: Examples, count: int, path: Path) -> None:
        self.coder, self.end = coder, examples.prompts.end
        self.written = [examples(number) for number in range(count)]
        if not path.exists():
            path.write_text(
                json.dumps([greedy(coder, example, GREEDY_TOKENS).ids for example in self.written])
            )
        stored = json.loads(path.read_text())
        self.own = [Example(tuple(ids), e.prompt) for ids, e in zip(stored, self.written, strict=True)]

    @torch.no_grad()
    def measure(self, adapter: Adapter) -> dict[str, float]:
        """Survival of drafted places, tokens a cycle of two passes, share and loss of right infills."""
        draft = torch.stack([s for example in self.own for s in self._survival(adapter, example)]).mean(0)
        infills = [self._infill(adapter, example, number) for number, example in enumerate(self.written[::3])]
        right, loss, leading = (torch.cat(column) for column in zip(*infills, strict=True))
        return {f"survival_{i + 1}": value for i, value in enumerate(draft.tolist())} | {
            "tokens_a_cycle": 2 + float(draft.sum()),
            "infill_right": float(right[~leading].float().mean()),
            "infill_loss": float(loss[~leading].mean()),
            "leading_loss": float(loss[leading].mean()),
        }

    def _survival(self, adapter: Adapter, example: Example) -> list[torch.Tensor]:
        """For each anchor, whether the drafts up to each place are the coder's own tokens (WINDOW,)."""
        known = example.middle.index(self.end) + 1 if self.end in example.middle else len(example.middle)
        chosen = [Plan(start, (True,) * WINDOW) for start in ANCHORS if start < known - 1]
        if not chosen:
            return []
        text = self.coder.clean(example.ids)
        rows = work(example, chosen, self.end, self.coder.device)
        hidden = self.coder.denoise(adapter, [text], [rows.canvases])
        previous = self.coder.embedding[
            rows.previous
        ]  # what is right so far: a wrong one has ended the draft
        guesses = self.coder.logits(adapter.after(hidden, previous)).argmax(-1).view(len(chosen), WINDOW)
        survived = []
        for plan, guess in zip(chosen, guesses.tolist(), strict=True):
            truth = list(example.middle[plan.start + 1 : min(known, plan.start + 1 + WINDOW)])
            right = [int(g == t) for g, t in zip(guess, truth, strict=False)] + [0] * (WINDOW - len(truth))
            survived.append(torch.tensor(right, dtype=torch.float32).cumprod(0))
        return survived

    def _infill(
        self, adapter: Adapter, example: Example, number: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of every open place: whether the guess is right, its loss, and whether nothing later is visible."""
        rows = work(example, plans(example, 64, 16, random.Random(number)), self.end, self.coder.device)
        hidden = self.coder.denoise(adapter, [self.coder.clean(example.ids)], [rows.canvases])
        chosen = rows.targets >= 0
        logits, targets = self.coder.logits(hidden[chosen]), rows.targets[chosen]
        return (
            logits.argmax(-1) == targets,
            F.cross_entropy(logits, targets, reduction="none"),
            rows.teacher[chosen] >= 0,
        )
