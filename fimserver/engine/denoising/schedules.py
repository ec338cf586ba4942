"""Denoising schedules: choose the masked slots that a step commits, and the filled ones that it remasks.

A schedule is a function of a ``DenoisingStep``. ``SCHEDULES`` has them by name; options may follow a name, as
in ``fixed:4`` or ``threshold:0.8,limit=16``: the first number is the schedule's first parameter.

Of slots with equal confidence the leftmost comes first. The original code of Dream and DreamOn takes the
order of ``torch.topk``, so that a canvas with many ties can be filled in another order there (DreamOn at
temperature 0.2 and ``top_p`` 0.9, where a slot's distribution may have one token left).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch

from fimserver.engine.options import read_options
from fimserver.engine.sampling import SlotProposals
from fimserver.errors import InputError

MEASURED = math.inf  # the cost of a row is the one measured on this machine


class Commit(NamedTuple):
    """Slots that take their proposed token, and filled slots that are masked again."""

    fill: Sequence[int]
    remask: Sequence[int] = ()


class DenoisingStep:
    """One denoising step as a schedule sees it.

    ``index`` counts the steps of a block from 0. ``masked``: the masked slots from left to right;
    ``committed``: the filled ones, with the probabilities at which their tokens were committed. Tokens are
    drawn when ``proposals`` is first read; a schedule that does not read it leaves the tokens of other slots
    undrawn.
    """

    def __init__(
        self,
        index: int,
        masked: Sequence[int],
        committed: Mapping[int, float],
        draw: Callable[[Sequence[int]], SlotProposals],
        may_commit: Callable[[int, int], bool] = lambda slot, token: True,  # noqa: ARG005 - the seam
        generator: torch.Generator | None = None,
    ) -> None:
        """``draw``: makes proposals for some rows of ``masked``.

        ``may_commit``: whether a slot may take a token in this step. ``generator``: on the CPU, for schedules
        that draw slots.
        """
        self.index = index
        self.masked = tuple(masked)
        self.committed = committed
        self.generator = generator
        self._draw = draw
        self._may_commit = may_commit

    @classmethod
    def of(
        cls, proposals: SlotProposals, index: int = 0, committed: Mapping[int, float] | None = None
    ) -> DenoisingStep:
        """Make a step with given proposals for the slots 0 to n - 1, for tests of schedules."""
        return cls(index, range(len(proposals.tokens)), committed or {}, proposals.rows)

    @property
    def slots(self) -> tuple[int, ...]:
        """The slot of each row of ``proposals``: the masked ones that may take their token in this step."""
        return tuple(self.masked[row] for row in self._eligible)

    @cached_property
    def proposals(self) -> SlotProposals:
        """A token for each of ``slots``, with its probability, margin and entropy."""
        return self._drawn.rows(self._eligible)

    def chosen(self, slots: Sequence[int]) -> dict[int, tuple[int, float]]:
        """Return token and probability of those of ``slots`` that may take them, drawn now if need be."""
        rows = [self.masked.index(slot) for slot in slots]
        some = self._drawn.rows(rows) if "_drawn" in self.__dict__ else self._draw(rows)
        found = zip(slots, some.tokens, some.probability, strict=True)
        return {
            slot: (token, probability) for slot, token, probability in found if self._may_commit(slot, token)
        }

    @cached_property
    def _drawn(self) -> SlotProposals:
        return self._draw(range(len(self.masked)))

    @cached_property
    def _eligible(self) -> list[int]:
        pairs = zip(self.masked, self._drawn.tokens, strict=True)
        return [row for row, (slot, token) in enumerate(pairs) if self._may_commit(slot, token)]


Schedule = Callable[[DenoisingStep], Commit]


def threshold(level: float = 0.9, limit: int = 64) -> Schedule:
    """Commit the likeliest slot and all that reach ``level``, at most ``limit`` (arXiv 2505.22618)."""

    def commit(step: DenoisingStep) -> Commit:
        probability = step.proposals.probability
        order = _best_first(probability)[:limit]
        passed = [i for i in order if probability[i] >= level]
        return _fill(step, passed or order[:1])

    return commit


def leftmost(level: float = 0.9) -> Schedule:
    """Commit the leftmost slot, and all others whose probability reaches ``level``.

    The shown text grows in every step.
    """

    def commit(step: DenoisingStep) -> Commit:
        probability = step.proposals.probability
        sure = [i for i in _best_first(probability) if i > 0 and probability[i] >= level]
        return _fill(step, [0, *sure])

    return commit


@dataclass(frozen=True)
class CheckedSchedule:
    """Commit the leftmost slot; the next pass verifies a canvas adapter's guesses after it.

    ``checked_canvas.py`` runs these steps. ``row``: cost of a row as a share of a pass of one row; a small
    one gives few passes. ``masks``: most masks of a group.
    """

    row: float = MEASURED
    masks: int = 2

    def __call__(self, step: DenoisingStep) -> Commit:
        """Commit the leftmost slot, for models whose passes cannot verify guesses."""
        return Commit(step.slots[:1])


def factor(f: float = 1.0) -> Schedule:
    """Commit the r likeliest slots, that of rank r at least 1 - f / (r + 1) (Fast-dLLM, factor decoding)."""

    def commit(step: DenoisingStep) -> Commit:
        probability = step.proposals.probability
        order = _best_first(probability)
        rank = 1
        while rank < len(order) and probability[order[rank]] >= 1 - f / (rank + 2):
            rank += 1
        return _fill(step, order[:rank])

    return commit


def entropy_bound(gamma: float = 0.1) -> Schedule:
    """Commit the k slots of lowest entropy, the sum without the largest at most ``gamma`` (2505.24857)."""

    def commit(step: DenoisingStep) -> Commit:
        entropies = step.proposals.entropy
        order = _surest_first(entropies)
        total = entropies[order[0]]
        k = 1
        while k < len(order) and total <= gamma:
            total += entropies[order[k]]
            k += 1
        return _fill(step, order[:k])

    return commit


def entropy(count: int = 1) -> Schedule:
    """Commit the ``count`` slots of lowest entropy (Dream)."""
    return lambda step: _fill(step, _surest_first(step.proposals.entropy)[:count])


def margin(count: int = 1) -> Schedule:
    """Commit the ``count`` slots with the largest margin between the two likeliest tokens (Dream)."""
    return lambda step: _fill(step, _best_first(step.proposals.margin)[:count])


def fixed(count: int = 1) -> Schedule:
    """Commit the ``count`` likeliest slots (LLaDA, low-confidence remasking)."""
    return lambda step: _fill(step, _best_first(step.proposals.probability)[:count])


def random(steps: int = 16) -> Schedule:
    """Commit random slots, all after ``steps`` steps (Dream's ``origin``); slots are drawn before tokens."""

    def commit(step: DenoisingStep) -> Commit:
        times = torch.linspace(1, 1e-3, steps + 1)
        last = step.index >= steps - 1
        chance = 1.0 if last else 1 - float(times[step.index + 1] / times[step.index])
        drawn = torch.rand(len(step.masked), generator=step.generator) < chance
        return Commit([slot for slot, taken in zip(step.masked, drawn.tolist(), strict=True) if taken])

    return commit


FOR_ADAPTERS = frozenset({"checked"})  # schedules that need the text rows of a frozen coder
SCHEDULES: Mapping[str, Callable[..., Schedule]] = {
    "threshold": threshold,
    "leftmost": leftmost,
    "checked": CheckedSchedule,
    "factor": factor,
    "entropy_bound": entropy_bound,
    "entropy": entropy,
    "margin": margin,
    "fixed": fixed,
    "random": random,
}


def read_schedule(
    spec: str, schedules: Mapping[str, Callable[..., Schedule]] = SCHEDULES, **defaults: float
) -> Schedule:
    """Parse ``NAME``, ``NAME:NUMBER`` or ``NAME:NUMBER,option=value``. Raises ``InputError``.

    ``defaults``: values of parameters that the spec leaves out.
    """
    name, _, text = spec.partition(":")
    if name not in schedules:
        raise InputError(
            f"no schedule named {name!r}: use one of {', '.join(schedules)}, as in threshold:0.9 or fixed:4"
        )
    parameters = inspect.signature(schedules[name]).parameters
    known = {key: value for key, value in defaults.items() if key in parameters}
    return schedules[name](**known | read_options(f"schedule {name}", text, schedules[name]))


def _fill(step: DenoisingStep, rows: Sequence[int]) -> Commit:
    slots = step.slots
    return Commit([slots[row] for row in rows])


def _best_first(confidence: Sequence[float]) -> list[int]:
    """Return indices by falling confidence, ties from left to right."""
    return sorted(range(len(confidence)), key=confidence.__getitem__, reverse=True)


def _surest_first(entropies: Sequence[float]) -> list[int]:
    """Return indices by rising entropy, ties from left to right."""
    return sorted(range(len(entropies)), key=entropies.__getitem__)
