"""Knows what a drafter is asked and what it may answer. Knows nothing of how drafts are verified.

``Drafter`` is the seam; ``ScriptedDrafter`` and ``RandomDrafter`` are its fakes. What a drafter proposes can cost time, and
never changes the text.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch

from fimserver.types import Deadline, Request

# (logits (V,), offset in the middle) -> the token, and the probabilities (V,) that it was drawn from.
# ``None`` in their place: the token follows from the logits, nothing was drawn (temperature 0, or the keyed rule).
Pick = Callable[[torch.Tensor, int], tuple[int, torch.Tensor | None]]


@dataclass
class DecodeState:
    """One request in progress, as drafters may see it. ``ids`` grows; the rest stays."""

    request: Request
    prompt: list[int]  # all that stands in the cache before the middle, markers and all
    prefix: list[int]  # the code left of the middle, without markers
    suffix: list[int]  # the code right of it
    pick: Pick
    deadline: Deadline = field(default_factory=Deadline)
    ids: list[int] = field(default_factory=list)  # of the middle so far; the last one has not been through the network
    useful: Callable[[Sequence[int]], int] = len  # how many tokens of a draft can be of use
    hidden: torch.Tensor | None = None  # (d,) what the target's head saw when it gave the last id


class Draft(NamedTuple):
    """Tokens that may follow ``DecodeState.ids``, first to last.

    ``grades``: for each token a small number that says how much its drafter trusts it; what a grade is worth is learned
    (``pace.py``). ``marginals`` (n, V): the probabilities that the tokens were drawn from, where they were drawn.
    """

    source: str
    tokens: tuple[int, ...]
    grades: tuple[int, ...]
    marginals: torch.Tensor | None = None


def draft_from(source: str, logits: torch.Tensor, state: DecodeState, after: int = 0) -> Draft:
    """The draft that logits (n, V) of n independent places give, the first of them ``after`` tokens behind the state.

    A token's grade is its probability in tenths.
    """
    picked = [state.pick(row, len(state.ids) + after + i) for i, row in enumerate(logits)]
    tokens = tuple(token for token, _ in picked)
    distributions = [distribution for _, distribution in picked if distribution is not None]
    return Draft(source, tokens, grades(logits, tokens), torch.stack(distributions) if distributions else None)


def cut_draft(draft: Draft, size: int) -> Draft:
    """The first ``size`` tokens of a draft."""
    if size >= len(draft.tokens):
        return draft
    marginals = None if draft.marginals is None else draft.marginals[:size]
    return draft._replace(tokens=draft.tokens[:size], grades=draft.grades[:size], marginals=marginals)


def grades(logits: torch.Tensor, tokens: Sequence[int]) -> tuple[int, ...]:
    """The probability of each token under its row of (n, V) logits, in tenths, 0 to 9."""
    chosen = logits.gather(-1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0]
    tenths = (10 * (chosen - logits.logsumexp(-1)).exp()).clamp(0, 9).nan_to_num(0)
    return tuple(int(tenth) for tenth in tenths.tolist())


class Drafter(Protocol):
    """Anything that guesses what comes next.

    ``inline``: its work is bounded by construction, so it runs in the target's thread; others get a thread and a time limit.
    """

    name: str
    inline: bool

    def propose(self, state: DecodeState, size: int) -> list[Draft]:
        """Drafts of at most ``size`` tokens, the likeliest first; none where it has no idea."""
        ...

    def observe(self, state: DecodeState, *, ended: bool) -> None:
        """``state.ids`` grew, or the middle ``ended``."""
        ...


class ScriptedDrafter:
    """Proposes from a middle that it was told; with the true one it is an oracle. ``seen``: the middle so far."""

    name = "scripted"
    inline = True

    def __init__(self, middle: Sequence[int] = ()) -> None:
        self.middle = list(middle)
        self.seen: list[int] = []

    def propose(self, state: DecodeState, size: int) -> list[Draft]:
        done = len(state.ids)
        tokens = tuple(self.middle[done : done + size])
        return [Draft(self.name, tokens, (0,) * len(tokens))] if tokens else []

    def observe(self, state: DecodeState, *, ended: bool) -> None:  # noqa: ARG002 - the seam
        self.seen = list(state.ids)


class RandomDrafter:
    """Proposes noise: several drafts of any length, often sharing their first tokens."""

    name = "random"
    inline = True

    def __init__(self, seed: int, vocabulary: int) -> None:
        self.random = random.Random(seed)
        self.vocabulary = vocabulary

    def propose(self, state: DecodeState, size: int) -> list[Draft]:  # noqa: ARG002 - the seam
        drafts: list[Draft] = []
        for _ in range(self.random.randrange(4)):
            shared = drafts[-1].tokens[: self.random.randrange(3)] if drafts else ()
            count = self.random.randint(1, max(1, size))
            fresh = (self.random.randrange(self.vocabulary) for _ in range(count - len(shared)))
            tokens = (*shared, *fresh)[:count]
            drafts.append(Draft(self.name, tokens, tuple(self.random.randrange(10) for _ in tokens)))
        return drafts

    def observe(self, state: DecodeState, *, ended: bool) -> None:
        """Nothing to learn."""
