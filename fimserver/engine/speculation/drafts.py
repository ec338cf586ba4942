"""Interface of drafters: the state that a drafter sees, and the drafts that it proposes.

A draft can cost time but never changes the text. ``ScriptedDrafter`` and ``RandomDrafter`` are fakes for
tests.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch

from fimserver.engine.device import to_device
from fimserver.engine.sampling import Words
from fimserver.types import Deadline, Request


class Pick(Protocol):
    """Chooses tokens from logits."""

    def __call__(
        self, logits: torch.Tensor, offset: int, words: Words | None = None, /
    ) -> tuple[list[int], torch.Tensor | None]:
        """Choose a token from each row of logits (n, V), the first for ``offset`` in the middle.

        ``words``: the tokens of the logits, if they are some of the vocabulary. Returns the tokens, and the
        probabilities (n, V) that they were drawn from: ``None`` if they follow from the logits (temperature
        0, or keyed noise).
        """
        ...


@dataclass
class DecodeState:
    """The state of one request while it is decoded, as drafters see it."""

    request: Request
    prompt: list[int]  # all tokens before the middle, with markers
    prefix: list[int]  # the code left of the middle, without markers
    suffix: list[int]  # the code right of it
    pick: Pick
    deadline: Deadline = field(default_factory=Deadline)
    ids: list[int] = field(
        default_factory=list
    )  # of the middle so far; the last one has not been run through the network
    useful: Callable[[Sequence[int]], int] = len  # number of leading tokens of a draft that can be used
    log_probs: list[torch.Tensor] = field(default_factory=list)  # of the ids, one tensor per pass
    held: str = ""  # end of the prefix that the first id repeats (token healing, ``healing.py``)
    hidden: torch.Tensor | None = None  # (d,) input of the target's head that gave the last id


class Draft(NamedTuple):
    """Tokens that may follow ``DecodeState.ids``.

    ``grades``: the drafter's confidence in each token, 0 to 9; acceptance rates are measured by grade
    (``draft_policy.py``). ``marginals`` (n, V): the probabilities that the tokens were drawn from; ``None``
    if they were not drawn.
    """

    source: str
    tokens: tuple[int, ...]
    grades: tuple[int, ...]
    marginals: torch.Tensor | None = None


def draft_from(
    source: str,
    logits: torch.Tensor,
    state: DecodeState,
    after: int = 0,
    words: Words | None = None,
) -> Draft:
    """Draft a token from each row of logits (n, V), the first for position ``after`` after ``state.ids``.

    ``words``: the tokens of the logits, if they are some of the vocabulary. A token's grade is its
    probability in tenths.
    """
    tokens, distributions = state.pick(logits, len(state.ids) + after, words)
    return Draft(source, tuple(tokens), grades(logits, tokens, words), distributions)


def cut_draft(draft: Draft, size: int) -> Draft:
    """Return the first ``size`` tokens of a draft."""
    if size >= len(draft.tokens):
        return draft
    marginals = None if draft.marginals is None else draft.marginals[:size]
    return draft._replace(tokens=draft.tokens[:size], grades=draft.grades[:size], marginals=marginals)


def grades(logits: torch.Tensor, tokens: Sequence[int], words: Words | None = None) -> tuple[int, ...]:
    """Return the probability of each token under its row of (n, V) logits, in tenths, 0 to 9.

    ``words``: as in ``draft_from``.
    """
    tenths = _tenths(logits, to_device(tokens, logits.device), words)
    return tuple(int(tenth) for tenth in tenths.tolist())


def read_graded(logits: torch.Tensor, tokens: torch.Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Read tokens (n,) from the device, and their ``grades``, at once."""
    numbers = torch.cat([tokens.double(), _tenths(logits, tokens).double()]).tolist()
    found = tuple(int(number) for number in numbers)
    return found[: len(tokens)], found[len(tokens) :]


def _tenths(logits: torch.Tensor, tokens: torch.Tensor, words: Words | None = None) -> torch.Tensor:
    columns = words.columns(tokens) if words else tokens
    own = logits.gather(-1, columns[:, None])[:, 0]
    return (10 * (own - logits.logsumexp(-1)).exp()).clamp(0, 9).nan_to_num(0)


class Drafter(Protocol):
    """Proposes tokens that may come next.

    ``inline``: its work is bounded by construction, so it runs in the target's thread; others get a thread
    and a time limit. ``keeps_text``: it caches the text of one request, so requests must not interleave.
    """

    name: str
    inline: bool
    keeps_text: bool

    def propose(self, state: DecodeState, size: int) -> list[Draft]:
        """Return drafts of at most ``size`` tokens, the likeliest first; may be empty."""
        ...

    def observe(self, state: DecodeState, *, ended: bool) -> None:
        """Take note of new ``state.ids``; called after each round, and once when the middle has ``ended``."""
        ...


class ScriptedDrafter:
    """Proposes the tokens of a given middle; with the true one it is an oracle. ``seen``: the ids so far."""

    name = "scripted"
    inline = True
    keeps_text = False

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
    """Proposes random tokens: several drafts of random lengths, some with a common prefix."""

    name = "random"
    inline = True
    keeps_text = False

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
        """Do nothing."""
