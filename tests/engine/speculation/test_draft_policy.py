"""Which drafters are asked, by what they cost and bring; all times are given, none is measured."""

import pytest

from fimserver.engine.forward.pass_cost import PassCosts
from fimserver.engine.speculation.draft_policy import DraftPolicy
from fimserver.engine.speculation.drafts import Draft

PASS_MS = 20.0
ROUNDS = 640
SHAPES = {(1, rows): PASS_MS * (1 + 0.02 * (rows - 1)) for rows in (1, 2, 4, 8)}  # a small coder on two cores


def asked_in(policy, drafters, right, rounds=ROUNDS):
    """How often each drafter was asked; ``drafters``: name to (ms, draft), ``right``: name to accepted tokens."""
    counts = dict.fromkeys(drafters, 0)
    for _ in range(rounds):
        plan = policy.plan([], 8)
        drafts = []
        for name, (ms, draft) in drafters.items():
            if policy.asks(name, plan):
                counts[name] += 1
                drafts += [draft]
                policy.asked(name, ms, [draft])
                plan = policy.plan(drafts, 8)
        (first, *_) = [*plan.drafts, Draft("", (), ())]
        policy.learn(plan, [*first.tokens[: right.get(first.source, 0)], 0], None)
    return counts


def a_draft(name, grade, first=1):
    return Draft(name, tuple(range(first, first + 6)), (grade,) * 6)


@pytest.mark.parametrize("grade", [0, 5, 9])
@pytest.mark.parametrize("ms", [0.3, 0.9, 1.5, 3.0])
def test_a_useless_drafter_costs_almost_nothing(grade, ms):
    """However sure it is of itself, and also where it costs a small share of a pass."""
    counts = asked_in(DraftPolicy(PassCosts(SHAPES)), {"block": (ms, a_draft("block", grade))}, {})
    assert counts["block"] * ms < 0.01 * ROUNDS * PASS_MS


def test_a_useful_drafter_is_asked_every_time():
    counts = asked_in(DraftPolicy(PassCosts(SHAPES)), {"block": (1.5, a_draft("block", 6))}, {"block": 1})
    assert counts["block"] == ROUNDS


@pytest.mark.parametrize(("accepted", "share"), [(5, 0.05), (0, 1.0)])
def test_a_block_drafter_is_asked_where_ngrams_find_little(accepted, share):
    drafters = {"ngram": (0.1, a_draft("ngram", 5)), "block": (1.5, a_draft("block", 5, 100))}
    counts = asked_in(DraftPolicy(PassCosts(SHAPES)), drafters, {"ngram": accepted, "block": 2})
    assert counts["block"] == pytest.approx(share * ROUNDS, abs=0.06 * ROUNDS)


def test_a_cheap_drafter_that_had_nothing_to_propose_is_asked_again():
    """So that n-grams are found as soon as the text repeats itself."""
    policy = DraftPolicy(PassCosts(SHAPES))
    for ms, always in ((0.9, True), (1.5, False)):
        asked = 0
        for _ in range(100):
            if policy.asks(str(ms), policy.plan([], 8)):
                policy.asked(str(ms), ms, [])
                asked += 1
        assert (asked == 100) == always
