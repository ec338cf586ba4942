"""Diffusion drafter: fills a window of masks after the text in a few denoising steps.

SpecDiff (arXiv 2408.05636) fills the window in T steps and verifies it at once. SpecDiff-2 (arXiv 2511.00606)
verifies several joint drafts of one set of marginals together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from fimserver.engine.sampling import Words
from fimserver.engine.speculation.drafts import DecodeState, Draft, Drafter, draft_from


class DraftWindow(Protocol):
    """Predicts the slots after the text; ``longest``: most slots."""

    longest: int

    @property
    def words(self) -> Words | None:
        """The tokens that it can predict; ``None``: all of the target's."""
        ...

    def predict(self, state: DecodeState, slots: Sequence[int | None]) -> torch.Tensor:
        """Return logits (n, number of words) of n slots after ``state.ids``; ``None`` is a masked slot."""
        ...


class DiffusionDrafter:
    """Fills a window of up to ``size`` slots from the left in ``steps`` steps; makes ``drafts`` joint drafts.

    ``first``: drafts up to half of the window beforehand (for weak windows, SpecDiff section 4).
    """

    name = "diffusion"
    inline = True

    def __init__(
        self, window: DraftWindow, size: int, steps: int, drafts: int, first: Drafter | None = None
    ) -> None:
        self.window = window
        self.size = size
        self.steps = steps
        self.drafts = drafts
        self.first = first
        self.keeps_text = first is not None and first.keeps_text

    @torch.inference_mode()
    def propose(self, state: DecodeState, size: int) -> list[Draft]:
        size = min(size, self.size, self.window.longest)
        if size < 1:
            return []
        best, logits = self.denoise(state, size)
        if best.marginals is not None:  # only independent draws keep recursive rejection exact
            return [best, *(self.denoise(state, size)[0] for _ in range(self.drafts - 1))]
        return joint_drafts(best, logits, self.drafts, self.window.words)

    def denoise(self, state: DecodeState, size: int) -> tuple[Draft, torch.Tensor]:
        """Fill a window from the left; filled slots stay.

        Returns the draft, and logits (n, number of words) of the slots that ``first`` has not filled.
        """
        draft = self._given(state, size // 2)
        rows = list[torch.Tensor]()
        for step in range(self.steps):
            known = len(draft.tokens)
            end = max(known + 1, -(-size * (step + 1) // self.steps))
            slots = [*draft.tokens, *[None] * (size - known)]
            rows.append(self.window.predict(state, slots)[known:end])
            draft = joined(draft, draft_from(self.name, rows[-1], state, known, self.window.words))
            if len(draft.tokens) == size:
                break
        return draft, torch.cat(rows)

    def observe(self, state: DecodeState, *, ended: bool) -> None:
        if self.first:
            self.first.observe(state, ended=ended)

    def _given(self, state: DecodeState, size: int) -> Draft:
        drafts = self.first.propose(state, size) if self.first else []
        return drafts[0] if drafts else Draft(self.name, (), ())


def joined(one: Draft, two: Draft) -> Draft:
    """Concatenate two drafts; the result keeps the second's name.

    A part without probabilities counts as one-hot.
    """
    marginals = None
    if one.marginals is not None or two.marginals is not None:
        some = one.marginals if one.marginals is not None else two.marginals
        assert some is not None
        marginals = torch.cat([_distribution(part, some) for part in (one, two)])
    return Draft(two.source, one.tokens + two.tokens, one.grades + two.grades, marginals)


def _distribution(draft: Draft, like: torch.Tensor) -> torch.Tensor:
    if draft.marginals is not None:
        return draft.marginals
    tokens = torch.tensor(draft.tokens, dtype=torch.long, device=like.device)
    return torch.nn.functional.one_hot(tokens, like.shape[-1]).to(like.dtype)


def joint_drafts(best: Draft, logits: torch.Tensor, count: int, words: Words | None = None) -> list[Draft]:
    """Make up to ``count`` joint drafts from the same marginals (self-selection of SpecDiff-2).

    The others differ from ``best`` in one token each, where the second choice is most likely to be reached
    and right. ``logits`` (n, V), or (n, number of ``words``), are of its last n tokens. All drafts are
    verified: choosing one of them by the target's scores would change the distribution of sampled text.
    """
    if count < 2:
        return [best]
    first = len(best.tokens) - len(logits)
    tokens = torch.tensor(best.tokens[first:], dtype=torch.long, device=logits.device)[:, None]
    tokens = words.columns(tokens) if words else tokens
    distributions = logits.float().softmax(-1)
    right = distributions.gather(-1, tokens)[:, 0]
    second = distributions.scatter(-1, tokens, 0.0).max(-1)
    reached = torch.cat([right.new_ones(1), right.cumprod(0)[:-1]])
    places = (reached * second.values).topk(min(count - 1, len(tokens))).indices.tolist()
    others = words.ids[second.indices] if words else second.indices
    return [best, *(_instead(best, first + i, int(others[i]), float(second.values[i])) for i in places)]


def _instead(draft: Draft, place: int, token: int, probability: float) -> Draft:
    grade = min(9, int(10 * probability))
    tokens = (*draft.tokens[:place], token, *draft.tokens[place + 1 :])
    return draft._replace(tokens=tokens, grades=(*draft.grades[:place], grade, *draft.grades[place + 1 :]))
