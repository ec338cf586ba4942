"""Diffusion route: opens the canvas of a request, denoises it block after block, and yields its text.

Masked diffusion (arXiv 2406.07524, 2502.09992) with a canvas whose length is found by tokens that expand or
delete a slot (DreamOn, arXiv 2602.01326), by an end token, or by a search or a probe beforehand.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Generator, Iterator
from typing import TypeVar

from fimserver.cards import Card
from fimserver.engine.checked_canvas import CheckedCanvas
from fimserver.engine.denoising.block_canvas import BlockCanvas
from fimserver.engine.denoising.canvas import (
    CachedCanvas,
    CanvasForward,
    FullCanvas,
    ShiftedCanvas,
    opening,
    predicting,
)
from fimserver.engine.denoising.canvas_length import bias, bias_of, search_length
from fimserver.engine.denoising.canvas_text import canvas_view, confidence, settled
from fimserver.engine.denoising.denoiser import CanvasState, Denoiser
from fimserver.engine.denoising.dual_cache import DualCache, DualCanvas
from fimserver.engine.denoising.dual_caches import DualCaches, holding
from fimserver.engine.denoising.length_probe import LengthProbe, predict_length
from fimserver.engine.denoising.refresh import Refresh
from fimserver.engine.denoising.schedules import Schedule
from fimserver.engine.denoising.tokens import Tokens
from fimserver.engine.device import wait_for
from fimserver.engine.forward.network import Network
from fimserver.engine.forward.passes import Pass, until_spent
from fimserver.engine.forward.prefix_cache import PrefixCache
from fimserver.engine.output import Output
from fimserver.engine.prompts.healing import TokenHealing
from fimserver.engine.prompts.prompt import (
    PromptTokens,
    block_prompt,
    canvas_context,
    cut_context,
    prompt_use,
)
from fimserver.engine.prompts.prompt_budget import PromptBudget
from fimserver.engine.prompts.vocabulary import Vocabulary
from fimserver.errors import CardError, NonFiniteError
from fimserver.reasons import Reason
from fimserver.types import Chunk, Deadline, Prefill, PromptUse, Request, ms_since

T = TypeVar("T")
SHORTER = 4  # the length search begins at the expected length divided by this


class Diffusion:
    """Engine of the dllm route: fills in the middle by denoising a canvas, block after block."""

    def __init__(
        self,
        card: Card,
        vocabulary: Vocabulary,
        network: Network,
        cache: PrefixCache | None,
        schedule: Schedule,
        budget: PromptBudget | None = None,
        duals: DualCaches | None = None,
        rules: Refresh | None = None,
        checked: CheckedCanvas | None = None,
        probe: LengthProbe | None = None,
    ) -> None:
        """``budget``: limits the prompt; ``None``: the card's ``prompt_tokens`` do.

        ``duals`` and their ``rules``: caches of a canvas with full attention. ``checked``: writes the middles
        of the schedule ``checked``. ``probe``: predicts the length in place of a search. Raises ``CardError``
        if the card has no canvas.
        """
        if card.canvas is None:
            raise CardError(f"{card.name} has no [canvas]: use it on the ar route")
        self.card = card
        self.canvas_card = card.canvas
        self.vocabulary = vocabulary
        self.network = network
        self.cache = cache
        self.tokens = Tokens.of(card.canvas, vocabulary)
        self.schedule = schedule
        self.budget = budget or PromptBudget(card.prompt_tokens)
        self._markers = max(8, len(block_prompt(PromptTokens((), ()), card.canvas.context, vocabulary)))
        self.healing = TokenHealing(vocabulary) if card.fim and card.fim.heal else None
        self.duals = duals
        self.rules = rules
        self.checked = checked
        self.probe = probe
        self._in_blocks = card.canvas.attention == "block"
        self.length_bias = bias_of(card.canvas.length_bias) if card.canvas.length_bias else bias
        self._piece = functools.cache(lambda token: vocabulary.decode([token]))

    def open_canvas(self, request: Request) -> CanvasForward:
        """Return the canvas of a request, with its context on both sides."""
        left, right = self._sides(request)
        if self.cache is not None and self._in_blocks:
            card = self.canvas_card
            return BlockCanvas(self.cache, left, card.block_tokens, card.sub_block_tokens, shift=card.shift)
        if self.cache is not None and self.canvas_card.shift:
            return ShiftedCanvas(self.cache, left, self.network, self.tokens.mask)
        if self.cache is not None:
            return CachedCanvas(self.cache, left, self.network)
        shift = self.canvas_card.shift
        if self.duals is not None and self.rules is not None:
            near = self.duals.nearest(left, right)
            return DualCanvas(near, left, right, self.rules, self.tokens.mask, shift=shift)
        return FullCanvas(self.network, left, right, shift=shift)

    @property
    def dual(self) -> DualCache | None:
        """The cache of the canvas that was opened last, if attention is full and cached."""
        return self.duals.current if self.duals else None

    def warm(self, request: Request, deadline: Deadline) -> None:
        """Prefill the context if it can be cached, so that ``complete`` starts at once."""
        for _ in self.warm_steps(request, deadline):
            pass

    def warm_steps(self, request: Request, deadline: Deadline) -> Iterator[Pass]:
        """Do what ``warm`` does, but yield each pass that may run with others before it is run."""
        return self._held(request, self._warm(request, deadline))

    def _held(self, request: Request, steps: Generator[T, None, object]) -> Iterator[T]:
        """Run the steps of a request in its own buffer, if the cache is a prefix cache."""
        return steps if self.cache is None else self.cache.prompts.within(self._sides(request)[0], steps)

    def _warm(self, request: Request, deadline: Deadline) -> Generator[Pass, None, None]:
        canvas = self.open_canvas(request)
        with holding(canvas):
            if (yield from opening(canvas, deadline)) and isinstance(canvas, DualCanvas):
                yield from until_spent(canvas.warming(self._usual(request)), deadline)

    def num_uncached_tokens(self, request: Request) -> int:
        """Return the number of tokens that a prefill would compute now; 0 without a cache."""
        if self.cache is not None:
            return self.cache.num_uncached_tokens(self._sides(request)[0])
        canvas = self.open_canvas(request)
        return canvas.num_due(self._usual(request)) if isinstance(canvas, DualCanvas) else 0

    def _usual(self, request: Request) -> int:
        """Return the initial number of slots of a canvas whose length is not searched."""
        return min(request.canvas_tokens or self.canvas_card.initial_tokens, self.limit(request))

    def _context(self, request: Request) -> PromptTokens:
        tokens = self.budget.tokens(request.deadline_ms)
        return cut_context(
            request, self.card, self.vocabulary, self._markers, tokens=tokens, healing=self.healing
        )

    def _sides(self, request: Request) -> tuple[list[int], list[int]]:
        """Return the ids left and right of the canvas."""
        return canvas_context(self._context(request), self.card, self.vocabulary)

    def _use(self, request: Request) -> PromptUse:
        """Return how much of the text around the cursor is in the prompt."""
        read = sum(map(len, self._sides(request)))
        limit = self.budget.tokens(request.deadline_ms)
        return prompt_use(request, self._context(request), self.vocabulary, read, limit)

    def complete(self, request: Request, deadline: Deadline) -> Iterator[Chunk]:
        """Yield a chunk after every step, with the text that is settled from the left.

        If an exact pass may veto the middle, the text comes in the last chunk. Raises ``NonFiniteError``.
        """
        return (step for step in self.steps(request, deadline) if isinstance(step, Chunk))

    def steps(self, request: Request, deadline: Deadline) -> Iterator[Chunk | Pass]:
        """Do what ``complete`` does, but yield each pass that may run with others before it is run."""
        if self.checked:
            return self.checked.steps(request, deadline, self._context(request).held)
        return self._held(request, self._complete(request, deadline))

    def _complete(self, request: Request, deadline: Deadline) -> Generator[Chunk | Pass, None, None]:
        canvas = self.open_canvas(request)
        try:
            with holding(canvas):
                vetoed = yield from self.decode(canvas, request, deadline)
                if vetoed and isinstance(canvas, DualCanvas):
                    yield from self.decode(canvas.uncached(), request, deadline)
        except NonFiniteError:
            if self.cache is not None:
                self.cache.wipe()
            raise

    def decode(
        self, canvas: CanvasForward, request: Request, deadline: Deadline
    ) -> Generator[Chunk | Pass, None, bool]:
        """Yield the passes and chunks of one middle on a canvas; returns whether it was vetoed.

        A vetoed middle has no last chunk.
        """
        started = time.perf_counter()
        held = self._context(request).held
        output = Output(self.vocabulary, request, held)
        checked = canvas if isinstance(canvas, DualCanvas) and canvas.rules.bound is not None else None
        done: list[int] = []  # settled ids of this and earlier blocks
        state = CanvasState([])
        prefill = Prefill()
        while (yield from opening(canvas, deadline)) and deadline.spent() is None:
            prefill = prefill if done else self._prefill(canvas, started)
            before = list(done)
            first = len(checked.exact) if checked else 0
            for step in self._block(canvas, len(done), request, deadline, held):
                if isinstance(step, Pass):
                    yield step
                    continue
                state = step
                done = (before + settled(state, self.tokens))[: self.limit(request)]
                text = output.show(done)
                view = canvas_view(before, state, self.tokens, self._piece, held)
                yield Chunk("" if checked else text, len(done), canvas.forwards, None, view)
                if output.reason:
                    break
            if checked and (yield from checked.vetoing(state.slots, state.steps, first, deadline)):
                return True
            if output.reason or not self._goes_on(state, done, request):
                break
            canvas.settle(state.slots)
        text = output.text + output.rest() if checked else output.rest()
        reason = self._reason(output, state, done, request, deadline)
        yield Chunk(
            text,
            len(done),
            canvas.forwards,
            reason,
            prefill=canvas.prefilled if isinstance(canvas, DualCanvas) else prefill,
            confidence=confidence(state, self.tokens),
            prompt=self._use(request),
        )
        return False

    def _prefill(self, canvas: CanvasForward, started: float) -> Prefill:
        wait_for(self.network.device)
        return canvas.prefilled._replace(ms=ms_since(started))

    def _block(
        self, canvas: CanvasForward, done: int, request: Request, deadline: Deadline, held: str
    ) -> Generator[CanvasState | Pass, None, None]:
        limit = self.limit(request)
        slots = yield from self._slots(canvas, request.canvas_tokens, limit, deadline)
        most = limit if self.canvas_card.length == "expand" else slots
        denoiser = Denoiser.of(self.canvas_card, self.tokens, self.schedule, most)
        begin = None
        if self.healing and held and not done:
            begin = self.healing.allowed(held, self.network.vocab_size, self.network.device)
        window = canvas.window if isinstance(canvas, BlockCanvas) else None
        predict = functools.partial(predicting, canvas)
        yield from denoiser.steps(predict, slots, request, deadline, done, begin, window)

    def limit(self, request: Request) -> int:
        """Return the most slots of a middle."""
        return max(1, min(request.sampling.max_tokens, self.canvas_card.max_tokens))

    def _slots(
        self, canvas: CanvasForward, expected: int, limit: int, deadline: Deadline
    ) -> Generator[Pass, None, int]:
        """Return the initial number of slots, after the passes of a search or of a probe."""
        match self.canvas_card.length:
            case "end":
                return canvas.room if isinstance(canvas, BlockCanvas) else self.canvas_card.block_tokens
            case "search":
                least = expected // SHORTER
                mask = self.tokens.mask
                if self.probe:
                    steps = predict_length(canvas, self.network, self.probe, mask, limit, deadline, least)
                else:
                    curve = self.length_bias
                    never = self.tokens.forbidden
                    steps = search_length(canvas, mask, never, limit, deadline, at_least=least, curve=curve)
                return (yield from steps)
            case _:
                return min(expected or self.canvas_card.initial_tokens, limit)

    def _goes_on(self, state: CanvasState, done: list[int], request: Request) -> bool:
        """Whether another block follows: only an end-terminated canvas may be longer than one block."""
        open_or_ended = {self.tokens.mask, self.tokens.end} & set(state.slots)
        return self.canvas_card.length == "end" and not open_or_ended and len(done) < self.limit(request)

    def _reason(
        self, output: Output, state: CanvasState, done: list[int], request: Request, deadline: Deadline
    ) -> Reason:
        if output.reason:
            return output.reason
        is_open = self.tokens.mask in state.slots
        unfinished = is_open or not state.fresh or self._goes_on(state, done, request)
        if unfinished and (spent := deadline.spent()):
            return spent
        if is_open:
            return Reason.LENGTH
        if not output.text.strip():
            return Reason.EMPTY
        unended = self.canvas_card.length == "end" and self.tokens.end not in state.slots
        return Reason.LENGTH if unended and len(done) >= self.limit(request) else Reason.END
