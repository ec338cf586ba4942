"""Knows the decode loop of the ar route. Knows nothing of drafts (``speculate.py``) or of the canvas.

Every pass runs the same number of rows over the same buffer, drafted or not, so that the text depends on prompt, seed
and weights alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from fimserver.cards import Card
from fimserver.engine.context import PromptCache
from fimserver.engine.output import Output
from fimserver.engine.prompt import cut_context, fim_prompt
from fimserver.engine.sampling import choose
from fimserver.engine.vocabulary import Vocabulary
from fimserver.errors import CardError
from fimserver.reasons import Reason
from fimserver.types import Budget, Chunk, Request


class Autoregressive:
    """Fill-in-the-middle, one token after the other."""

    def __init__(self, card: Card, vocabulary: Vocabulary, cache: PromptCache, rows: int) -> None:
        if card.fim is None:
            raise CardError(f"{card.name} has no [fim]: use it on the dllm route")
        self.card, self.fim, self.vocabulary, self.cache, self.rows = card, card.fim, vocabulary, cache, rows
        # The stops of the card among them. Any special token is no text: a model that emits one has finished.
        self.stops = vocabulary.marker_ids
        self._all_rows = torch.arange(rows, device=cache.network.device)

    def prompt(self, request: Request) -> list[int]:
        """Token ids that the middle follows."""
        context = cut_context(request, self.card, self.vocabulary)
        return fim_prompt(context, self.fim, self.vocabulary)

    def warm(self, request: Request, budget: Budget) -> None:
        """Bring the prompt into the cache, so that ``complete`` starts at once."""
        self.cache.prefill(self.prompt(request), budget, want_logits=False)

    def complete(self, request: Request, budget: Budget) -> Iterator[Chunk]:
        """Chunks of the middle, a token each; the last one has a reason. Raises ``NonFiniteError``."""
        prompt, output, ids = self.prompt(request), Output(self.vocabulary, request), list[int]()
        before = self.cache.forwards
        logits = self.cache.prefill(prompt, budget, want_logits=True)
        while logits is not None:
            token = choose(logits, request.temperature, request.seed, len(ids))
            if token in self.stops:
                break
            ids.append(token)
            text = output.show(ids)
            reason = output.reason or self._limit(ids, request) or budget.spent()
            yield Chunk(text, len(ids), self.cache.forwards - before, reason)
            if reason:
                return
            logits = None if budget.spent() else self.step(token, len(prompt) + len(ids) - 1)
        reason = budget.spent() if logits is None else Reason.END if output.text.strip() else Reason.EMPTY
        yield Chunk("", len(ids), self.cache.forwards - before, reason)

    def step(self, token: int, position: int) -> torch.Tensor:
        """Logits (V,) after ``token`` at ``position``: row 0 of a pass of ``rows`` rows, the others idle."""
        ids = [token] + [0] * (self.rows - 1)
        return self.cache.rows(ids, position, self.cache.causal(position, self.rows), self._all_rows)[0]

    def _limit(self, ids: list[int], request: Request) -> Reason | None:
        limit = min(request.max_tokens, self.card.max_new_tokens)
        return Reason.LENGTH if len(ids) >= limit else None
