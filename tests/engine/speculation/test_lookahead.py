"""Lookahead on random weights: verification and the next draft in one pass, without any change of the text."""

from types import SimpleNamespace

import pytest
import torch

from fimserver.engine.forward.adapter import save_adapter
from fimserver.engine.forward.pass_cost import PassCosts
from fimserver.engine.forward.passes import run_together
from fimserver.engine.load import weights_hash
from fimserver.engine.speculation import lookahead, speculate
from fimserver.engine.speculation.draft_policy import DraftPlan, DraftPolicy, Survival
from fimserver.engine.speculation.drafts import DecodeState, Draft
from fimserver.engine.speculation.lookahead import Lookahead, Outlook, Prepared, measure_masks
from fimserver.types import Deadline, Request
from tests.engine.forward.test_adapter import LAYERS, an_adapter, ar_engine, requests, runtime_of
from tests.engine.forward.test_static_pass import Reads
from tests.engine.test_autoregressive import text_of
from tests.tiny import make_checkpoint

PROMPT = list(range(10, 50))
FREE = PassCosts({(1, 8): 20.0, (1, 12): 20.2, (1, 16): 20.5})
DEAR = PassCosts({(1, 1): 20.0, (1, 4): 60.0, (1, 8): 100.0})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = make_checkpoint(tmp_path_factory.mktemp("ahead") / "tiny", "qwen2", seed=5)
    save_adapter(an_adapter(weights_hash(folder)), folder / "adapters" / "canvas.safetensors")
    return folder


@pytest.fixture(scope="module")
def runtime(folder):
    return runtime_of(folder)


@pytest.fixture
def ahead(runtime):
    runtime.cache.prefill(PROMPT, Deadline(), want_logits=False)
    return Lookahead(runtime.cache, runtime.canvas_network)


def a_state(ids=(60,)):
    return DecodeState(
        Request("", ""), PROMPT, [], [], lambda row, _: (int(row.argmax()), None), ids=list(ids)
    )


def run(ahead, state, tokens, outlook):
    """Logits of the text rows of one pass."""
    return ahead.end(state, len(tokens) + 1, outlook, ahead.start(state, tokens, outlook))


def kept(runtime, start, end):
    return [t[:, start:end].clone() for i in range(LAYERS) for t in runtime.cache.kv.layer(i)]


class TestThePass:
    @pytest.mark.parametrize(
        "outlook", [Outlook(8, (0,), 2), Outlook(8, (0, 1, 2), 1), Outlook(8, (1, 2), 2)]
    )
    def test_text_rows_have_the_bits_of_a_pass_without_masks(self, runtime, ahead, outlook):
        plain = runtime.cache.branches([[60, 61, 62, 0, 0, 0, 0, 0]], len(PROMPT))[0, :3].clone()
        hidden = runtime.network.hidden[0, :3].clone()
        before = kept(runtime, 0, len(PROMPT) + 3)
        logits = run(ahead, a_state(), [61, 62], outlook)
        assert torch.equal(logits[0], plain)
        assert torch.equal(ahead.text.hidden, hidden)
        after = kept(runtime, 0, len(PROMPT) + 3)
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))

    def test_a_group_is_what_a_canvas_says_after_the_accepted_tokens(self, runtime, ahead):
        """For each accepted length: the same as a canvas of its own behind that text."""
        run(ahead, a_state(), [61, 62], Outlook(12, (0, 1, 2), 2))
        groups = dict(ahead.text.groups)
        mask = runtime.canvas_network.mask_token
        for length, tokens in enumerate(([60], [60, 61], [60, 61, 62])):
            ids = [*tokens, mask, mask]
            seen = runtime.cache.causal(len(PROMPT), len(ids)).clone()
            seen[len(tokens) :, : len(PROMPT) + len(ids)] = True
            every = torch.arange(len(ids))
            alone = runtime.cache.rows(ids, len(PROMPT), seen, every, runtime.canvas_network)
            torch.testing.assert_close(groups[1 + length].logits, alone[-2:], rtol=1e-4, atol=1e-4)

    def test_the_draft_is_the_group_of_what_was_accepted(self, ahead):
        run(ahead, a_state(), [61, 62], Outlook(12, (0, 1, 2), 2))
        group = ahead.text.groups[2]
        state = a_state([60, 61, 99])  # one of two was accepted, then the model's own token
        ahead.observe(state, ended=False)
        (draft,) = ahead.propose(state, 8)
        first = ahead.network.after(group.hidden[0], group.logits[0], 99)
        assert draft.tokens[0] == int(first.argmax())
        assert len(draft.tokens) == 2
        assert not ahead.propose(a_state([60, 61, 99, 98]), 8)  # too late for it

    def test_a_draft_is_read_from_the_device_once(self, ahead):
        run(ahead, a_state(), [61, 62], Outlook(12, (0, 1, 2), 2))
        state = a_state([60, 61, 99])
        ahead.observe(state, ended=False)
        with Reads() as reads:
            assert ahead.propose(state, 8)
        assert reads.seen == []  # that of whole tensors is not in it

    def test_nothing_is_drafted_where_no_group_was_run(self, ahead):
        run(ahead, a_state(), [61, 62], Outlook(8, (2,), 2))
        state = a_state([60, 99])
        ahead.observe(state, ended=False)
        assert ahead.propose(state, 8) == []

    def test_texts_side_by_side_have_the_drafts_that_they_have_alone(self, runtime, ahead):
        """Each keeps what was prepared for it, whatever ran in between."""
        outlook = Outlook(12, (0, 1, 2), 2)
        alone = []
        for token in (61, 71):
            run(ahead, a_state(), [token, 62], outlook)
            state = a_state([60, token, 99])
            ahead.observe(state, ended=False)
            alone.append((ahead.text.prepared.logits, ahead.propose(state, 8)))
        prompts = runtime.cache.prompts
        held = [prompts.take(PROMPT) for _ in alone]
        passes = []
        for kept_, token in zip(held, (61, 71), strict=True):
            prompts.current = kept_
            runtime.cache.prefill(PROMPT, Deadline(), want_logits=False)
            passes.append(ahead.start(a_state(), [token, 62], outlook))
        run_together(passes)
        for kept_, pass_ in zip(held, passes, strict=True):
            prompts.current = kept_
            ahead.end(a_state(), 3, outlook, pass_)
        for kept_, token, (logits, drafts) in zip(held, (61, 71), alone, strict=True):
            prompts.current = kept_
            state = a_state([60, token, 99])
            ahead.observe(state, ended=False)
            assert torch.equal(ahead.text.prepared.logits, logits)
            assert ahead.propose(state, 8) == drafts
            kept_.taken = False
        assert not torch.equal(alone[0][0], alone[1][0])


class TestTheOutlook:
    def plan(self, *grades, shape=(1, 8)):
        tokens = tuple(range(len(grades)))
        drafts = (Draft("ngram", tokens, grades),) if grades else ()
        return DraftPlan(shape, drafts, 1.0 + 0.5 * len(grades))

    def test_rows_that_are_free_get_masks_for_the_likeliest_lengths(self, ahead):
        outlook = ahead.outlook(self.plan(9, 9), Survival(), FREE)
        assert outlook is not None
        assert 2 in outlook.lengths
        assert 3 + len(outlook.lengths) * outlook.masks <= outlook.rows

    def test_dear_rows_get_none(self, ahead):
        assert ahead.outlook(self.plan(shape=(1, 1)), Survival(), DEAR) is None

    def test_what_masks_add_to_a_pass_is_counted(self, runtime):
        """Rows that pay as text do not pay where masks make the pass much slower."""
        costs = PassCosts({(1, 1): 20.0, (1, 4): 23.0})
        rows = {}
        for share in (0.0, 0.1, 3.0):
            ahead = Lookahead(runtime.cache, runtime.canvas_network, mask_costs={4: share})
            rows[share] = ahead.outlook(self.plan(shape=(1, 1)), Survival(), costs)
        assert rows[0.0] is not None
        assert rows[0.1] is not None
        assert rows[3.0] is None

    def test_what_masks_add_is_measured_for_each_size(self, runtime):
        measured = measure_masks(runtime.cache, runtime.canvas_network, (4, 8))
        assert set(measured) == {4, 8}
        assert all(share >= 0 for share in measured.values())

    def test_drafts_that_were_never_right_end_it(self, ahead):
        costs = PassCosts({(1, 1): 20.0, (1, 4): 23.0})
        assert ahead.outlook(self.plan(shape=(1, 1)), Survival(), costs) is not None
        self.weighed(ahead, costs, right=False, times=60)
        assert ahead.outlook(self.plan(shape=(1, 1)), Survival(), costs) is None

    def test_drafts_that_say_what_others_say_end_it(self, ahead):
        """However right they are: the others cost no masks."""
        costs = PassCosts({(1, 1): 20.0, (1, 4): 23.0})
        same = Draft("ngram", (5, 6), (9, 9))
        self.weighed(ahead, costs, right=True, times=60, others=[same])
        assert ahead.outlook(self.plan(shape=(1, 1)), Survival(), costs) is None

    def test_drafts_that_are_right_where_others_have_none_go_on(self, ahead):
        costs = PassCosts({(1, 1): 20.0, (1, 4): 23.0})
        wrong = Draft("ngram", (7, 8), (0, 0))
        self.weighed(ahead, costs, right=True, times=60, others=[wrong])
        assert ahead.outlook(self.plan(shape=(1, 1)), Survival(), costs) is not None

    def test_a_canvas_that_is_shown_counts_for_all_that_it_brings(self, ahead):
        costs = PassCosts({(1, 1): 20.0, (1, 4): 23.0})
        ahead.alone = True
        self.weighed(ahead, costs, right=True, times=60, others=[Draft("ngram", (5, 6), (9, 9))])
        assert ahead.outlook(self.plan(shape=(1, 1)), Survival(), costs) is not None

    def weighed(self, ahead, costs, *, right, times, others=()):
        """Weigh drafts of two masks whose tokens were always, or never, accepted."""
        policy = DraftPolicy(costs)
        draft = Draft("lookahead", (5, 6), (9, 9))
        for _ in range(times):
            policy.survival.learn(draft, 2 if right else 0)
            for other in others:
                policy.survival.learn(other, 2 if other.grades[0] else 0)
        ahead.text.prepared = Prepared(0, torch.zeros(2, 4), torch.zeros(2, 4))
        for _ in range(times):
            ahead.weigh([*others, draft], policy, 8)


class TestTheFirstDraft:
    costs = PassCosts({(1, 1): 20.0, (1, 4): 23.0})

    def test_masks_after_the_prompt_end_where_they_do_not_pay_and_are_tried_again(self, runtime):
        ahead = Lookahead(runtime.cache, runtime.canvas_network, mask_costs={4: 0.2})
        assert ahead.beyond(self.costs)
        TestTheOutlook().weighed(ahead, self.costs, right=False, times=60)
        tried = [ahead.beyond(self.costs) is not None for _ in range(18)]
        assert tried == [False] * 8 + [True] + [False] * 8 + [True]

    def test_a_canvas_that_is_shown_has_them_always(self, runtime):
        ahead = Lookahead(runtime.cache, runtime.canvas_network, mask_costs={4: 0.2})
        ahead.alone = True
        TestTheOutlook().weighed(ahead, self.costs, right=False, times=60)
        assert all(ahead.beyond(self.costs) for _ in range(3))

    def test_without_them_the_text_is_the_same(self, runtime):
        plain, looking = ar_engine(runtime), ar_engine(runtime, "lookahead")
        looking.speculation.lookahead.beyond = lambda _costs: None
        for request in requests():
            assert text_of(looking, request) == text_of(plain, request)


def test_a_text_with_lookahead_is_the_text_without(runtime, monkeypatch):
    """And some of its drafts are really run, and really accepted or not."""
    plain, looking = ar_engine(runtime), ar_engine(runtime, "lookahead")
    still = SimpleNamespace(perf_counter=lambda: 0.0)  # the load of the machine must not decide what pays
    for module in (lookahead, speculate):
        monkeypatch.setattr(module, "time", still)
    looking.speculation.policy.costs = PassCosts(FREE.ms)
    looking.speculation.lookahead.mask_costs = {}
    drafted = 0
    for request in requests():
        assert text_of(looking, request) == text_of(plain, request)
        drafted += list(looking.complete(request, Deadline()))[-1].drafting.drafted
    assert drafted > 0


def test_it_needs_an_adapter(folder):
    with pytest.raises(Exception, match="no canvas adapter"):
        ar_engine(runtime_of(folder, canvas=None), "lookahead")
