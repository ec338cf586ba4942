"""The verification rules keep the target's distribution: exactly, by enumeration of all comparisons, and in samples.

A law is a dict: prefix -> (V,) probabilities of the next token. What drafters do is a list of ``Drafted``: any joint law of
K drafts. A rule takes the arguments of ``recursive_rejection``.
"""

import itertools
import math
import random
from collections import Counter
from typing import NamedTuple

import pytest
import torch

from fimserver.engine.speculation.rejection_sampling import (
    Verdict,
    probabilities,
    recursive_rejection,
    verify_block,
    verify_tokens,
)
from fimserver.errors import NonFiniteError

EXACT = 1e-12


def alone(rule):
    return lambda targets, drafts, tokens, uniform: rule(targets[0], drafts[0], tokens[0], uniform)


RULES = {"token": alone(verify_tokens), "block": alone(verify_block), "recursive": recursive_rejection}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


# Enumeration: the real rule runs once for every way in which its comparisons can turn out.


class Number:
    """Some number of [0, 1), known by its comparisons alone; one that could turn out either way is followed both ways."""

    def __init__(self, turn):
        self.turn, self.low, self.high = turn, 0.0, 1.0

    def __lt__(self, other):
        threshold = float(other)
        if not self.low < threshold < self.high:
            return threshold >= self.high  # NaN: False
        below = self.turn()
        self.low, self.high = (self.low, threshold) if below else (threshold, self.high)
        return below


class Path:
    """One way through a rule, as its ``uniform``: the turns given, then always below."""

    def __init__(self, turns):
        self.turns, self.taken, self.numbers = turns, 0, []

    def __call__(self):
        self.numbers.append(Number(self.turn))
        return self.numbers[-1]

    def turn(self):
        self.taken += 1
        if self.taken > len(self.turns):
            self.turns.append(True)
        return self.turns[self.taken - 1]


def verdicts(rule, *arguments):
    """The exact law of a rule's verdict."""
    law, turns = Counter(), []
    while True:
        path = Path(turns)
        verdict = rule(*arguments, path)
        law[verdict] += math.prod(number.high - number.low for number in path.numbers)
        while turns and not turns[-1]:
            turns.pop()
        if not turns:
            return law
        turns[-1] = False


class Drafted(NamedTuple):
    """K drafts that are made with probability ``chance``, and the rows that their drafters say."""

    chance: float
    tokens: tuple
    rows: tuple


def rows(law, tokens, count):
    """The first ``count`` rows along ``tokens``, (count, V)."""
    size = len(law[()])
    return (
        torch.stack([law[tokens[:i]] for i in range(count)])
        if count
        else torch.empty(0, size, dtype=torch.float64)
    )


def outcomes(rule, target, drafted):
    """(verdict, drafts' tokens, probability), all there are."""
    for chance, tokens, said in drafted:
        targets = [rows(target, t, len(t) + 1) for t in tokens]
        for verdict, mass in verdicts(rule, targets, said, tokens).items():
            yield verdict, tokens, chance * mass


def error(rule, target, drafted):
    """The largest difference between the joint law of what is emitted, completed by the target, and the target's own."""
    depth = max(map(len, target)) + 1
    emitted = Counter()
    for verdict, tokens, mass in outcomes(rule, target, drafted):
        emitted[(*tokens[verdict.branch][: verdict.accepted], verdict.token)] += mass
    worst = 0.0
    for text in itertools.product(range(len(target[()])), repeat=depth):
        steps = [float(target[text[:i]][text[i]]) for i in range(depth)]
        got = math.fsum(emitted[text[:i]] * math.prod(steps[i:]) for i in range(1, depth + 1))
        worst = max(worst, abs(got - math.prod(steps)))
    return worst


def accepted(rule, target, drafted):
    """Expected number of drafted tokens that are accepted."""
    return math.fsum(verdict.accepted * mass for verdict, _, mass in outcomes(rule, target, drafted))


# Laws


def dense(generator, size):
    return (2 * torch.randn(size, generator=generator, dtype=torch.float64)).softmax(-1)


def sparse(generator, size):
    kept = torch.rand(size, generator=generator) < 0.5
    kept[torch.randint(size, (1,), generator=generator)] = True
    row = dense(generator, size) * kept
    return row / row.sum()


def single(generator, size):
    return torch.eye(size, dtype=torch.float64)[torch.randint(size, (1,), generator=generator)[0]]


def tied(generator, size, temperature=0.7):
    return probabilities(torch.randint(2, (1, size), generator=generator), temperature)[0]


def equal(generator, size, noise=0.0):
    row = dense(generator, size)
    return row, row * (1 + noise * torch.randn(size, generator=generator, dtype=torch.float64))


def disjoint(generator, size):
    row, mine = dense(generator, size), torch.arange(size) < size // 2
    return row * mine / row[mine].sum(), row * ~mine / row[~mine].sum()


PAIRS = {  # the target's row and the draft's
    "dense": lambda g, v: (dense(g, v), dense(g, v)),
    "zeros": lambda g, v: (sparse(g, v), sparse(g, v)),
    "equal": equal,
    "equal up to rounding": lambda g, v: equal(g, v, 1e-15),
    "disjoint": disjoint,
    "one-hot draft": lambda g, v: (dense(g, v), single(g, v)),
    "target at temperature 0": lambda g, v: (tied(g, v, 0.0), dense(g, v)),
    "tied logits": lambda g, v: (tied(g, v), tied(g, v)),
    "both one-hot": lambda g, v: (single(g, v), single(g, v)),
}
every_pair = pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)


def laws(pair, size, depth, seed=0):
    """Target and draft, another row for every prefix of at most ``depth`` tokens."""
    generator = torch.Generator().manual_seed(seed)
    prefixes = [p for n in range(depth + 1) for p in itertools.product(range(size), repeat=n)]
    pairs = [pair(generator, size) for _ in prefixes]
    return tuple({prefix: both[i] for prefix, both in zip(prefixes, pairs, strict=True)} for i in (0, 1))


def chain(law, length):
    """One draft of ``length`` tokens, or as many as ``length(tokens before)`` lets it have: [(chance, tokens, rows)]."""
    done, growing = [], [(1.0, ())]
    while growing:
        chance, tokens = growing.pop()
        if len(tokens) == (length(tokens) if callable(length) else length):
            done.append((chance, tokens, rows(law, tokens, len(tokens))))
        else:
            growing += [(chance * float(q), (*tokens, x)) for x, q in enumerate(law[tokens]) if q > 0]
    return done


def independent(*chains):
    """All combinations of K independent drafts."""
    for combination in itertools.product(*chains):
        chances, tokens, said = zip(*combination, strict=True)
        yield Drafted(math.prod(chances), tokens, said)


def fixed(*tokens):
    """Deterministic drafts."""
    return [Drafted(1.0, tokens, (None,) * len(tokens))]


# The joint law


@every_pair
@every_rule
@pytest.mark.parametrize(("size", "length"), [(4, 2), (3, 3), (2, 4), (3, 0)])
def test_one_draft(rule, pair, size, length):
    target, draft = laws(pair, size, length)
    assert error(rule, target, independent(chain(draft, length))) < EXACT


@every_rule
def test_four_tokens_of_four(rule):
    target, draft = laws(PAIRS["dense"], 4, 4, seed=1)
    assert error(rule, target, independent(chain(draft, 4))) < EXACT


@every_pair
@pytest.mark.parametrize(
    ("size", "lengths"),
    [
        (4, (1, 1)),
        (3, (2, 2)),
        (3, (0, 2)),
        (3, (2, 1)),
        (2, (3, 2)),
        (4, (1, 1, 1)),
        (3, (1, 2, 1)),
        (2, (2, 1, 2)),
    ],
)
def test_independent_drafts_of_any_lengths(pair, size, lengths):
    target, draft = laws(pair, size, max(lengths))
    assert error(recursive_rejection, target, independent(*(chain(draft, n) for n in lengths))) < EXACT


def test_drafts_from_different_drafters():
    target, first = laws(PAIRS["dense"], 3, 2)
    _, second = laws(PAIRS["zeros"], 3, 2, seed=1)
    lookup = [(1.0, (2, 1), None)]
    for order in itertools.permutations([chain(first, 2), chain(second, 1), lookup]):
        assert error(recursive_rejection, target, independent(*order)) < EXACT


def test_drafts_whose_tokens_are_independent_of_each_other():
    """A one-pass drafter: one row for each place, whatever stands before it."""
    target, draft = laws(PAIRS["dense"], 2, 3)
    factorised = {prefix: draft[(0,) * len(prefix)] for prefix in draft}
    drafts = [chain(factorised, n) for n in (3, 2, 2)]
    assert error(recursive_rejection, target, independent(*drafts)) < EXACT


@pytest.mark.parametrize(
    "tokens",
    [
        [(0,), (1,), (2,)],
        [(0, 1), (0, 2), (1, 1), (2,)],
        [(0,), (0, 1), (0, 2, 2)],  # a survivor has ended, others go on
        [(0, 1, 2), (0, 1), (0,), ()],
        [(1, 1), (1, 1), (1, 1, 0)],  # one is tried three times
    ],
)
@pytest.mark.parametrize("said", ["none", "one-hot"])
def test_deterministic_trees(tokens, said):
    target, _ = laws(PAIRS["dense"], 3, 3)
    drafted = fixed(*tokens)
    if said == "one-hot":
        drafted = [drafted[0]._replace(rows=[torch.eye(3)[list(t)] for t in tokens])]
    assert error(recursive_rejection, target, drafted) < EXACT


@every_rule
@pytest.mark.parametrize("tokens", [(), (0,), (1, 2, 0)])
def test_a_draft_that_nothing_was_drawn_for(rule, tokens):
    target, _ = laws(PAIRS["dense"], 3, 3)
    assert error(rule, target, fixed(tokens)) < EXACT


def test_siblings_drawn_without_replacement():
    target, draft = laws(PAIRS["dense"], 3, 2)
    drafted = []
    for chance, first, said in chain(draft, 2):
        left = draft[()].clone()
        left[first[0]] = 0
        others = {**draft, (): left / left.sum()}
        drafted += [Drafted(chance * c, (first, t), (said, r)) for c, t, r in chain(others, 2)]
    assert error(recursive_rejection, target, drafted) < EXACT


def shared_draw(draft, second_row):
    """Two drafts of two tokens that share the first: drawn once."""
    for (a, one, said), (b, other, _) in itertools.product(chain(draft, 2), chain(draft, 2)):
        if one[0] == other[0]:
            rest = torch.stack([second_row(one[0]), draft[one[:1]]])
            yield Drafted(a * b / float(draft[()][one[0]]), (one, other), (said, rest))


def test_a_shared_draw_is_said_once():
    target, draft = laws(PAIRS["dense"], 3, 2, seed=2)
    eye = torch.eye(3, dtype=torch.float64)
    assert error(recursive_rejection, target, shared_draw(draft, lambda x: eye[x])) < EXACT
    assert error(recursive_rejection, target, shared_draw(draft, lambda _: draft[()])) > 1e-3


@every_rule
def test_a_draft_may_stop_by_what_stands_before(rule):
    target, draft = laws(PAIRS["dense"], 3, 3)
    stops = chain(draft, lambda tokens: len(tokens) if 0 in tokens else 3)
    assert {len(tokens) for _, tokens, _ in stops} == {1, 2, 3}
    assert error(rule, target, independent(stops)) < EXACT
    if rule is recursive_rejection:
        assert error(rule, target, independent(stops, chain(draft, 2))) < EXACT


# What must not pass


def argmax_said_to_be_drawn(target, draft):
    """The most likely token at each place, verified as if it had been drawn (transformers' Gemma-4 assistants)."""
    tokens = ()
    while len(tokens) < 2:
        tokens = (*tokens, int(draft[tokens].argmax()))
    return [Drafted(1.0, (tokens,), (rows(draft, tokens, 2),))]


def chosen_by_the_verifier(target, draft):
    """The best of two drafts by the target's score, verified with its original q (SpecDiff-2 above temperature 0)."""
    for chance, tokens, said in independent(chain(draft, 2), chain(draft, 2)):
        best = max(
            (0, 1), key=lambda k: math.prod(float(target[tokens[k][:i]][tokens[k][i]]) for i in range(2))
        )
        yield Drafted(chance, (tokens[best],), (said[best],))


def cut_by_the_token_there(target, draft):
    """A draft that keeps a token only if it is probable enough."""
    for chance, tokens, said in chain(draft, 2):
        kept = next((i for i, x in enumerate(tokens) if draft[tokens[:i]][x] < 0.5), 2)
        yield Drafted(chance, (tokens[:kept],), (said[:kept],))


@every_rule
@pytest.mark.parametrize("drafts", [argmax_said_to_be_drawn, chosen_by_the_verifier, cut_by_the_token_there])
def test_a_false_q_is_found_out_and_no_q_is_always_true(rule, drafts):
    target, draft = laws(PAIRS["dense"], 3, 2)
    drafted = list(drafts(target, draft))
    assert math.fsum(d.chance for d in drafted) == pytest.approx(1)
    assert error(rule, target, drafted) > 1e-3
    assert error(rule, target, [d._replace(rows=(None,)) for d in drafted]) < EXACT


def test_no_bonus_while_others_had_their_share():
    def generous(targets, drafts, tokens, uniform):
        verdict = recursive_rejection(targets, drafts, tokens, uniform)
        ended = targets[verdict.branch][verdict.accepted :][:1]
        survivors = [t for t in tokens if t == tokens[verdict.branch][: verdict.accepted]]
        return verdict._replace(token=verify_tokens(ended, None, (), uniform).token) if survivors else verdict

    target, draft = laws(PAIRS["dense"], 3, 2)
    drafted = list(independent(chain(draft, 1), chain(draft, 2)))
    assert error(recursive_rejection, target, drafted) < EXACT
    assert error(generous, target, drafted) > 1e-3


# How much is accepted


def test_the_example_of_the_block_verification_paper():
    """Arxiv 2403.10444, section 1: 10/9 and 11/9 tokens of two."""
    target = {
        p: torch.tensor([1.0, 2.0]).double() / 3
        for n in range(3)
        for p in itertools.product((0, 1), repeat=n)
    }
    draft = {p: row.flip(0) for p, row in target.items()}
    drafted = list(independent(chain(draft, 2)))
    assert accepted(RULES["token"], target, drafted) == pytest.approx(10 / 9)
    assert accepted(RULES["block"], target, drafted) == pytest.approx(11 / 9)


@every_pair
@pytest.mark.parametrize("seed", range(3))
def test_more_is_never_less(pair, seed):
    target, draft = laws(pair, 3, 3, seed)
    one = list(independent(chain(draft, 3)))
    token = accepted(RULES["token"], target, one)
    assert accepted(RULES["block"], target, one) >= token - EXACT
    target, draft = laws(pair, 3, 2, seed)
    one, two = independent(chain(draft, 2)), independent(chain(draft, 2), chain(draft, 2))
    assert accepted(recursive_rejection, target, two) >= accepted(recursive_rejection, target, one) - EXACT


def test_more_is_more():
    target, draft = laws(PAIRS["dense"], 3, 2, seed=2)
    one, two = list(independent(chain(draft, 2))), list(independent(chain(draft, 2), chain(draft, 2)))
    token = accepted(RULES["token"], target, one)
    assert accepted(RULES["block"], target, one) > token + 0.05
    assert accepted(recursive_rejection, target, two) > token + 0.05


@every_rule
def test_equal_laws_accept_everything(rule):
    target, draft = laws(PAIRS["equal"], 3, 3)
    assert accepted(rule, target, independent(chain(draft, 3))) == pytest.approx(3, abs=EXACT)


@every_rule
def test_a_rejection_by_rounding_falls_back_to_the_target(rule):
    row = torch.tensor([0.25, 0.0, 0.75]).double()
    uniform = iter([1.0, 0.3]).__next__  # 1.0: as if p/q had been rounded below the number
    assert rule([row.repeat(2, 1)], [row[None]], [(0,)], uniform) == Verdict(0, 2)


# Broken numbers

NOT_LAWS = {
    "nan": [torch.nan, 0.5, 0.5],
    "infinity": [torch.inf, 0.5, 0.5],
    "-infinity": [-torch.inf, 0.5, 0.5],
    "negative": [-0.1, 0.6, 0.5],
    "nothing": [0.0, 0.0, 0.0],
}


@every_rule
@pytest.mark.parametrize("bad", NOT_LAWS.values(), ids=NOT_LAWS)
@pytest.mark.parametrize("place", range(3))
def test_a_target_that_is_no_law_raises(rule, bad, place):
    target = torch.full((3, 3), 1 / 3)
    target[place] = torch.tensor(bad)
    with pytest.raises(NonFiniteError, match="the model"):
        rule([target], [None], [(0, 1)], random.Random(0).random)
    if rule is recursive_rejection:
        with pytest.raises(NonFiniteError, match="the model"):
            rule([torch.full((3, 3), 1 / 3), target], [None] * 2, [(0, 1), (1, 1)], random.Random(0).random)


@every_rule
@pytest.mark.parametrize(
    "bad", [*NOT_LAWS.values(), [0.3, 0.3, 0.3], [0.4, 0.4, 0.4], [0.5, 0.25, 0.25 + 1e-3]], ids=str
)
@pytest.mark.parametrize("place", range(2))
def test_a_drafted_row_that_is_no_law_ends_the_draft(rule, bad, place):
    """The tokens are drawn from the true row; what is said of it is broken for some prefixes."""
    target, draft = laws(PAIRS["dense"], 3, 2)
    broken = {**draft, ((), (1,))[place]: torch.tensor(bad, dtype=torch.float64)}

    def said_badly(length):
        return [(chance, tokens, rows(broken, tokens, length)) for chance, tokens, _ in chain(draft, length)]

    drafted = list(independent(said_badly(2)))
    assert error(rule, target, drafted) < EXACT
    for verdict, (tokens,), _ in outcomes(rule, target, drafted):
        assert verdict.accepted <= place or tokens[:place] != ((), (1,))[place]
    if rule is recursive_rejection:
        assert error(rule, target, independent(said_badly(2), chain(draft, 2))) < EXACT
        assert error(rule, target, independent(chain(draft, 1), said_badly(2))) < EXACT


@every_rule
@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        ((2, 0), [[0.5, 0.5, 0.0], [0.5, 0.5, 0.0]]),  # it forbids the token that it gave
        ((-1, 0), None),
        ((3, 0), None),
        ((0, 0), [[0.5, 0.5], [0.5, 0.5]]),  # another vocabulary
        ((0, 0), [[0.5, 0.3, 0.1, 0.1]] * 2),
    ],
)
def test_a_token_that_cannot_have_been_drawn_is_not_accepted(rule, tokens, said):
    target, _ = laws(PAIRS["dense"], 3, 2)
    laws_of_tokens = [rows(target, (0, 0), 3)]
    law = verdicts(rule, laws_of_tokens, [None if said is None else torch.tensor(said)], [tokens])
    assert law == pytest.approx({Verdict(0, x): float(target[()][x]) for x in range(3)}, abs=EXACT)


@every_rule
def test_missing_rows_end_the_draft(rule):
    target, draft = laws(PAIRS["dense"], 3, 2)
    drafted = [d._replace(rows=(d.rows[0][:1],)) for d in independent(chain(draft, 2))]
    assert error(rule, target, drafted) < EXACT


@every_rule
def test_a_token_the_target_forbids_never_stands(rule):
    """Even where p/q overflows later: 0 times infinity is no reason to accept."""
    target = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    draft = torch.tensor([[1.0, 0.0], [5e-324, 1.0]], dtype=torch.float64)
    assert rule([target], [draft], [(0, 0)], lambda: 0.0) == Verdict(0, 1)


@every_rule
def test_rows_that_sum_to_one_up_to_rounding_are_laws(rule):
    """Their tokens are drawn in proportion, so the sum is taken out."""
    target, draft = laws(PAIRS["dense"], 3, 2)
    drafted = [d._replace(rows=(d.rows[0] * (1 + 5e-5),)) for d in independent(chain(draft, 2))]
    assert error(rule, target, drafted) < EXACT
    assert accepted(rule, target, drafted) == pytest.approx(
        accepted(rule, target, independent(chain(draft, 2)))
    )


@every_rule
def test_single_precision_rows_are_laws(rule):
    target, draft = laws(PAIRS["dense"], 3, 2)
    drafted = [d._replace(rows=(d.rows[0].float(),)) for d in independent(chain(draft, 2))]
    assert error(rule, target, drafted) < 1e-6
    assert accepted(rule, target, drafted) == pytest.approx(
        accepted(rule, target, independent(chain(draft, 2))), abs=1e-5
    )


# Logits


def test_probabilities():
    logits = torch.tensor([[1.0, 3.0, 3.0, -torch.inf], [2.0, 1.0, -torch.inf, -torch.inf]])
    greedy = torch.tensor([[0, 1, 0, 0], [1, 0, 0, 0]]).double()
    torch.testing.assert_close(probabilities(logits, 0.0), greedy, rtol=0, atol=0)
    torch.testing.assert_close(probabilities(logits, 0.5), (logits.double() / 0.5).softmax(-1))
    torch.testing.assert_close(probabilities(logits[1:], 1e-310), greedy[1:], rtol=0, atol=0)
    assert probabilities(logits[:0].half(), 1.0).shape == (0, 4)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("bad", [[0.0, torch.nan], [0.0, torch.inf], [-torch.inf, -torch.inf]])
def test_logits_without_a_law_raise(bad, temperature):
    with pytest.raises(NonFiniteError):
        probabilities(torch.tensor([[0.0, 1.0], bad]), temperature)


# Samples

ROUNDS, TRIED, LEVEL = 20_000, 3, 1e-6  # Bonferroni over the rules


def careless(rule):
    """One time in fifty a rejected token stands after all."""

    def wrong(targets, drafts, tokens, uniform):
        verdict = rule(targets, drafts, tokens, uniform)
        if verdict.accepted == len(tokens[verdict.branch]) or uniform() >= 0.02:
            return verdict
        depth = verdict.accepted + 1
        return Verdict(
            depth, verify_tokens(targets[verdict.branch][depth:][:1], None, (), uniform).token, verdict.branch
        )

    return wrong


def markov(seed, size, depth, sharp=1.5):
    """Laws that look at one token, the target's peaked and the draft's flat."""
    target, draft = laws(lambda g, v: (dense(g, v) ** sharp, dense(g, v).sqrt()), size, depth, seed)
    return tuple({p: law[p[-1:]] / law[p[-1:]].sum() for p in law} for law in (target, draft))


def p_value(counts, expected):
    """Chi-square; the rarest cells are one, of five or more expected."""
    assert counts.keys() <= expected.keys()
    cells = sorted((e, counts[cell]) for cell, e in expected.items())
    while cells[0][0] < 5:
        (a, seen), (b, more), *cells = cells
        cells = sorted([(a + b, seen + more), *cells])
    chi_square = sum((seen - e) ** 2 / e for e, seen in cells)
    freedom = torch.tensor(len(cells) - 1, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom / 2, torch.tensor(chi_square / 2, dtype=torch.float64)))


def test_the_p_value_is_right():
    """Five degrees of freedom: the 1e-6 quantile is 35.888."""
    expected = dict.fromkeys(range(6), 1000.0)
    off = math.sqrt(35.888 * 1000 / 2)
    counts = Counter(expected) + Counter({0: off})
    counts[1] -= off
    assert p_value(counts, expected) == pytest.approx(1e-6, rel=1e-3)


def sampled(rule, lengths, seed, rounds=ROUNDS):
    """The p-value of three tokens emitted in each round, against their exact law."""
    size, depth, chance = 4, max(lengths), random.Random(seed)
    target, draft = markov(5, size, depth)

    def draw(law, tokens, length):
        while len(tokens) < length:
            tokens = (*tokens, chance.choices(range(size), weights[law, tokens])[0])
        return tokens

    weights = {
        (name, p): row.tolist() for name, law in (("p", target), ("q", draft)) for p, row in law.items()
    }
    known = {
        t: (rows(target, t, n + 1), rows(draft, t, n))
        for n in {*lengths}
        for t in itertools.product(range(size), repeat=n)
    }
    counts = Counter()
    for _ in range(rounds):
        tokens = [draw("q", (), n) for n in lengths]
        targets, drafts = zip(*(known[t] for t in tokens), strict=True)
        verdict = rule(targets, drafts, tokens, chance.random)
        counts[draw("p", (*tokens[verdict.branch][: verdict.accepted], verdict.token), depth + 1)] += 1
    texts = itertools.product(range(size), repeat=depth + 1)
    expected = {t: rounds * math.prod(weights["p", t[:i]][t[i]] for i in range(depth + 1)) for t in texts}
    return p_value(counts, expected)


LENGTHS = {"token": (2,), "block": (2,), "recursive": (2, 1)}


@pytest.mark.parametrize("name", RULES)
def test_samples_follow_the_target(name):
    assert sampled(RULES[name], LENGTHS[name], seed=7) > LEVEL / TRIED


@pytest.mark.parametrize("name", RULES)
def test_two_percent_of_carelessness_show(name):
    assert sampled(careless(RULES[name]), LENGTHS[name], seed=7) < LEVEL / TRIED
