"""Knows the denoising loop of the dllm route: propose, commit, grow or shrink, stop. Knows nothing of attention.

Masked diffusion (arXiv 2406.07524, 2502.09992) with a canvas whose length is found while it is denoised: by tokens that
expand or delete a slot (DreamOn, arXiv 2602.01326), by an end token, or by a search beforehand.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from fimserver.cards import Canvas as CanvasCard
from fimserver.cards import Card
from fimserver.engine.canvas import CachedCanvas, CanvasForward, FullCanvas, ShiftedCanvas
from fimserver.engine.canvas_length import search_length
from fimserver.engine.device import wait_for
from fimserver.engine.network import Network
from fimserver.engine.output import Output
from fimserver.engine.prefix_cache import PrefixCache
from fimserver.engine.prompt import canvas_context, cut_context
from fimserver.engine.sampling import SlotProposals, draw
from fimserver.engine.schedules import Schedule
from fimserver.engine.vocabulary import Vocabulary
from fimserver.errors import CardError
from fimserver.reasons import Reason
from fimserver.types import Chunk, Deadline, Prefill, Request, Slot, ms_since

MAX_STEPS = 256
SHORTER = 4  # a middle is seldom so many times shorter than expected


@dataclass(frozen=True)
class Tokens:
    """Ids with a meaning on the canvas; ``None`` where the model has no such token."""

    mask: int
    end: int | None
    expand: int | None
    delete: int | None
    forbidden: tuple[int, ...]

    @classmethod
    def of(cls, card: CanvasCard, vocabulary: Vocabulary) -> Tokens:
        def maybe(text: str | None) -> int | None:
            return None if text is None else vocabulary.special(text)

        forbidden = dict.fromkeys((card.mask, *card.forbidden))
        return cls(
            vocabulary.special(card.mask),
            maybe(card.end),
            maybe(card.expand) if card.length == "expand" else None,
            maybe(card.delete) if card.length == "expand" else None,
            tuple(vocabulary.specials_of(forbidden)),
        )


@dataclass
class State:
    """A canvas being denoised, changed in place. ``fresh`` are the places that the last step committed."""

    slots: list[int]
    fresh: frozenset[int] = frozenset()
    expansions_left: int = 0


class Denoiser:
    """One block of slots, from all masked to none."""

    def __init__(self, tokens: Tokens, schedule: Schedule, max_slots: int) -> None:
        self.tokens, self.schedule, self.max_slots = tokens, schedule, max_slots

    def run(
        self, predict: Callable[[list[int]], torch.Tensor], slots: int, request: Request, budget: Deadline, block: int = 0
    ) -> Iterator[State]:
        """The state after every step. Ends when nothing is masked, after ``MAX_STEPS``, or when the budget is spent."""
        state = State([self.tokens.mask] * slots, expansions_left=self.max_slots)
        generator: torch.Generator | None = None
        for _ in range(MAX_STEPS):
            masked = [i for i, token in enumerate(state.slots) if token == self.tokens.mask]
            if not masked or budget.spent():
                return
            logits = predict(state.slots)[masked].float()  # (n, V)
            generator = generator or torch.Generator(logits.device).manual_seed(request.seed + block)
            self._forbid(logits, masked, state)
            candidates = draw(logits, request.temperature, request.top_p, generator)
            rows = self._eligible(candidates.tokens)
            chosen = self.schedule(SlotProposals(*(values[rows] for values in candidates)))
            self._commit(state, {masked[rows[i]]: int(candidates.tokens[rows[i]]) for i in chosen})
            yield state

    def _eligible(self, tokens: torch.Tensor) -> list[int]:
        """Rows that may be committed: an end only at the leftmost mask.

        Far to the right an end is always likely; committing those first makes every middle shorter than the model thinks.
        """
        return [i for i, token in enumerate(tokens.tolist()) if i == 0 or token != self.tokens.end]

    def _forbid(self, logits: torch.Tensor, masked: list[int], state: State) -> None:
        """Special tokens never; expansion only with room; no end left of a word that is already there."""
        logits[:, list(self.tokens.forbidden)] = -torch.inf
        full = len(state.slots) >= self.max_slots or state.expansions_left == 0
        if self.tokens.expand is not None and full:
            logits[:, self.tokens.expand] = -1e9
        if self.tokens.end is not None:
            words = [i for i, token in enumerate(state.slots) if token not in {self.tokens.mask, self.tokens.end}]
            early = [row for row, i in enumerate(masked) if words and i < words[-1]]
            logits[early, self.tokens.end] = -torch.inf

    def _commit(self, state: State, chosen: dict[int, int]) -> None:
        """Write the chosen tokens; an end or a delete takes every masked slot to its right along."""
        for i, token in chosen.items():
            state.slots[i] = token
        for terminator in (t for t in (self.tokens.end, self.tokens.delete) if t is not None):
            first = min((i for i, token in chosen.items() if token == terminator), default=len(state.slots))
            rest = state.slots[first:]
            state.slots[first:] = [terminator if token == self.tokens.mask else token for token in rest]
        state.fresh = frozenset(chosen)
        if self.tokens.expand is not None:
            self._resize(state)

    def _resize(self, state: State) -> None:
        """An expand token becomes two masks, a deleted slot goes (DreamOn); right to left, so that places stay true."""
        for i in reversed(range(len(state.slots))):
            if state.slots[i] == self.tokens.delete:
                del state.slots[i]
                state.fresh = frozenset(j - (j > i) for j in state.fresh if j != i)
            elif state.slots[i] == self.tokens.expand:
                roomy = state.expansions_left > 0 and len(state.slots) < self.max_slots
                state.slots[i : i + 1] = [self.tokens.mask] * (1 + roomy)
                state.expansions_left -= int(roomy)
                state.fresh = frozenset(j + int(roomy and j > i) for j in state.fresh if j != i)


class Diffusion:
    """Fill-in-the-middle by denoising a canvas, block after block."""

    def __init__(
        self, card: Card, vocabulary: Vocabulary, network: Network, cache: PrefixCache | None, schedule: Schedule
    ) -> None:
        if card.canvas is None:
            raise CardError(f"{card.name} has no [canvas]: use it on the ar route")
        self.card, self.canvas_card, self.vocabulary, self.network, self.cache = card, card.canvas, vocabulary, network, cache
        self.tokens = Tokens.of(card.canvas, vocabulary)
        self.schedule = schedule
        self._piece = functools.cache(lambda token: vocabulary.decode([token]))

    def open_canvas(self, request: Request) -> CanvasForward:
        """The context of a request, ready to be looked at by slots."""
        context = cut_context(request, self.card, self.vocabulary)
        left, right = canvas_context(context, self.card, self.vocabulary)
        if self.cache is not None and self.canvas_card.shift:
            return ShiftedCanvas(self.cache, left, self.network, self.tokens.mask)
        if self.cache is not None:
            return CachedCanvas(self.cache, left, self.network)
        return FullCanvas(self.network, left, right, shift=self.canvas_card.shift)

    def warm(self, request: Request, budget: Deadline) -> None:
        """Make the context ready where it can be kept, so that ``complete`` starts at once."""
        self.open_canvas(request).open(budget)

    def fresh_rows(self, request: Request) -> int:
        """Rows of the prompt that are not in the cache; none where every step reads all of it."""
        return (
            0
            if self.cache is None
            else self.cache.fresh_rows(
                canvas_context(cut_context(request, self.card, self.vocabulary), self.card, self.vocabulary)[0]
            )
        )

    def complete(self, request: Request, budget: Deadline) -> Iterator[Chunk]:
        """A chunk after every step; text is what is settled from the left. Raises ``NonFiniteError``."""
        started = time.perf_counter()
        canvas, output = self.open_canvas(request), Output(self.vocabulary, request)
        done: list[int] = []  # settled ids of this and earlier blocks
        state, prefill = State([]), Prefill()
        while canvas.open(budget) and budget.spent() is None:
            prefill = prefill if done else self._prefill(canvas, started)
            settled = list(done)
            for state in self._block(canvas, len(done), request, budget):
                done = (settled + self._settled(state.slots))[: self.limit(request)]
                yield Chunk(output.show(done), len(done), canvas.forwards, None, self._view(settled, state))
                if output.reason:
                    break
            if output.reason or not self._goes_on(state, done, request):
                break
            canvas.settle(state.slots)
        rest = output.rest()
        yield Chunk(rest, len(done), canvas.forwards, self._reason(output, state, done, request, budget), prefill=prefill)

    def _prefill(self, canvas: CanvasForward, started: float) -> Prefill:
        wait_for(self.network.device)
        return canvas.prefilled._replace(ms=ms_since(started))

    def _block(self, canvas: CanvasForward, done: int, request: Request, budget: Deadline) -> Iterator[State]:
        limit = self.limit(request)
        slots = self._slots(canvas, request.canvas_tokens, limit, budget)
        denoiser = Denoiser(self.tokens, self.schedule, limit if self.canvas_card.length == "expand" else slots)
        return denoiser.run(canvas.predict, slots, request, budget, block=done)

    def limit(self, request: Request) -> int:
        """Slots that one middle may have."""
        return max(1, min(request.max_tokens, self.canvas_card.max_tokens))

    def _slots(self, canvas: CanvasForward, expected: int, limit: int, budget: Deadline) -> int:
        """Slots to start with. What is expected only helps where the length is found out anyway."""
        match self.canvas_card.length:
            case "end":
                return self.canvas_card.block_tokens
            case "search":
                return search_length(
                    canvas, self.tokens.mask, self.tokens.forbidden, limit, budget, at_least=expected // SHORTER
                )
            case _:
                return min(expected or self.canvas_card.initial_tokens, limit)

    def _settled(self, slots: list[int]) -> list[int]:
        """Ids from the left up to the first mask or end."""
        for i, token in enumerate(slots):
            if token in {self.tokens.mask, self.tokens.end}:
                return slots[:i]
        return slots

    def _goes_on(self, state: State, done: list[int], request: Request) -> bool:
        """Whether another block is to follow: only an end-terminated canvas may be longer than one block."""
        finished = self.tokens.mask not in state.slots and self.tokens.end not in state.slots
        return self.canvas_card.length == "end" and finished and len(done) < self.limit(request)

    def _reason(self, output: Output, state: State, done: list[int], request: Request, budget: Deadline) -> Reason:
        if output.reason:
            return output.reason
        unfinished = self.tokens.mask in state.slots or not state.fresh or self._goes_on(state, done, request)
        if unfinished and (spent := budget.spent()):
            return spent
        if self.tokens.mask in state.slots:
            return Reason.LENGTH
        if not output.text.strip():
            return Reason.EMPTY
        unended = self.canvas_card.length == "end" and self.tokens.end not in state.slots
        return Reason.LENGTH if unended and len(done) >= self.limit(request) else Reason.END

    def _view(self, settled: list[int], state: State) -> tuple[Slot, ...]:
        """The canvas as text, slot by slot, up to its end."""
        slots = [Slot(self._piece(token), masked=False) for token in settled]
        for i, token in enumerate(state.slots):
            if token == self.tokens.end:
                break
            masked = token == self.tokens.mask
            slots.append(Slot("" if masked else self._piece(token), masked, i in state.fresh))
        return tuple(slots)
