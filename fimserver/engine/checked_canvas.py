"""Checked canvas: dllm route of a coder with a canvas adapter, whose guesses the frozen coder verifies.

A pass runs the guesses as text, and after them masks for each number of guesses that may be accepted
(``lookahead.py``): it verifies these guesses and denoises the next ones (self-speculation, arXiv 2507.11851).
Masks after the prompt use padding rows of its last chunk; n-gram drafts are guesses too. The middle is that
of the ar route, at every temperature.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from fimserver.canvas_card import Canvas
from fimserver.engine.autoregressive import Autoregressive
from fimserver.engine.denoising.canvas_text import without_held
from fimserver.engine.forward.pass_cost import PassCosts, size
from fimserver.engine.forward.passes import Pass
from fimserver.engine.speculation.lookahead import Lookahead
from fimserver.types import Chunk, Deadline, Request, Slot

DRAFTERS = "ngram,lookahead"


class CheckedCanvas:
    """Decodes middles by speculative decoding with lookahead, and shows each step as a canvas."""

    def __init__(
        self, decoder: Autoregressive, ahead: Lookahead, canvas: Canvas, piece: Callable[[int], str]
    ) -> None:
        """``piece``: decodes a token."""
        self.decoder = decoder
        self.ahead = ahead
        self.block = canvas.block_tokens  # the shown canvas is filled up with masks to a multiple of it
        self.most = canvas.max_tokens
        self._piece = piece

    def steps(self, request: Request, deadline: Deadline, held: str) -> Iterator[Chunk | Pass]:
        """Yield each pass before it is run, as it may run with others, and a chunk after it.

        ``held``: the end of the prefix that the first slot repeats.
        """
        known: list[int] = []
        limit = max(1, min(request.sampling.max_tokens, self.most))
        for chunk in self.decoder.steps(request.with_sampling(max_tokens=limit), deadline):
            if isinstance(chunk, Pass):
                yield chunk
                continue
            before = len(known)
            if chunk.round:
                known += [*chunk.round.draft[: chunk.round.accepted], chunk.round.token]
            del known[chunk.tokens :]
            view = self._view(known, before, held, open_=chunk.reason is None)
            yield replace(chunk, canvas=view, round=None, drafting=None)

    def _view(self, known: list[int], before: int, held: str, *, open_: bool) -> tuple[Slot, ...]:
        """Return the canvas as text: accepted tokens, guesses, masks."""
        slots = [Slot(self._piece(token), masked=False, fresh=i >= before) for i, token in enumerate(known)]
        if open_:
            slots += [Slot(self._piece(token), masked=False) for token in self.ahead.likeliest_tokens()]
            slots += [Slot("", masked=True)] * (-len(slots) % self.block)
        return without_held(slots, held)


def priced_by_row(costs: PassCosts, row: float) -> PassCosts:
    """Return costs of the same shapes in which each row after the first costs ``row`` times a plain pass."""
    plain = costs.ms[costs.plain]
    return PassCosts({shape: plain * (1 + row * (size(shape) - 1)) for shape in costs.ms})
