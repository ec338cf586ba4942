"""The distribution of sampled text through the real loop, against the exact one of a small target.

``LAW_RUNS`` sets how many texts each case draws; `make law` draws 200,000.
"""

import itertools
import math
import os
from collections import Counter

import pytest
import torch

from fimserver.engine.forward.network import FakeNetwork
from fimserver.engine.forward.pass_cost import PassCosts
from fimserver.engine.forward.prefix_cache import PrefixCache
from fimserver.engine.speculation.drafts import DecodeState, Draft, draft_from
from fimserver.engine.speculation.speculate import Speculation
from fimserver.engine.speculation.verify import VERIFIERS, GumbelMaxVerifier
from fimserver.types import Request, Sampling

RUNS = int(os.environ.get("LAW_RUNS", "1500"))
V, LENGTH, TEMPERATURE = 4, 3, 0.8
TARGET = torch.randn(V, V, generator=torch.Generator().manual_seed(1)) * 1.2  # the logits after each token
DRAFT = TARGET + torch.randn(V, V, generator=torch.Generator().manual_seed(2))
CELLS = list(itertools.product(range(V), repeat=LENGTH))


class Chains:
    """Drafts drawn token by token from the draft's law, ``count`` of them."""

    name, inline, keeps_text = "chains", True, False

    def __init__(self, count):
        self.count = count

    def propose(self, line, size):
        return [self.chain(line, size) for _ in range(self.count)]

    def chain(self, line, size):
        last, tokens, laws = line.ids[-1], [], []
        for i in range(size):
            (token,), law = line.pick(DRAFT[last][None], len(line.ids) + i)
            tokens, laws, last = [*tokens, token], [*laws, law], token
        return Draft(self.name, tuple(tokens), (0,) * size, torch.cat(laws) if laws[0] is not None else None)

    def observe(self, line, *, ended):
        """It never learns."""


class Factorised(Chains):
    """Drafts whose tokens are drawn at once, as from a window of masks."""

    name = "factorised"

    def chain(self, line, size):
        return draft_from(self.name, DRAFT[line.ids[-1]].expand(size, -1), line)


class Argmax(Chains):
    """Drafts that follow from the text; nothing is drawn."""

    name = "argmax"

    def chain(self, line, size):
        tokens, last = [], line.ids[-1]
        for _ in range(size):
            last = int(DRAFT[last].argmax())
            tokens.append(last)
        return Draft(self.name, tuple(tokens), (0,) * size)


class Careless(Chains):
    """Drafts that claim another law than they were drawn from: the rules must notice nothing, the test must."""

    name = "careless"

    def chain(self, line, size):
        draft = super().chain(line, size)
        return draft._replace(
            marginals=draft.marginals.pow(0.5) / draft.marginals.pow(0.5).sum(-1, keepdim=True)
        )


def exact_law():
    """Probability of every text of LENGTH tokens after token 0."""
    laws = (TARGET.double() / TEMPERATURE).softmax(-1)
    return {cell: math.prod(float(laws[a, b]) for a, b in itertools.pairwise((0, *cell))) for cell in CELLS}


def draw_texts(rule, drafter, runs):
    """How often each text came out of the loop."""
    cache = PrefixCache(FakeNetwork(V, lambda token, _: TARGET[token]), 16, 4, branches=3)
    speculation = Speculation(
        cache, [drafter] if drafter else [], VERIFIERS[rule](), PassCosts({(1, 4): 1.0, (3, 4): 1.0})
    )
    counts = Counter()
    for seed in range(runs):
        request = Request("", "", sampling=Sampling(temperature=TEMPERATURE, seed=seed))
        line = DecodeState(request, [0], [0], [], speculation.verifier.picker(request), ids=[0])
        while len(line.ids) <= LENGTH:
            speculation.round(line, LENGTH - len(line.ids))
        counts[tuple(line.ids[1 : LENGTH + 1])] += 1
    return counts


def p_value(counts, law):
    """Chi-square of counts against a law; cells with fewer than 5 expected are pooled."""
    runs = sum(counts.values())
    rare = [cell for cell in law if law[cell] * runs < 5]
    groups = [[cell] for cell in law if cell not in rare] + ([rare] if rare else [])
    pairs = [(sum(counts[c] for c in group), runs * sum(law[c] for c in group)) for group in groups]
    statistic = sum((seen - wanted) ** 2 / wanted for seen, wanted in pairs)
    return float(torch.special.gammaincc(torch.tensor((len(pairs) - 1) / 2), torch.tensor(statistic / 2)))


CASES = [
    ("token", Chains(1)), ("token", Factorised(1)), ("token", Argmax(1)),
    ("block", Chains(1)), ("block", Factorised(1)), ("block", Argmax(1)),
    ("recursive", Chains(3)), ("recursive", Factorised(3)), ("recursive", Argmax(1)),
    ("keyed", Chains(3)), ("keyed", Argmax(1)), ("keyed", None),
]  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "drafter"), CASES, ids=lambda x: x if isinstance(x, str) else getattr(x, "name", "none")
)
def test_the_loop_keeps_the_law(rule, drafter):
    assert p_value(draw_texts(rule, drafter, RUNS), exact_law()) > 1e-6 / len(CASES)


@pytest.mark.parametrize("rule", ["token", "block", "recursive"])
def test_a_drafter_that_lies_about_its_law_is_found_out(rule):
    """The power of the test above: the same number of texts, a bias of a few per cent."""
    counts = draw_texts(rule, Careless(3 if rule == "recursive" else 1), max(RUNS, 3000))
    assert p_value(counts, exact_law()) < 1e-6


def test_drafts_do_not_change_keyed_text_and_seeds_do():
    plain = draw_texts("keyed", None, 200)
    assert draw_texts("keyed", Chains(3), 200) == plain
    assert len(plain) > 10


def test_keyed_acceptance_is_near_the_optimal_coupling():
    """At least (1 - TV) / (1 + TV) of first tokens are accepted (arXiv 2408.07978)."""
    p, q = (TARGET[0].double() / TEMPERATURE).softmax(-1), (DRAFT[0].double() / TEMPERATURE).softmax(-1)
    tv = float((p - q).abs().sum() / 2)
    same = 0
    for seed in range(400):
        pick = GumbelMaxVerifier().picker(Request("", "").with_sampling(temperature=TEMPERATURE, seed=seed))
        same += pick(TARGET[:1], 0)[0] == pick(DRAFT[:1], 0)[0]
    assert same / 400 > (1 - tv) / (1 + tv) - 0.08
