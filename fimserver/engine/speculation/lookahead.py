"""Lookahead: one pass that verifies a draft and prepares the next one (arXiv 2507.11851, 2511.08923).

After the text rows of a draft, a pass has groups of masks, one for each number of draft tokens that may be
accepted. A group attends to the text up to that length and to itself, so that its masks are the next draft if
exactly that many tokens are accepted. Text rows never attend to a mask: their logits, keys and values are
those of a pass without lookahead.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch

from fimserver.engine.device import to_device
from fimserver.engine.forward.pass_cost import PassCosts
from fimserver.engine.forward.passes import Pass
from fimserver.engine.forward.prefix_cache import Beyond, PrefixCache
from fimserver.engine.sampling import chosen
from fimserver.engine.speculation.draft_policy import DraftPlan, DraftPolicy, Survival
from fimserver.engine.speculation.drafts import DecodeState, Draft, cut_draft, read_graded
from fimserver.types import Deadline

if TYPE_CHECKING:
    from fimserver.engine.forward.adapter import CanvasNetwork

MOST_MASKS = 3
MOST_MASKED_ROWS = 16  # rows of a pass with masks, at most
_PRIOR = (0.5, 0.25, 0.15)  # expected gain in tokens of the first, second and third mask, before any draft
_PRIOR_WEIGHT = 2.0  # drafts that the prior counts for
_MEMORY = 100.0  # drafts after which older ones lose weight
_MARGIN = 1.5  # with other drafters, masks must gain this many times their cost, as both are estimates
_RETRIAL = 8  # prompts after which masks that did not pay are tried again
_SMOOTHING = 0.1
_ROUNDS = 3


class Outlook(NamedTuple):
    """The groups of masks of a pass: one of ``masks`` rows for each accepted length in ``lengths``."""

    rows: int  # of the whole pass
    lengths: tuple[int, ...]
    masks: int


@dataclass(frozen=True)
class Prepared:
    """Output of a group of m masks after position ``place`` of the middle.

    ``hidden`` (m, d) and ``logits`` (m, V): row i predicts token ``place`` + 1 + i.
    """

    place: int
    hidden: torch.Tensor
    logits: torch.Tensor


@dataclass
class TextAhead:
    """Output of the last pass over one text.

    ``hidden`` (M, d): of the text rows. ``groups``: by the length of the middle that they continue.
    ``prepared``: the group that continues the accepted tokens.
    """

    hidden: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    groups: dict[int, Prepared] = field(default_factory=dict)
    prepared: Prepared | None = None


class Lookahead:
    """A drafter without passes of its own: adds masks to verifying passes and drafts from their logits.

    Each cached prompt has its own ``TextAhead``; estimates of gain and time are shared.
    """

    name = "lookahead"
    inline = True
    keeps_text = False

    def __init__(
        self,
        cache: PrefixCache,
        network: CanvasNetwork,
        most_masks: int = MOST_MASKS,
        mask_costs: Mapping[int, float] | None = None,
    ) -> None:
        """``mask_costs``: extra cost of masks in a pass (``measure_masks``); ``None``: no cost."""
        self.mask_costs = mask_costs or {}
        self._draft_ms = 0.0  # time to draft one token from the logits of a mask
        self.cache = cache
        self.network = network
        self.sizes = [size for size in network.adapter.blocks if size <= most_masks]
        self._texts: defaultdict[int, TextAhead] = defaultdict(TextAhead)
        self.alone = False  # whether drafts are valued by themselves, not by what they add to other drafts
        self._worth = {
            size: [_PRIOR_WEIGHT * sum(_PRIOR[:size]), _PRIOR_WEIGHT] for size in self.sizes
        }  # by number of masks: tokens gained, and number of drafts
        self._unopened = 0  # consecutive prompts without masks

    @property
    def text(self) -> TextAhead:
        """The state of the cache's current prompt."""
        return self._texts[self.cache.prompts.current.number]

    def beyond(self, costs: PassCosts) -> Beyond | None:
        """Return masks for the padding rows of a prompt's last chunk; ``None`` if they would not pay.

        The rows are computed in any case, but not their low-rank branches and logits; these are assumed to
        cost what masks add to a pass of one row.
        """
        most = max(self.sizes, default=0)
        rows = min((rows for rows in self.mask_costs if rows > most), default=0)
        plain_ms = costs.ms[costs.plain]
        masked_ms = costs.ms.get((1, rows), plain_ms) * (1 + self.mask_costs.get(rows, 0.0))
        price = self._margin * (masked_ms + most * self._draft_ms - plain_ms) / plain_ms
        pays = most > 0 and self._tokens(most) > price
        if not (self.alone or pays or self._unopened >= _RETRIAL):
            self._unopened += 1
            return None
        self._unopened = 0
        return Beyond((self.network.mask_token,) * most, self.network)

    def opened(self, logits: torch.Tensor, beyond: Beyond | None) -> torch.Tensor:
        """Store the output of the masks after a prompt; return the logits (V,) of the prompt's last row.

        ``logits`` (1 + n, V): of that row and of the n masks, 0 if they had no room; (V,) if ``beyond`` is
        ``None``.
        """
        hidden = self.network.hidden[0] if beyond else self.cache.network.hidden[0, -1:]
        rows = logits if beyond else logits[None]
        groups = {0: Prepared(0, hidden[1:], rows[1:])} if len(rows) > 1 else {}
        self._texts[self.cache.prompts.current.number] = TextAhead(hidden[:1], groups)
        return rows[0]

    def likeliest_tokens(self) -> list[int]:
        """Return the likeliest tokens after the last one, one for each mask that has been run for it."""
        prepared = self.text.prepared
        return prepared.logits.argmax(-1).tolist() if prepared else []

    def outlook(self, plan: DraftPlan, survival: Survival, costs: PassCosts) -> Outlook | None:
        """Choose the groups of masks that pay for their rows in this pass; ``None`` if no group does.

        The gain of a group is the average gain of drafts with as many masks (``weigh``). Its cost is the
        number of tokens that the plan without masks makes in the time of the masks' rows and of the draft.
        """
        if len(plan.drafts) > 1:
            return None
        chances = survival.along(plan.drafts[0]) if plan.drafts else []
        reached = [1.0, *chances, 0.0]
        ends = {length: reached[length] - reached[length + 1] for length in range(len(chances) + 1)}
        likely = sorted(ends, key=lambda length: -ends[length])
        rate = plan.expected / costs.ms[plan.shape]
        best, most = None, 0.0
        for (branches, rows), ms in costs.ms.items():
            spare = rows - len(reached) + 1
            if branches != 1 or spare < 1 or rows > MOST_MASKED_ROWS:
                continue
            masked_ms = ms * (1 + self.mask_costs.get(rows, 0.0) * spare / (rows - 1))
            for masks in self.sizes:
                lengths = likely[: spare // masks]
                gain = self._tokens(masks) * sum(ends[length] for length in lengths)
                gain -= self._margin * rate * (masked_ms + masks * self._draft_ms - costs.ms[plan.shape])
                if lengths and gain > most:
                    best, most = Outlook(rows, tuple(sorted(lengths)), masks), gain
        return best

    def start(self, state: DecodeState, tokens: Sequence[int], outlook: Outlook) -> Pass:
        """Return the pass over the last id, the draft ``tokens`` and the masks of ``outlook``."""
        texts = len(tokens) + 1
        start = len(state.prompt) + len(state.ids) - 1
        masks = outlook.rows - texts
        offsets = [length + 1 + i for length in outlook.lengths for i in range(outlook.masks)]
        offsets += [0] * (masks - len(offsets))  # padding rows, which no row attends to
        device = self.network.device
        ids = [state.ids[-1], *tokens, *[self.network.mask_token] * masks]
        positions = to_device([start + offset for offset in (*range(texts), *offsets)], device)
        wanted = torch.arange(texts + len(outlook.lengths) * outlook.masks, device=device)
        mask = self._mask(start, texts, outlook)
        return self.cache.rows_pass(ids, start, mask, wanted, self.network, positions)

    def end(self, state: DecodeState, texts: int, outlook: Outlook, pass_: Pass) -> torch.Tensor:
        """Store the output of the masks; return logits (1, M, V) of the text rows, the first ``texts``."""
        logits = pass_.result()
        hidden = self.network.hidden[0]
        text = self.text
        text.hidden = hidden[:texts]
        text.groups = {}
        for number, length in enumerate(outlook.lengths):
            rows = slice(texts + number * outlook.masks, texts + (number + 1) * outlook.masks)
            place = len(state.ids) + length
            text.groups[place] = Prepared(place, hidden[rows], logits[0, rows])
        return logits[:, :texts]

    def _mask(self, start: int, texts: int, outlook: Outlook) -> torch.Tensor:
        mask = self.cache.causal(start, outlook.rows).clone()
        mask[texts:, start:] = False
        for number, length in enumerate(outlook.lengths):
            first = texts + number * outlook.masks
            rows = slice(first, first + outlook.masks)
            mask[rows, start : start + length + 1] = True
            mask[rows, start + first : start + first + outlook.masks] = True
        return mask

    @torch.inference_mode()
    def propose(self, state: DecodeState, size: int) -> list[Draft]:
        """Draft from the masks of the last pass, if it had masks after the accepted tokens."""
        prepared = self.text.prepared
        if prepared is None or prepared.place != len(state.ids) - 1 or size < 1:
            return []
        started = time.perf_counter()
        sampling = state.request.sampling  # used by an adaptive verifier alone, which chooses by these
        token = to_device(state.ids[-1:], self.network.device)
        picked = list[torch.Tensor]()
        rows = list[torch.Tensor]()
        for hidden, logits in zip(prepared.hidden[:size], prepared.logits[:size], strict=True):
            rows.append(self.network.after(hidden, logits, token))
            token = chosen(rows[-1], sampling.temperature, sampling.seed, len(state.ids) + len(picked))
            picked.append(token)
        tokens, sure = read_graded(torch.stack(rows), torch.cat(picked))
        took_ms = 1000 * (time.perf_counter() - started) / len(tokens)
        self._draft_ms += _SMOOTHING * (took_ms - self._draft_ms)
        return [Draft(self.name, tokens, sure)]

    def observe(self, state: DecodeState, *, ended: bool) -> None:
        """Select the group of masks that follows the accepted tokens."""
        text = self.text
        text.prepared = None if ended else text.groups.get(len(state.ids) - 1)
        text.groups = {}

    @property
    def _margin(self) -> float:
        return 1.0 if self.alone else _MARGIN

    def weigh(self, drafts: Sequence[Draft], policy: DraftPolicy, size: int) -> None:
        """Update the average gain of a prepared draft over the other drafts of a round, by number of masks.

        The gain is in expected tokens, less those that the others would bring in the time of its rows.
        """
        own = next((draft for draft in drafts if draft.source == self.name), None)
        prepared = self.text.prepared
        if own is None or prepared is None:
            return
        others = [] if self.alone else [draft for draft in drafts if draft is not own]
        ms = policy.costs.ms
        without = policy.plan(others, size)
        for masks, worth in self._worth.items():
            if masks <= len(prepared.logits):
                with_it = policy.plan([*others, cut_draft(own, masks)], size)
                longer = ms[with_it.shape] / ms[without.shape] - 1
                fade = min(1.0, _MEMORY / (worth[1] + 1))
                worth[0] = (worth[0] + with_it.expected - without.expected * (1 + longer)) * fade
                worth[1] = (worth[1] + 1) * fade

    def _tokens(self, masks: int) -> float:
        """Return the expected gain in tokens of a draft with this number of masks."""
        tokens, drafts = self._worth[masks]
        return tokens / drafts


@torch.inference_mode()
def measure_masks(cache: PrefixCache, network: CanvasNetwork, rows: Sequence[int]) -> dict[int, float]:
    """Measure, by number of rows, how much longer a pass takes if all rows but the first are masks.

    Returns shares of the time without masks, from the fastest of several rounds in which both alternate.
    Forgets the prompts in the cache.
    """
    start = cache.chunk
    cache.prefill([0] * start, Deadline(), want_logits=False)
    best: dict[tuple[int, bool], float] = {}
    for _ in range(_ROUNDS):
        for count in rows:
            texts = cache.causal(start, count)
            masks = texts.clone()
            masks[1:, : start + count] = True
            every = torch.arange(count, device=network.device)
            for ids, mask, runs in (
                ([0] * count, texts, cache.network),
                ([0, *[network.mask_token] * (count - 1)], masks, network),
            ):
                started = time.perf_counter()
                cache.rows(ids, start, mask, every, runs)[0, 0].item()  # waits for the device
                ms = 1000 * (time.perf_counter() - started)
                key = (count, runs is network)
                best[key] = min(ms, best.get(key, ms))
    cache.clear()
    return {count: max(0.0, best[count, True] / best[count, False] - 1) for count in rows}
