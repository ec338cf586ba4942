"""Autoregressive route: prefills a FIM prompt, decodes in rounds, and stops where the middle ends.

The text depends on prompt, seed and weights alone, not on the cache or on drafts.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace

import torch

from fimserver.cards import Card
from fimserver.engine.forward.passes import Pass
from fimserver.engine.output import Output
from fimserver.engine.prompts.healing import TokenHealing
from fimserver.engine.prompts.prompt import PromptTokens, cut_context, fim_prompt, prompt_use
from fimserver.engine.prompts.prompt_budget import PromptBudget
from fimserver.engine.prompts.vocabulary import Vocabulary
from fimserver.engine.speculation.drafts import DecodeState
from fimserver.engine.speculation.speculate import Speculation
from fimserver.errors import CardError, NonFiniteError
from fimserver.reasons import Reason
from fimserver.types import Chunk, Deadline, Drafting, Prefill, PromptUse, Request, Round, ms_since


class Autoregressive:
    """Engine of the ar route: decodes a middle from left to right, with speculative decoding."""

    def __init__(
        self,
        card: Card,
        vocabulary: Vocabulary,
        speculation: Speculation,
        budget: PromptBudget | None = None,
    ) -> None:
        """``budget``: limits the prompt; ``None``: the card's ``prompt_tokens`` do.

        Raises ``CardError`` if the card has no FIM markers.
        """
        if card.fim is None:
            raise CardError(f"{card.name} has no [fim]: use it on the dllm route")
        self.card = card
        self.fim = card.fim
        self.vocabulary = vocabulary
        self.speculation = speculation
        self.budget = budget or PromptBudget(card.prompt_tokens)
        self.healing = TokenHealing(vocabulary) if card.fim.heal else None
        self.cache = speculation.cache
        # All special tokens end a middle, the card's stops among them: none of them is text.
        self.stops = vocabulary.marker_ids

    def prompt(self, request: Request) -> list[int]:
        """Return the token ids of the prompt."""
        return self.decode_state(request, Deadline()).prompt

    def decode_state(self, request: Request, deadline: Deadline) -> DecodeState:
        """Return the state of decoding before the first token."""
        context = self._context(request)
        seen = replace(request, prefix=request.prefix[: len(request.prefix) - len(context.held)])
        return DecodeState(
            seen,
            fim_prompt(context, self.fim, self.vocabulary),
            [*context.prefix, *context.typed],
            list(context.suffix),
            self.speculation.verifier.picker(request),
            deadline,
            held=context.held,
        )

    def _context(self, request: Request) -> PromptTokens:
        tokens = self.budget.tokens(request.deadline_ms)
        return cut_context(request, self.card, self.vocabulary, tokens=tokens, healing=self.healing)

    def _use(self, request: Request, prompt: Sequence[int]) -> PromptUse:
        """Return how much of the text around the cursor is in the prompt."""
        limit = self.budget.tokens(request.deadline_ms)
        return prompt_use(request, self._context(request), self.vocabulary, len(prompt), limit)

    def warm(self, request: Request, deadline: Deadline) -> None:
        """Prefill the prompt, so that ``complete`` starts at once."""
        for _ in self.warm_steps(request, deadline):
            pass

    def warm_steps(self, request: Request, deadline: Deadline) -> Iterator[Pass]:
        """Do what ``warm`` does, but yield each pass before it is run, so that it can run with others."""
        prompt = self.prompt(request)
        reading = self.cache.prefilling(prompt, deadline, want_logits=False)
        return self.cache.prompts.within(prompt, reading)

    def num_uncached_tokens(self, request: Request) -> int:
        """Return the number of tokens that a prefill of the prompt would compute now."""
        return self.cache.num_uncached_tokens(self.prompt(request))

    def complete(self, request: Request, deadline: Deadline) -> Iterator[Chunk]:
        """Yield a chunk for each pass; the last one has the reason. Raises ``NonFiniteError``."""
        return (step for step in self.steps(request, deadline) if isinstance(step, Chunk))

    def steps(self, request: Request, deadline: Deadline) -> Iterator[Chunk | Pass]:
        """Do what ``complete`` does, but yield each pass before it is run, so that it can run with others.

        If a drafter caches one text alone, no pass is yielded: requests must not interleave.
        """
        steps = self._steps(request, deadline)
        if self.speculation.interleaves:
            return steps
        return (step for step in steps if isinstance(step, Chunk))

    def _steps(self, request: Request, deadline: Deadline) -> Iterator[Chunk | Pass]:
        started = time.perf_counter()
        state = self.decode_state(request, deadline)
        yield from self.cache.prompts.within(state.prompt, self._complete(request, state, started))

    def _complete(
        self, request: Request, state: DecodeState, started: float
    ) -> Generator[Chunk | Pass, None, None]:
        """Yield the passes and chunks of one middle, in the cache's current buffer."""
        deadline = state.deadline
        policy = self.speculation.policy
        kept = self.cache.prompts.current
        output = Output(self.vocabulary, request, state.held)
        rounds = list[Round]()
        state.useful = lambda draft: self._useful(state, output, draft)
        forwards = kept.forwards
        rested = policy.switched_off
        prefill = Prefill()

        def chunk(text: str, reason: Reason | None, made: Round | None = None) -> Chunk:
            used = kept.forwards - forwards
            if reason is None:
                return Chunk(text, len(state.ids), used, None, round=made, prefill=prefill)
            drafting = Drafting.of(rounds, policy.switched_off - rested)
            use = self._use(request, state.prompt)
            sure = confidence(state)
            return Chunk(text, len(state.ids), used, reason, (), made, drafting, prefill, sure, use)

        try:
            for made in self._rounds(state, deadline):
                if isinstance(made, Pass):
                    yield made
                    continue
                prefill = prefill if rounds else kept.prefilled._replace(ms=ms_since(started))
                rounds.append(made)
                text, reason = self._take(state, output, made)
                if reason := reason or deadline.spent():
                    text += output.rest()
                yield chunk(text, reason, made)
                if reason:
                    return
            yield chunk(output.rest(), deadline.spent())
        except NonFiniteError:
            self.cache.wipe()
            raise
        finally:
            self.speculation.observe(state, ended=True)

    def _rounds(self, state: DecodeState, deadline: Deadline) -> Iterator[Round | Pass]:
        """Prefill the prompt, then draft and verify until the deadline; yields each pass before it is run."""
        ahead = self.speculation.lookahead
        beyond = ahead.beyond(self.speculation.policy.costs) if ahead else None
        logits = yield from self.cache.prefilling(state.prompt, deadline, want_logits=True, beyond=beyond)
        if logits is None:
            return
        if ahead:
            logits = ahead.opened(logits, beyond)
        state.hidden = ahead.text.hidden[0] if ahead else self.cache.network.hidden[0, -1]
        yield self.speculation.begin(state, self._healed(logits, state.held))
        while not deadline.spent():
            begun = self.speculation.start_round(state, self._limit(state.request) - len(state.ids) - 1)
            yield begun.pass_
            if not begun.pass_.done and deadline.spent():
                return
            yield self.speculation.end_round(state, begun)

    def _healed(self, logits: torch.Tensor, held: str) -> torch.Tensor:
        """Mask logits (V,) of the first token, so that it begins with ``held``."""
        if self.healing is None or not held:
            return logits
        allowed = self.healing.allowed(held, logits.shape[-1], logits.device)
        return logits.masked_fill(~allowed, -torch.inf)

    def _take(self, state: DecodeState, output: Output, made: Round) -> tuple[str, Reason | None]:
        """Return the text of a round's tokens, and the reason if the middle ends with them.

        Tokens after the end are removed from ``state``.
        """
        text = ""
        first = len(state.ids) - made.accepted - 1
        for count in range(first, len(state.ids)):
            if state.ids[count] in self.stops:
                del state.ids[count:]
                text += output.rest()
                return text, Reason.END if output.text.strip() else Reason.EMPTY
            text += output.show(state.ids[: count + 1])
            reason = output.reason or (Reason.LENGTH if count + 1 >= self._limit(state.request) else None)
            if reason:
                del state.ids[count + 1 :]
                return text, reason
        return text, None

    def _useful(self, state: DecodeState, output: Output, draft: Sequence[int]) -> int:
        """Return how many tokens of a draft can be used: those up to the one that would end the middle."""
        stop = next((n for n, token in enumerate(draft) if token in self.stops), len(draft))
        useful = output.useful(state.ids, draft[:stop])
        return useful if useful < stop else min(stop + 1, len(draft))

    def _limit(self, request: Request) -> int:
        return min(request.sampling.max_tokens, self.card.max_new_tokens)


def confidence(state: DecodeState) -> float | None:
    """Return the geometric mean of the probabilities of the middle's tokens; ``None`` if it is empty.

    Probabilities are those at temperature 1, also if the text was sampled at another one.
    """
    count = len(state.ids)
    return torch.cat(state.log_probs)[:count].mean().exp().item() if count else None
