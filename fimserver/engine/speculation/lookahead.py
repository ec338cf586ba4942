"""Lookahead: one pass that verifies a draft and prepares the next one (arXiv 2507.11851, 2511.08923).

Behind the text rows of a draft lie groups of masks, one for each number of tokens that may be accepted. A
group sees the text up to there and itself, so that whatever is accepted, the masks after it have been run.
Text rows never see a mask: their logits, keys and values are those of a pass without lookahead.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch

from fimserver.engine.forward.pass_cost import PassCosts
from fimserver.engine.forward.passes import Pass
from fimserver.engine.forward.prefix_cache import Beyond, PrefixCache
from fimserver.engine.speculation.draft_policy import DraftPlan, DraftPolicy, Survival
from fimserver.engine.speculation.drafts import DecodeState, Draft, cut_draft, grades
from fimserver.types import Deadline

if TYPE_CHECKING:
    from fimserver.engine.forward.adapter import CanvasNetwork

MOST_MASKS = 3
MOST_MASKED_ROWS = 16  # of a pass with masks
_PRIOR = (0.5, 0.25, 0.15)  # tokens that a mask is worth, by place, until some drafts were made
_PRIOR_WEIGHT = 2.0  # drafts that the prior counts for
_MEMORY = 100.0
_MARGIN = 1.5  # times what they cost that masks beside other drafters must bring: both are estimates
_RETRIAL = 8  # prompts after which masks that do not pay are tried again after one
_SMOOTHING = 0.1
_ROUNDS = 3


class Outlook(NamedTuple):
    """Which groups of masks a pass has: one of ``masks`` rows for each accepted length in ``lengths``."""

    rows: int  # of the whole pass
    lengths: tuple[int, ...]
    masks: int


@dataclass(frozen=True)
class Prepared:
    """What a group of masks said about the tokens after position ``place`` of the middle.

    ``hidden`` (m, d) and ``logits`` (m, V): row i is about token ``place`` + 1 + i.
    """

    place: int
    hidden: torch.Tensor
    logits: torch.Tensor


@dataclass
class TextAhead:
    """What the last pass of one text has prepared, by the length of the text that it is for.

    ``hidden`` (M, d): of its text rows. ``prepared``: the group for the text that has come.
    """

    hidden: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    groups: dict[int, Prepared] = field(default_factory=dict)
    prepared: Prepared | None = None


class Lookahead:
    """Makes passes with masks, and drafts from what they said. A drafter that costs no pass of its own.

    Each prompt that the cache keeps has its own ``TextAhead``; rates and times are of all texts.
    """

    name = "lookahead"
    inline = True
    keeps_text = False

    def __init__(
        self,
        cache: PrefixCache,
        network: CanvasNetwork,
        most_masks: int = MOST_MASKS,
        dearer: Mapping[int, float] | None = None,
    ) -> None:
        """``dearer``: what masks add to a pass (``measure_masks``); ``None``: nothing."""
        self.dearer = dearer or {}
        self._draft_ms = 0.0  # that a token of a draft takes, after the pass that prepared it
        self.cache = cache
        self.network = network
        self.sizes = [size for size in network.adapter.blocks if size <= most_masks]
        self._texts: defaultdict[int, TextAhead] = defaultdict(TextAhead)
        self.alone = False  # whether its drafts count for all they bring, not for what they add to others
        self._worth = {
            size: [_PRIOR_WEIGHT * sum(_PRIOR[:size]), _PRIOR_WEIGHT] for size in self.sizes
        }  # tokens, and the drafts that they are of
        self._unopened = 0  # prompts in a row without masks after them

    @property
    def text(self) -> TextAhead:
        """Of the cache's current prompt."""
        return self._texts[self.cache.prompts.current.number]

    def beyond(self, costs: PassCosts) -> Beyond | None:
        """Masks for the rows that fill up a prompt's last chunk, where the first draft pays for them.

        The rows are there anyway, but not their low-rank branches and logits: they are taken to cost what
        they add to a pass of one row.
        """
        most = max(self.sizes, default=0)
        rows = min((rows for rows in self.dearer if rows > most), default=0)
        plain_ms = costs.ms[costs.plain]
        masked_ms = costs.ms.get((1, rows), plain_ms) * (1 + self.dearer.get(rows, 0.0))
        price = self._margin * (masked_ms + most * self._draft_ms - plain_ms) / plain_ms
        pays = most > 0 and self._tokens(most) > price
        if not (self.alone or pays or self._unopened >= _RETRIAL):
            self._unopened += 1
            return None
        self._unopened = 0
        return Beyond((self.network.mask_token,) * most, self.network)

    def opened(self, logits: torch.Tensor, beyond: Beyond | None) -> torch.Tensor:
        """Keep what the masks after a prompt said; the logits (V,) of its last row.

        ``logits`` (1 + n, V): of that row, and of the n masks as far as they had room; (V,) where ``beyond``
        is ``None``.
        """
        hidden = self.network.hidden[0] if beyond else self.cache.network.hidden[0, -1:]
        rows = logits if beyond else logits[None]
        groups = {0: Prepared(0, hidden[1:], rows[1:])} if len(rows) > 1 else {}
        self._texts[self.cache.prompts.current.number] = TextAhead(hidden[:1], groups)
        return rows[0]

    def glance(self) -> list[int]:
        """The likeliest tokens after the last one, as far as masks have been run for it."""
        prepared = self.text.prepared
        return prepared.logits.argmax(-1).tolist() if prepared else []

    def outlook(self, plan: DraftPlan, survival: Survival, costs: PassCosts) -> Outlook | None:
        """The groups of masks that are worth their rows in this pass; ``None`` where none is.

        A draft that is ready counts for what drafts of so many masks have brought (``weigh``); the time of
        its rows, and of making it, for the tokens that the best plan without masks makes in that time.
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
            masked_ms = ms * (1 + self.dearer.get(rows, 0.0) * spare / (rows - 1))
            for masks in self.sizes:
                lengths = likely[: spare // masks]
                gain = self._tokens(masks) * sum(ends[length] for length in lengths)
                gain -= self._margin * rate * (masked_ms + masks * self._draft_ms - costs.ms[plan.shape])
                if lengths and gain > most:
                    best, most = Outlook(rows, tuple(sorted(lengths)), masks), gain
        return best

    def start(self, state: DecodeState, tokens: Sequence[int], outlook: Outlook) -> Pass:
        """The pass over the last id, the draft ``tokens`` after it, and the masks of ``outlook``."""
        texts = len(tokens) + 1
        start = len(state.prompt) + len(state.ids) - 1
        masks = outlook.rows - texts
        offsets = [length + 1 + i for length in outlook.lengths for i in range(outlook.masks)]
        offsets += [0] * (masks - len(offsets))  # rows that fill the shape up; nobody looks at them
        device = self.network.device
        ids = [state.ids[-1], *tokens, *[self.network.mask_token] * masks]
        positions = start + torch.tensor([*range(texts), *offsets], device=device)
        wanted = torch.arange(texts + len(outlook.lengths) * outlook.masks, device=device)
        mask = self._mask(start, texts, outlook)
        return self.cache.rows_pass(ids, start, mask, wanted, self.network, positions)

    def end(self, state: DecodeState, texts: int, outlook: Outlook, pass_: Pass) -> torch.Tensor:
        """Logits (1, M, V) of the ``texts`` first rows, as of a plain pass; what the masks said is kept."""
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
        """The draft that the last pass prepared, where what it prepared for has come."""
        prepared = self.text.prepared
        if prepared is None or prepared.place != len(state.ids) - 1 or size < 1:
            return []
        started = time.perf_counter()
        token = state.ids[-1]
        tokens = list[int]()
        rows = list[torch.Tensor]()
        for hidden, logits in zip(prepared.hidden[:size], prepared.logits[:size], strict=True):
            rows.append(self.network.after(hidden, logits, token))
            token = state.pick(rows[-1], len(state.ids) + len(tokens))[0]
            tokens.append(token)
        took_ms = 1000 * (time.perf_counter() - started) / len(tokens)
        self._draft_ms += _SMOOTHING * (took_ms - self._draft_ms)
        return [Draft(self.name, tuple(tokens), grades(torch.stack(rows), tokens))]

    def observe(self, state: DecodeState, *, ended: bool) -> None:
        """Pick the group of masks after the accepted tokens."""
        text = self.text
        text.prepared = None if ended else text.groups.get(len(state.ids) - 1)
        text.groups = {}

    @property
    def _margin(self) -> float:
        return 1.0 if self.alone else _MARGIN

    def weigh(self, drafts: Sequence[Draft], policy: DraftPolicy, size: int) -> None:
        """Learn what the draft that was ready adds to the others of a round, by the number of its masks.

        In expected tokens, less those that the others bring in the time of its own rows.
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
                dearer = ms[with_it.shape] / ms[without.shape] - 1
                fade = min(1.0, _MEMORY / (worth[1] + 1))
                worth[0] = (worth[0] + with_it.expected - without.expected * (1 + dearer)) * fade
                worth[1] = (worth[1] + 1) * fade

    def _tokens(self, masks: int) -> float:
        """What a draft of so many masks is expected to be worth, in tokens."""
        tokens, drafts = self._worth[masks]
        return tokens / drafts


@torch.inference_mode()
def measure_masks(cache: PrefixCache, network: CanvasNetwork, rows: Sequence[int]) -> dict[int, float]:
    """What a pass of so many rows takes longer where all but the first are masks, as a share of its time.

    The fastest of some rounds in which passes with and without masks take turns. Forgets the prompt.
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
