"""Drafters that the acceptance oracle compares: other engines', and fimserver's with more and less context.

A drafter here is a function from the middle so far to drafts.
"""

from __future__ import annotations

import dataclasses
import time
from collections import defaultdict
from collections.abc import Callable, Sequence

from fimserver.cards import MODELS, get_card
from fimserver.engine.drafters.ngram.drafter import NGramDrafter
from fimserver.engine.drafters.ngram.index_cache import IndexCache
from fimserver.engine.prompts.prompt import cut_context, fim_prompt
from fimserver.engine.prompts.vocabulary import Vocabulary, read_tokenizer
from fimserver.engine.speculation.drafts import DecodeState, Draft
from fimserver.types import Request, Snippet

NODES = 24
BRANCHES, ROWS = 3, 8  # a shape of a pass of our engine: drafts side by side, without shared rows
Drafts = list[tuple[int, ...]]
Arm = Callable[[list[int], list[int]], Drafts]  # (middle so far, what of it is new) -> drafts
Cut = Callable[[list[Draft]], Drafts]


def tree(drafts: list[Draft]) -> Drafts:
    """As many nodes as one pass verifies, in the order of the drafts."""
    nodes = dict.fromkeys(draft.tokens[: n + 1] for draft in drafts for n in range(len(draft.tokens)))
    return list(nodes)[:NODES]


def chain(size: int) -> Cut:
    return lambda drafts: [draft.tokens[:size] for draft in drafts[:1]]


def side_by_side(drafts: list[Draft]) -> Drafts:
    return [draft.tokens[: ROWS - 1] for draft in drafts[:BRANCHES]]


CUTS: dict[str, Cut] = {
    "chain 7": chain(7),
    "chain 15": chain(15),
    f"{BRANCHES} x {ROWS} rows": side_by_side,
    f"tree {NODES}": tree,
}


class Ours:
    """The n-gram drafter for nano with a prompt budget, and the times of its calls."""

    def __init__(self, prompt_tokens: int) -> None:
        self.card = get_card("nano").model_copy(update={"prompt_tokens": prompt_tokens})
        self.vocabulary = Vocabulary(read_tokenizer(MODELS / "nano", self.card), self.card)
        self.costs_us: defaultdict[str, list[float]] = defaultdict(list)

    def line(self, request: Request) -> DecodeState:
        """Return the state that the engine makes of a request."""
        context = cut_context(request, self.card, self.vocabulary)
        assert self.card.fim
        prompt = fim_prompt(context, self.card.fim, self.vocabulary)
        return DecodeState(
            request,
            prompt,
            [*context.prefix, *context.typed],
            list(context.suffix),
            lambda _logits, _offset: (0, None),
        )

    def arm(self, line: DecodeState, index_cache: IndexCache, cut: Cut) -> Arm:
        """Make an arm that has read all texts, as after some middles in the same files."""
        drafter = NGramDrafter(self.vocabulary, index_cache)
        line = dataclasses.replace(line, ids=[])
        self._timed("a new middle", lambda: drafter.observe(line, ended=False))

        def drafts(middle: list[int], new: list[int]) -> Drafts:
            line.ids += new
            found: list[Draft] = []
            if new:
                self._timed("observe", lambda: drafter.observe(line, ended=False))
            self._timed(
                "propose" if len(middle) > 4 else "propose at first",
                lambda: found.extend(drafter.propose(line, NODES)),
            )
            return cut(found)

        return drafts

    def read(self, line: DecodeState, index_cache: IndexCache) -> None:
        """Read all texts that ``line`` could be drafted from."""
        NGramDrafter(self.vocabulary, index_cache).observe(line, ended=False)
        while index_cache.build(2000):
            pass

    def _timed(self, what: str, work: Callable[[], None]) -> None:
        started = time.perf_counter()
        work()
        self.costs_us[what].append((time.perf_counter() - started) * 1e6)


def arms(
    ours: Ours, request: Request, others: Sequence[Snippet], index_caches: dict[str, IndexCache]
) -> dict[str, Arm]:
    """Return the arms to compare, by name."""
    line = ours.line(request)
    shown = Request(ours.vocabulary.decode(line.prefix), ours.vocabulary.decode(line.suffix))
    lines = {
        "prompt": dataclasses.replace(line, request=shown),
        "file": line,
        "+ open files": dataclasses.replace(
            line, request=dataclasses.replace(request, snippets=tuple(others))
        ),
    }
    made: dict[str, Arm] = {
        "none": lambda _middle, _new: [],
        "transformers prompt lookup (n<=2, 10)": prompt_lookup(line.prompt),
        "vLLM ngram (n=5, 5)": vllm_ngram(line.prompt),
    }
    for source, seen in lines.items():
        index_cache = index_caches.setdefault(source, IndexCache(ours.vocabulary, 10**7))
        ours.read(seen, index_cache)
        cuts = CUTS if source != "prompt" else {name: CUTS[name] for name in list(CUTS)[-1:]}
        made |= {f"ours, {source}, {name}": ours.arm(seen, index_cache, cut) for name, cut in cuts.items()}
    return made


def prompt_lookup(prompt: list[int], longest: int = 2, size: int = 10) -> Arm:
    """Transformers' ``PromptLookupCandidateGenerator``.

    The leftmost match of the longest n-gram that matches at all.
    """
    return lambda middle, _new: leftmost(prompt + middle, range(longest, 0, -1), size)


def vllm_ngram(prompt: list[int], shortest: int = 5, longest: int = 5, size: int = 5) -> Arm:
    """VLLM's ``ngram`` with its defaults: the same with n-grams of five tokens only."""
    return lambda middle, _new: leftmost(prompt + middle, range(longest, shortest - 1, -1), size)


def leftmost(ids: list[int], lengths: Sequence[int], size: int) -> Drafts:
    """What followed the first place of the last n tokens, for the first of ``lengths`` that has one."""
    for length in (n for n in lengths if n < len(ids)):
        tail = ids[-length:]
        for at in range(len(ids) - length):
            if ids[at] == tail[0] and ids[at : at + length] == tail:
                return [tuple(ids[at + length : at + length + size])]
    return []
