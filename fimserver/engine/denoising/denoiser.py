"""Denoising loop: proposes tokens, commits some, resizes the canvas, and stops when nothing is masked.

Masked diffusion (arXiv 2406.07524, 2502.09992).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from fimserver.engine.denoising.draws import Draws, columns, rows_of
from fimserver.engine.denoising.edits import Edits
from fimserver.engine.denoising.schedules import DenoisingStep, Schedule
from fimserver.engine.denoising.tokens import Tokens
from fimserver.engine.forward.passes import Pass, until_spent
from fimserver.types import Deadline, Request

if TYPE_CHECKING:  # bench/gpu runs the loop where only torch and transformers are installed
    from fimserver.canvas_card import Canvas as CanvasCard

MAX_STEPS = 256


@dataclass
class CanvasState:
    """A canvas being denoised, changed in place. ``fresh``: the slots that the last step committed.

    For each filled slot ``confidence`` is the probability of its token when it was committed, and ``steps``
    the number of that step. ``unsettled``: any filled slot may still take another token.
    """

    slots: list[int]
    fresh: frozenset[int] = frozenset()
    expansions_left: int = 0
    confidence: dict[int, float] = field(default_factory=dict)
    steps: dict[int, int] = field(default_factory=dict)
    unsettled: bool = False

    def resize(self, slot: int, masks: int) -> None:
        """Replace a slot by ``masks`` masks."""

        def moved(i: int) -> int:
            return i + masks - 1 if i > slot else i

        self.fresh = frozenset(moved(i) for i in self.fresh if i != slot)
        self.confidence = {moved(i): p for i, p in self.confidence.items() if i != slot}
        self.steps = {moved(i): step for i, step in self.steps.items() if i != slot}


class Denoiser:
    """Denoises one block of slots until none is masked."""

    def __init__(
        self,
        tokens: Tokens,
        schedule: Schedule,
        max_slots: int,
        *,
        broadcast: bool = True,
        end_anywhere: bool = False,
        edits: Edits | None = None,
    ) -> None:
        """``broadcast``: an end or delete token also fills every masked slot to its right.

        ``end_anywhere``: an end token may be committed at any slot; the run is over when no slot left of it
        is masked. ``edits``: rules by which filled slots take other tokens; ``None``: never.
        """
        self.tokens = tokens
        self.schedule = schedule
        self.max_slots = max_slots
        self.broadcast = broadcast
        self.end_anywhere = end_anywhere
        self.edits = edits

    @classmethod
    def of(cls, card: CanvasCard, tokens: Tokens, schedule: Schedule, max_slots: int) -> Denoiser:
        """Make a denoiser with the rules that a card's model was trained with."""
        in_blocks = card.attention == "block"
        broadcast = card.broadcast and not in_blocks
        edits = Edits.of(card)
        return cls(tokens, schedule, max_slots, broadcast=broadcast, end_anywhere=in_blocks, edits=edits)

    def run(
        self,
        predict: Callable[[list[int]], torch.Tensor],
        slots: int,
        request: Request,
        deadline: Deadline,
        block: int = 0,
    ) -> Iterator[CanvasState]:
        """Yield the state after every step, each of which runs ``predict``: slots to logits (slots, V)."""

        def predicting(filled: list[int]) -> Generator[Pass, None, torch.Tensor]:
            yield from ()
            return predict(filled)

        steps = self.steps(predicting, slots, request, deadline, block)
        return (step for step in steps if isinstance(step, CanvasState))

    def steps(
        self,
        predicting: Callable[[list[int]], Generator[Pass, None, torch.Tensor]],
        slots: int,
        request: Request,
        deadline: Deadline,
        block: int = 0,
        begin: torch.Tensor | None = None,
        window: Callable[[Sequence[int]], Sequence[int]] | None = None,
    ) -> Generator[CanvasState | Pass, None, None]:
        """Yield the passes of ``predicting``, which may run with others, and the state after every step.

        ``begin`` (V,): mask of the tokens that the first slot may have; ``None``: any. ``window``: selects
        the masked slots that a step may fill; ``None``: all. Ends when nothing is masked, after
        ``MAX_STEPS``, or at the deadline.
        """
        state = CanvasState([self.tokens.mask] * slots, expansions_left=self.max_slots)
        state.unsettled = self.edits is not None
        draws: Draws | None = None
        reviews = 0  # passes over filled slots alone
        for index in range(MAX_STEPS):
            masked = [i for i, token in enumerate(state.slots) if token == self.tokens.mask]
            if not (masked or state.unsettled):
                return
            masked = list(window(masked)) if window and masked else masked
            late = bool(deadline.spent())
            every = None if late else (yield from until_spent(predicting(state.slots), deadline))
            if every is None:  # else (slots, V)
                yield from _as_it_is(state)
                return
            draws = draws or Draws(every.device, request.sampling, request.sampling.seed + block)
            filled = self._editable(state)
            if filled:
                draws.queue(self._allowed(every, filled))
            if not masked:
                edited = self._edited(state, filled, draws)
                reviews += 1
                state.unsettled = bool(edited) and self.edits is not None and reviews < self.edits.steps
                self._commit(state, edited, index)
                yield state
                continue
            logits = self._allowed(every, masked)  # (n, V)
            self._forbid(logits, masked, state)
            if begin is not None and masked[0] == 0:
                logits[0].masked_fill_(~begin, -torch.inf)
            self._scheduled(state, logits, masked, filled, index, draws)
            yield state

    def _scheduled(
        self,
        state: CanvasState,
        logits: torch.Tensor,
        masked: list[int],
        filled: list[int],
        index: int,
        draws: Draws,
    ) -> None:
        """Commit the slots that the schedule chooses by logits (n, V), and remask those that it names.

        Some of the ``filled`` slots take the tokens queued in ``draws``. The device is read once.
        """
        propose = functools.partial(draws.propose, logits)
        may_commit = functools.partial(self._may_commit, masked[0])
        step = DenoisingStep(index, masked, dict(state.confidence), propose, may_commit, draws.host)
        commit = self.schedule(step)
        chosen = step.chosen(commit.fill)
        edited = self._edited(state, filled, draws)
        self._remask(state, commit.remask, masked[0])
        self._commit(state, chosen | edited, index)

    def _editable(self, state: CanvasState) -> list[int]:
        """Return the filled slots, if they may take other tokens."""
        slots = enumerate(state.slots) if self.edits else ()
        return [i for i, token in slots if token != self.tokens.mask]

    def _edited(self, state: CanvasState, filled: list[int], draws: Draws) -> dict[int, tuple[int, float]]:
        """Return the filled slots that take the tokens queued in ``draws``, with tokens and probabilities."""
        found = draws.queued()
        drawn = zip(filled, found.tokens, found.probability, strict=True)
        return {i: (t, p) for i, t, p in drawn if self.edits and self.edits.replaces(state.slots[i], t, p)}

    def _allowed(self, every: torch.Tensor, slots: list[int]) -> torch.Tensor:
        """Return logits (n, V) of some slots in fp32, -infinity for forbidden tokens."""
        logits = rows_of(every, slots).float()
        return logits.index_fill_(1, columns(self.tokens.forbidden, logits.device), -torch.inf)

    def _may_commit(self, leftmost: int, slot: int, token: int) -> bool:
        """Whether a slot may take a token: an end only at the leftmost mask, unless ``end_anywhere``.

        Far to the right an end is always likely; committing it first would make middles too short.
        """
        return self.end_anywhere or slot == leftmost or token != self.tokens.end

    def _forbid(self, logits: torch.Tensor, masked: list[int], state: CanvasState) -> None:
        """Forbid expansions without room, and ends left of a slot that has text."""
        full = len(state.slots) >= self.max_slots or state.expansions_left == 0
        if self.tokens.expand is not None and full:
            logits[:, self.tokens.expand] = -1e9
        if self.tokens.end is not None and not self.end_anywhere:
            words = [
                i for i, token in enumerate(state.slots) if token not in {self.tokens.mask, self.tokens.end}
            ]
            early = sum(i < words[-1] for i in masked) if words else 0
            logits[:early, self.tokens.end] = -torch.inf

    def _remask(self, state: CanvasState, slots: Sequence[int], first: int) -> None:
        """Remask slots right of the first mask; those left of it have been shown."""
        for slot in slots:
            if slot > first and state.confidence.pop(slot, None) is not None:
                state.slots[slot] = self.tokens.mask
                del state.steps[slot]

    def _commit(self, state: CanvasState, chosen: Mapping[int, tuple[int, float]], step: int) -> None:
        """Write the chosen tokens.

        With ``broadcast`` an end or a delete also fills every masked slot to its right.
        """
        for i, (token, probability) in chosen.items():
            state.slots[i] = token
            state.confidence[i] = probability
            state.steps[i] = step
        for terminator in (
            t for t in (self.tokens.end, self.tokens.delete) if t is not None and self.broadcast
        ):
            first = min(
                (i for i, (token, _) in chosen.items() if token == terminator), default=len(state.slots)
            )
            for i in range(first, len(state.slots)):
                if state.slots[i] == self.tokens.mask:
                    state.slots[i] = terminator
                    state.confidence[i] = state.confidence[first]
                    state.steps[i] = step
        state.fresh = frozenset(chosen)
        if self.end_anywhere and self.edits is None:
            self._close(state)
        if self.tokens.expand is not None:
            self._resize(state)

    def _close(self, state: CanvasState) -> None:
        """Fill the masked slots with ends if all slots left of the first end are filled."""
        known = next((i for i, token in enumerate(state.slots) if token == self.tokens.mask), None)
        if known is not None and self.tokens.end in state.slots[:known]:
            state.slots[known:] = [
                self.tokens.end if t == self.tokens.mask else t for t in state.slots[known:]
            ]

    def _resize(self, state: CanvasState) -> None:
        """Replace expand tokens by two masks each, and remove deleted slots (DreamOn).

        It goes from right to left, so that the numbers of the remaining slots do not change.
        """
        for i in reversed(range(len(state.slots))):
            if state.slots[i] == self.tokens.delete:
                del state.slots[i]
                state.resize(i, 0)
            elif state.slots[i] == self.tokens.expand:
                roomy = state.expansions_left > 0 and len(state.slots) < self.max_slots
                state.slots[i : i + 1] = [self.tokens.mask] * (1 + roomy)
                state.expansions_left -= int(roomy)
                state.resize(i, 1 + roomy)


def _as_it_is(state: CanvasState) -> Iterator[CanvasState]:
    """Yield the last state of a run that ends early as settled, unless it is settled already."""
    if state.unsettled:
        state.unsettled, state.fresh = False, frozenset()
        yield state
