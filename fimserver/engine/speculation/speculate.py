"""Speculative decoding: propose, verify, accept, observe (Leviathan et al., arXiv 2211.17192).

The text does not depend on drafts: every pass has a shape that leaves the bits of logits as they are
(``pass_cost.py``), branches are copies of the text's rows (``kv.py``), and the verifier keeps the text, or
its distribution, for any drafts (``verify.py``).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import torch

from fimserver.engine.device import to_device
from fimserver.engine.forward.pass_cost import PassCosts
from fimserver.engine.forward.passes import Pass
from fimserver.engine.forward.prefix_cache import PrefixCache
from fimserver.engine.speculation.draft_policy import DraftPlan, DraftPolicy
from fimserver.engine.speculation.drafts import DecodeState, Draft, Drafter, cut_draft
from fimserver.engine.speculation.lookahead import Lookahead, Outlook
from fimserver.engine.speculation.verify import Verifier
from fimserver.lengths import common_prefix
from fimserver.types import Round

FIXED = (3, 8)  # branches and rows with a verifier that is not adaptive


class Verification(NamedTuple):
    """A round in progress: its pass, and the masks in it if it also prepares the next draft."""

    plan: DraftPlan
    pass_: Pass
    outlook: Outlook | None


class Speculation:
    """Decodes with a target model, its drafters from cheap to costly, and a verifier.

    Without drafters it is plain decoding.
    """

    def __init__(
        self,
        cache: PrefixCache,
        drafters: Sequence[Drafter],
        verifier: Verifier,
        costs: PassCosts,
        lookahead: Lookahead | None = None,
    ) -> None:
        """``lookahead``: the one of the drafters that prepares the next draft in the pass that verifies."""
        self.cache = cache
        self.drafters = tuple(drafters)
        self.lookahead = lookahead if verifier.adaptive else None
        self.verifier = verifier
        self.policy = DraftPolicy(costs)

    @property
    def interleaves(self) -> bool:
        """Whether requests may alternate round by round."""
        return not any(drafter.keeps_text for drafter in self.drafters)

    def begin(self, state: DecodeState, logits: torch.Tensor) -> Round:
        """Choose the first token from the logits (V,) of the prompt's last row."""
        token, branch = self.verifier.accept(logits[None, None], (), state)
        state.log_probs.append(log_probs_of(logits[None], token))
        state.ids += token
        self.observe(state, ended=False)
        return Round((1, 1), "", (), 0, token[branch], 0)

    def round(self, state: DecodeState, max_draft_tokens: int) -> Round:
        """Run one pass: ``state.ids`` grows by 1 to ``max_draft_tokens`` + 1 tokens.

        Raises ``NonFiniteError``.
        """
        return self.end_round(state, self.start_round(state, max_draft_tokens))

    @torch.inference_mode()
    def start_round(self, state: DecodeState, max_draft_tokens: int) -> Verification:
        """Ask the drafters and prepare the pass that verifies their drafts."""
        plan = self.propose(state, max_draft_tokens)
        policy = self.policy
        outlook = self.lookahead and self.lookahead.outlook(plan, policy.survival, policy.costs)
        if not (self.lookahead and outlook):
            return Verification(plan, self._pass(state, plan), None)
        return Verification(plan, self.lookahead.start(state, _only(plan), outlook), outlook)

    @torch.inference_mode()
    def end_round(self, state: DecodeState, round_: Verification) -> Round:
        """Accept tokens by the logits of the round's pass, which is run now unless it ran with others."""
        started = time.perf_counter()
        plan, logits, hidden = self.verify(state, round_)
        tokens, branch = self.verifier.accept(logits, plan.drafts, state)
        state.log_probs.append(log_probs_of(logits[branch], tokens))
        company = round_.pass_.company
        took_ms = 1000 * (time.perf_counter() - started)
        self.policy.learn(plan, tokens, took_ms if company == 1 else None)
        self.policy.costs.company = company  # the best guess for the next pass
        self.commit(state, tokens, branch, hidden)
        return _record(plan, tokens, branch)

    def propose(self, state: DecodeState, max_draft_tokens: int) -> DraftPlan:
        """Ask the drafters, cheap ones first, and skip those that are not expected to pay."""
        size = min(max_draft_tokens, self.policy.costs.longest - 1)
        if not self.verifier.adaptive:
            return self._fixed(state, size)
        drafts: list[Draft] = []
        plan = DraftPlan(self.policy.costs.plain, (), 1.0)
        for drafter in self.drafters if size > 0 else ():
            if self.policy.asks(drafter.name, plan):
                drafts += self._ask(drafter, state, size)
                plan = self.policy.plan(drafts, size)
        if self.lookahead:
            self.lookahead.weigh(drafts, self.policy, size)
        return plan

    def verify(
        self, state: DecodeState, round_: Verification
    ) -> tuple[DraftPlan, torch.Tensor, torch.Tensor]:
        """Return the plan, logits (B, M, V) and hidden states (B, M, d) of the last id and the drafts.

        The plan has the shape that was run, masks for the next draft included.
        """
        plan = round_.plan
        if round_.outlook is None:
            logits = round_.pass_.result()
            return plan, logits, self.cache.network.hidden
        assert self.lookahead
        texts = len(_only(plan)) + 1
        logits = self.lookahead.end(state, texts, round_.outlook, round_.pass_)
        return plan._replace(shape=(1, round_.outlook.rows)), logits, self.lookahead.text.hidden[None]

    def _pass(self, state: DecodeState, plan: DraftPlan) -> Pass:
        """Return the pass without masks, with logits (B, M, V); unused rows hold token 0."""
        branches, rows = plan.shape
        texts = [draft.tokens for draft in plan.drafts] or [()]
        texts += [()] * (branches - len(texts))
        last = state.ids[-1]
        return self.cache.branches_pass(
            [[last, *text] + [0] * (rows - 1 - len(text)) for text in texts], self._position(state)
        )

    def commit(self, state: DecodeState, tokens: list[int], branch: int, hidden: torch.Tensor) -> None:
        """Keep the KV rows of the accepted tokens (later passes overwrite the rest); notify the drafters."""
        position = self._position(state)
        rows = len(tokens)
        self.cache.kv.keep_branch(branch, position, position + rows)
        state.hidden = hidden[branch, rows - 1]
        state.ids += tokens
        self.observe(state, ended=False)

    def observe(self, state: DecodeState, *, ended: bool) -> None:
        for drafter in self.drafters:
            drafter.observe(state, ended=ended)

    def _position(self, state: DecodeState) -> int:
        """Return the position of the last id, which has not been run through the network yet."""
        return len(state.prompt) + len(state.ids) - 1

    def _ask(self, drafter: Drafter, state: DecodeState, size: int) -> list[Draft]:
        started = time.perf_counter()
        # Drafts are cut after the token that would end the middle: their length depends on kept tokens alone,
        # so every verifier stays exact.
        drafts = [cut_draft(draft, state.useful(draft.tokens)) for draft in drafter.propose(state, size)]
        self.policy.asked(drafter.name, 1000 * (time.perf_counter() - started), drafts)
        return drafts

    def _fixed(self, state: DecodeState, size: int) -> DraftPlan:
        """Plan with all drafters and a constant length.

        In rejection sampling, a length that depends on the drawn tokens would bias the distribution.
        """
        shape = min(
            self.policy.costs.ms, key=lambda shape: abs(shape[0] - FIXED[0]) + abs(shape[1] - FIXED[1])
        )
        size = min(size, shape[1] - 1)
        drafts = (
            [draft for drafter in self.drafters for draft in self._ask(drafter, state, size)]
            if size > 0
            else []
        )
        return DraftPlan(shape, tuple(drafts[: shape[0]]), 1.0)


def _only(plan: DraftPlan) -> tuple[int, ...]:
    """Return the tokens of a plan's only draft; empty if it has none."""
    return plan.drafts[0].tokens if plan.drafts else ()


def log_probs_of(logits: torch.Tensor, tokens: Sequence[int]) -> torch.Tensor:
    """Return log probabilities (n,) of n tokens by the first n rows of logits (M, V), at temperature 1."""
    rows = logits[: len(tokens)].float()
    chosen = rows.gather(-1, to_device(tokens, rows.device)[:, None])[:, 0]
    return chosen - rows.logsumexp(-1)


def _record(plan: DraftPlan, tokens: Sequence[int], branch: int) -> Round:
    drafted = plan.drafts[branch] if plan.drafts else Draft("", (), ())
    accepted = min(common_prefix(drafted.tokens, tokens), len(tokens) - 1)
    return Round(
        plan.shape,
        drafted.source,
        drafted.tokens,
        accepted,
        tokens[-1],
        sum(len(d.tokens) for d in plan.drafts),
    )
