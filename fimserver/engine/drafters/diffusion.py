"""Knows how a window of masked positions is drafted in a few denoising steps. Knows nothing of how it is verified.

SpecDiff (arXiv 2408.05636): a window of masks after the text is filled in T steps and verified at once. SpecDiff-2 (arXiv
2511.00606): several joint drafts of one set of marginals are verified together. ``Window`` is the seam: who predicts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from fimserver.engine.drafts import Draft, Drafter, Line, draft_from


class Window(Protocol):
    """Predicts the places after the text: a block drafter, the target's own canvas, another model's canvas."""

    longest: int

    def predict(self, line: Line, slots: Sequence[int | None]) -> torch.Tensor:
        """Logits (n, V of the target) about each of n slots after ``line.ids``; ``None`` is a masked slot."""
        ...


class DiffusionDrafter:
    """A window of up to ``size`` slots filled from the left in ``steps`` steps, as ``drafts`` joint drafts.

    ``first`` gives the first tokens of the window where there is one (for weak windows, SpecDiff section 4).
    """

    name = "diffusion"
    inline = True

    def __init__(self, window: Window, size: int, steps: int, drafts: int, first: Drafter | None = None) -> None:
        self.window, self.size, self.steps, self.drafts, self.first = window, size, steps, drafts, first

    @torch.inference_mode()
    def propose(self, line: Line, size: int) -> list[Draft]:
        size = min(size, self.size, self.window.longest)
        if size < 1:
            return []
        slots: list[int | None] = [None] * size
        slots[: size // 2] = self._given(line, size // 2)
        slots += [None] * (size - len(slots))
        given = sum(slot is not None for slot in slots)
        for step in range(self.steps):
            logits = self.window.predict(line, slots)
            draft = draft_from(self.name, logits, line)
            settled = max(given, -(-size * (step + 1) // self.steps))
            slots = [*draft.tokens[:settled], *[None] * (size - settled)]
        return joint_drafts(draft, logits, line, self.drafts)

    def observe(self, line: Line, *, ended: bool) -> None:
        if self.first:
            self.first.observe(line, ended=ended)

    def _given(self, line: Line, size: int) -> list[int]:
        drafts = self.first.propose(line, size) if self.first else []
        return list(drafts[0].tokens) if drafts else []


def joint_drafts(best: Draft, logits: torch.Tensor, line: Line, count: int) -> list[Draft]:
    """``count`` joint drafts of the same marginals (self-selection): those that together are accepted furthest.

    Where tokens follow from the logits, the others differ from ``best`` in one place each, the places where the second
    choice is most likely to be reached and right. Where tokens are drawn, they are drawn independently, which keeps
    recursive rejection exact; choosing among them by the target's scores would not (reference: specdec.md 3.2).
    """
    if best.marginals is not None:
        return [best, *(draft_from(best.source, logits, line) for _ in range(count - 1))]
    if count == 1:
        return [best]
    tokens = torch.tensor(best.tokens, device=logits.device)[:, None]
    laws = logits.float().softmax(-1)
    right = laws.gather(-1, tokens)[:, 0]
    second = laws.scatter(-1, tokens, 0.0).max(-1)
    reached = torch.cat([right.new_ones(1), right.cumprod(0)[:-1]])
    places = (reached * second.values).topk(min(count - 1, len(tokens))).indices.tolist()
    return [best, *(_instead(best, place, int(second.indices[place]), float(second.values[place])) for place in places)]


def _instead(draft: Draft, place: int, token: int, probability: float) -> Draft:
    grade = min(9, int(10 * probability))
    tokens = (*draft.tokens[:place], token, *draft.tokens[place + 1 :])
    return draft._replace(tokens=tokens, grades=(*draft.grades[:place], grade, *draft.grades[place + 1 :]))
