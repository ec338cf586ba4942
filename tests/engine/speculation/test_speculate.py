"""The verifier in the engine: for any drafts, the same text, the same bits of logits, and counts that add up."""

import random
import threading
from types import SimpleNamespace

import pytest
import torch

from fimserver.engine.drafters.failsafe import FailsafeDrafter
from fimserver.engine.engines import make_ar
from fimserver.engine.forward import pass_cost
from fimserver.engine.forward.network import FakeNetwork
from fimserver.engine.forward.pass_cost import PassCosts, measure_costs, shapes, size
from fimserver.engine.forward.prefix_cache import PrefixCache
from fimserver.engine.runtime import DraftContext
from fimserver.engine.speculation.drafts import Draft, RandomDrafter, ScriptedDrafter
from fimserver.engine.speculation.speculate import Speculation
from fimserver.engine.speculation.verify import VERIFIERS, GumbelMaxVerifier
from fimserver.errors import NonFiniteError
from fimserver.reasons import Reason
from fimserver.settings import Settings
from fimserver.types import Deadline, Request, Sampling

CODE = '''import os


class Store:
    """Values by name."""

    def __init__(self, path):
        self.path = path
        self.values = {}

    def read(self, name):
        """The value of a name."""
        return self.values[name]

    def write(self, name, value):
        self.values[name] = value
'''
REQUESTS = [
    Request(
        CODE[:cut],
        CODE[cut + 30 :],
        sampling=Sampling(max_tokens=40, stop="none", temperature=temperature, seed=5),
    )
    for cut in (60, 150, 290)
    for temperature in (0.0, 0.7)
]
EVERY_SHAPE = dict.fromkeys(shapes(3), 1.0)


@pytest.fixture
def engine(nano):
    """The ar route of nano without drafters, whose passes all cost the same, so that every shape is worth its drafts."""
    engine = make_ar(DraftContext(nano.runtime(nano.card("ar")), Settings(drafter="none")))
    engine.speculation = Speculation(engine.cache, (), GumbelMaxVerifier(), PassCosts(EVERY_SHAPE))
    return engine


def ids_of(engine, request, drafters=()):
    """Ids and last chunk of a request with these drafters."""
    watcher = ScriptedDrafter()
    engine.speculation.drafters = (*drafters, watcher)
    chunks = list(engine.complete(request, Deadline()))
    return watcher.seen, chunks


class Liar:
    """Half of every draft is the truth, the rest is not; told in several branches that share their beginnings."""

    name = "liar"
    inline = True
    keeps_text = False

    def __init__(self, truth, seed):
        self.truth, self.random = truth, random.Random(seed)

    def propose(self, line, size):
        done = len(line.ids)
        rest = self.truth[done : done + size] + [7] * size
        drafts = []
        for _ in range(self.random.randint(1, 4)):
            right = self.random.randint(0, size)
            tokens = [*rest[:right], *(self.random.randrange(8192) for _ in range(size))][
                : self.random.randint(1, size)
            ]
            drafts.append(Draft(self.name, tuple(tokens), tuple(self.random.randrange(10) for _ in tokens)))
        return drafts

    def observe(self, line, *, ended):
        """It knows all already."""


class TestTheTextIsTheSame:
    @pytest.mark.parametrize("request_", REQUESTS, ids=lambda r: f"{len(r.prefix)}-{r.sampling.temperature}")
    def test_with_an_oracle_a_liar_and_noise(self, engine, request_):
        plain, chunks = ids_of(engine, request_)
        text = "".join(c.text for c in chunks)
        for seed in range(3):
            for drafter in (ScriptedDrafter(plain), Liar(plain, seed), RandomDrafter(seed, 8192)):
                ids, drafted = ids_of(engine, request_, [drafter])
                assert ids == plain
                assert "".join(c.text for c in drafted) == text
                assert (drafted[-1].tokens, drafted[-1].reason) == (chunks[-1].tokens, chunks[-1].reason)

    def test_with_cold_and_warm_caches(self, engine):
        plain, _ = ids_of(engine, REQUESTS[1])
        engine.cache.clear()
        assert ids_of(engine, REQUESTS[1], [Liar(plain, 0)])[0] == plain
        assert ids_of(engine, REQUESTS[1], [Liar(plain, 1)])[0] == plain

    @pytest.mark.parametrize("limit", [1, 2, 3, 7, 17])
    def test_when_the_limit_cuts_a_draft(self, engine, limit):
        plain, _ = ids_of(engine, REQUESTS[1])
        ids, chunks = ids_of(
            engine,
            REQUESTS[1].with_sampling(max_tokens=limit),
            [ScriptedDrafter(plain)],
        )
        assert ids == plain[:limit]
        assert chunks[-1].tokens == min(limit, len(plain))

    def test_when_a_stop_token_stands_inside_a_draft(self, engine):
        plain, _ = ids_of(engine, REQUESTS[1])
        engine.stops = frozenset({plain[4]})
        first = plain.index(plain[4])
        ids, chunks = ids_of(engine, REQUESTS[1], [ScriptedDrafter(plain)])
        assert ids == plain[:first]
        assert chunks[-1].reason in {Reason.END, Reason.EMPTY}

    @pytest.mark.parametrize("stop", ["line", "block"])
    def test_when_the_stop_rule_ends_it_inside_a_draft(self, engine, stop):
        request = REQUESTS[3].with_sampling(stop=stop)
        free, _ = ids_of(engine, REQUESTS[3])
        plain, chunks = ids_of(engine, request)
        ids, drafted = ids_of(engine, request, [ScriptedDrafter(free)])
        assert ids == plain
        assert "".join(c.text for c in drafted) == "".join(c.text for c in chunks)

    @pytest.mark.parametrize("rule", ["token", "block", "recursive"])
    def test_under_the_classical_rules_at_temperature_0(self, engine, rule):
        plain, _ = ids_of(engine, REQUESTS[0])
        engine.speculation.verifier = VERIFIERS[rule]()
        for seed in range(3):
            assert ids_of(engine, REQUESTS[0], [Liar(plain, seed)])[0] == plain


class TestTheLogitsAreTheSameBits:
    def test_of_every_shape_that_is_used(self, nano):
        """A chain of tokens in each shape, alone and as the last of several branches."""
        cache = nano.runtime(nano.card("ar")).cache
        engine = make_ar(DraftContext(nano.runtime(nano.card("ar")), Settings(drafter="none")))
        prompt, chain = engine.prompt(REQUESTS[0]), [300 + i for i in range(24)]
        cache.prefill(prompt, Deadline(), want_logits=False)
        idle = [0] * (engine.speculation.policy.costs.plain[1] - 1)
        one_by_one = [cache.branches([[chain[i], *idle]], len(prompt) + i)[0, 0] for i in range(24)]
        for branches, rows in engine.speculation.policy.costs.ms:
            others = [[9] * rows for _ in range(branches - 1)]
            logits = cache.branches([*others, chain[:rows]], len(prompt))[-1]
            assert torch.equal(logits, torch.stack(one_by_one[:rows])), (branches, rows)

    def test_but_not_with_a_tree_mask_in_one_buffer(self, nano):
        """Why branches are copies: a sibling between a token and its parent moves the sum in the attention."""
        cache = nano.runtime(nano.card("ar")).cache
        engine = make_ar(DraftContext(nano.runtime(nano.card("ar")), Settings(drafter="none")))
        prompt = engine.prompt(REQUESTS[0])
        cache.prefill(prompt, Deadline(), want_logits=False)
        start, every = len(prompt), torch.arange(8)
        straight = cache.rows([300, 301, 302, 303, 0, 0, 0, 0], start, cache.causal(start, 8), every)[3]
        mask = cache.causal(start, 8).clone()
        mask[4:, start + 1 : start + 4] = False  # rows 4 to 6 follow row 0, past rows 1 to 3
        tree = cache.rows([300, 7, 8, 9, 301, 302, 303, 0], start, mask, every)[6]
        assert not torch.equal(straight, tree)

    def test_after_every_round(self, engine):
        """The cache after rounds of accepted and rejected branches holds what a fresh prefill and plain steps would."""
        plain, _ = ids_of(engine, REQUESTS[0])
        for seed in range(4):
            engine.cache.clear()
            ids_of(engine, REQUESTS[0], [Liar(plain, seed)])
            length = len(engine.prompt(REQUESTS[0])) + len(plain) - 1
            drafted = [tuple(t[:, :length].clone() for t in engine.cache.kv.layer(i)) for i in range(6)]
            engine.cache.clear()
            ids_of(engine, REQUESTS[0])
            for i in range(6):
                for got, want in zip(drafted[i], engine.cache.kv.layer(i), strict=True):
                    assert torch.equal(got, want[:, :length])


class TestCounts:
    def test_tokens_are_rounds_and_what_stood(self, engine):
        plain, _ = ids_of(engine, REQUESTS[0])
        for drafter in (ScriptedDrafter(plain), Liar(plain, 3), RandomDrafter(3, 8192)):
            _, chunks = ids_of(engine, REQUESTS[0], [drafter])
            rounds = [c.round for c in chunks if c.round]
            drafting = chunks[-1].drafting
            emitted = sum(r.accepted + 1 for r in rounds)
            assert chunks[-1].tokens <= emitted <= chunks[-1].tokens + 24
            assert drafting.rounds == len(rounds)
            assert drafting.drafted == sum(r.drafted for r in rounds) >= sum(drafting.accepted)
            assert sum(drafting.accepted) == sum(r.accepted for r in rounds)
            assert list(drafting.accepted) == sorted(drafting.accepted, reverse=True)

    def test_an_oracle_saves_passes(self, engine):
        engine.stops = frozenset()  # whatever the weights think, it goes on
        plain, chunks = ids_of(engine, REQUESTS[1])
        _, drafted = ids_of(engine, REQUESTS[1], [ScriptedDrafter(plain)])
        assert len(drafted) < len(chunks) / 3


class TestFaults:
    def test_a_drafter_that_raises_costs_nothing_but_itself(self, engine):
        plain, _ = ids_of(engine, REQUESTS[0])

        class Broken(ScriptedDrafter):
            def propose(self, line, size):  # noqa: ARG002
                raise ZeroDivisionError

        broken = FailsafeDrafter(Broken(plain))
        for _ in range(3):
            assert ids_of(engine, REQUESTS[0], [broken])[0] == plain
        assert broken.off

    def test_a_drafter_that_hangs_is_left_behind(self, engine):
        plain, _ = ids_of(engine, REQUESTS[0])

        class Sleepy:
            inline = False
            keeps_text = False
            name = "sleepy"

            def propose(self, line, size):  # noqa: ARG002
                threading.Event().wait()

            def observe(self, line, *, ended):
                """Too tired."""

        sleepy = FailsafeDrafter(Sleepy(), limit_s=0.05)
        assert ids_of(engine, REQUESTS[0], [sleepy])[0] == plain
        assert sleepy.off

    def test_nan_from_a_drafter_is_no_draft(self, engine):
        plain, _ = ids_of(engine, REQUESTS[0])

        class Nan(ScriptedDrafter):
            def propose(self, line, size):  # noqa: ARG002
                (token,), _ = line.pick(torch.full((1, 8192), torch.nan), len(line.ids))
                return [Draft("nan", (token,), (9,))]

        assert ids_of(engine, REQUESTS[0], [FailsafeDrafter(Nan(plain))])[0] == plain

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    @pytest.mark.parametrize("rule", sorted(VERIFIERS))
    def test_nan_from_the_target_raises(self, engine, monkeypatch, bad, rule):
        engine.speculation.verifier = VERIFIERS[rule]()
        original = engine.cache.branches_pass

        def branches_pass(ids, start):
            made = original(ids, start)
            logits = made.result().clone()
            logits[:, 0, 5] = bad
            made.take(made.network.hidden, logits, company=1)
            return made

        monkeypatch.setattr(engine.cache, "branches_pass", branches_pass)
        with pytest.raises(NonFiniteError):
            list(engine.complete(REQUESTS[1], Deadline()))

    @pytest.mark.parametrize("tokens", [(8191,), (0, 1, 2), ()])
    def test_odd_drafts_are_harmless(self, engine, tokens):
        plain, _ = ids_of(engine, REQUESTS[0])

        class Odd(ScriptedDrafter):
            def propose(self, line, size):  # noqa: ARG002
                return [Draft("odd", tokens, (9,) * len(tokens))] * 5

        assert ids_of(engine, REQUESTS[0], [Odd()])[0] == plain


class TestCosts:
    def test_shapes_with_other_bits_are_not_used(self):
        """A network whose numbers depend on how many rows there are has one shape only."""

        class Fickle(FakeNetwork):
            def forward(self, ids, mask, kv, logits_of):
                return super().forward(ids, mask, kv, logits_of) + ids.shape[1] * 1e-6

        cache = PrefixCache(
            Fickle(50, lambda token, position: torch.randn(50, generator=_seed(token, position))), 64, 8, 3
        )
        assert {rows for _, rows in measure_costs(cache, 8).ms} == {8}

    def test_steady_numbers_allow_every_shape(self):
        cache = PrefixCache(
            FakeNetwork(50, lambda token, position: torch.randn(50, generator=_seed(token, position))),
            64,
            8,
            3,
        )
        assert set(measure_costs(cache, 8).ms) == set(shapes(3))

    def test_the_rows_that_branches_copy_are_in_the_cost(self, monkeypatch):
        """As in decoding, where each round has written rows since the last pass over several branches."""
        cache = PrefixCache(
            FakeNetwork(50, lambda token, position: torch.randn(50, generator=_seed(token, position))),
            64,
            8,
            3,
        )
        copied = []
        whole = cache.kv.broadcast_to_branches
        monkeypatch.setattr(
            cache.kv,
            "broadcast_to_branches",
            lambda end: copied.append(end - cache.kv._equal) or whole(end),
        )
        measure_costs(cache, 8)
        several = sum(branches > 1 for branches, _ in shapes(3))
        timed = copied[-several * pass_cost._ROUNDS :]
        assert timed == [pass_cost.ROUND_ROWS] * len(timed)

    def test_other_work_for_a_while_changes_no_ratio(self, monkeypatch):
        """Each shape is timed in several rounds: a machine that is busy in one of them is not measured."""
        clock = SimpleNamespace(now_s=0.0, passes=0)

        def logits(token, position):
            return torch.randn(50, generator=_seed(token, position))

        class Timed(FakeNetwork):
            def forward(self, ids, mask, kv, logits_of):
                clock.passes += 1
                is_busy = clock.passes % 40 < 15
                clock.now_s += (1 + ids.numel() / 100) * (7 if is_busy else 1) / 1000
                return super().forward(ids, mask, kv, logits_of)

        monkeypatch.setattr(pass_cost, "time", SimpleNamespace(perf_counter=lambda: clock.now_s))
        costs = measure_costs(PrefixCache(Timed(50, logits), 64, 8, 3), 8)
        assert costs.ms == pytest.approx({shape: 1 + size(shape) / 100 for shape in costs.ms})

    def test_a_hiccup_while_measuring_is_smoothed(self):
        costs = PassCosts({(1, 4): 90.0, (1, 8): 2.0, (1, 16): 3.0})
        assert costs.ms[1, 4] == 2.0
        assert costs.plain == (1, 4)

    def test_a_busy_machine_scales_all_shapes_alike(self):
        costs = PassCosts({(1, 4): 1.0, (1, 8): 2.0})
        for _ in range(100):
            costs.observe((1, 4), 3.0)
        assert costs.ms[1, 8] == pytest.approx(6.0, rel=0.01)


def _seed(token, position):
    return torch.Generator().manual_seed(1000 * token + position)
