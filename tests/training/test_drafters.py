"""Drafters in training: losses equal their formulas, a slot sees what it will see in use, a run can be resumed."""

import itertools
import json
import math
import random
from dataclasses import replace

import pytest
import torch

from fimserver.engine.drafters.nets import BlockNetwork, Heads, load_net, save_net
from fimserver.engine.forward.fused import fuse
from fimserver.engine.forward.kv import KVBuffer
from fimserver.engine.forward.layers import bias_of
from fimserver.errors import LoadError
from models.training import losses
from models.training.acceptance import Tally, interval, joint, marginals, tally
from models.training.anchors import Anchors, Batch, Files, Mixture, Text
from models.training.ask import block_outputs, heads_outputs, outputs
from models.training.distil import Progress, Recipe, Trainer
from models.training.drafters import Run
from models.training.rows import IGNORE
from models.training.windows import Window, Windows
from tests.training.test_rows import CODE, MAKER
from tests.training.test_windows import make_target

WINDOW = 4
RECIPE = Recipe(rows=3, anchors=5, lr=0.01, warmup_steps=1)


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return make_target(tmp_path_factory.mktemp("target"))


def stirred(net):
    """No zeros left, so that every input matters."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return net


def nets(target):
    return stirred(target.new_heads(WINDOW)), stirred(target.new_block((0, 1), WINDOW))


def learned(target, kind, steps=12):
    """A drafter that knows some of ``a_batch``."""
    torch.manual_seed(0)
    net = target.new_block((0, 1), WINDOW) if kind else target.new_heads(WINDOW)
    trainer = Trainer(net, target, RECIPE, bf16=False)
    for _ in range(steps):
        trainer.step(a_batch(), 1.0)
    return net.eval().requires_grad_(False)


def some_windows(count=6, seed=0):
    rng = random.Random(seed)
    rows = []
    for i in range(count):
        motif = [rng.randrange(300, 8000) for _ in range(3)]
        rows.append(Window([3, *motif * 4, 5], (motif * 5)[: rng.randrange(6, 14)], greedy=i % 2 == 0))
    return Windows.of(rows)


def a_batch(fill=0.0, seed=0):
    return Mixture(some_windows(), Anchors(5, WINDOW, fill), seed).batch(0, 3)


class TestLosses:
    logq = torch.tensor([[-0.1, -0.7, -2.0, -0.3], [-1.0, -0.2, -0.4, -9.0]], requires_grad=True)
    learn = torch.tensor([[True] * 4, [False, True, True, False]])

    def chains(self):
        return [[-0.1, -0.7, -2.0, -0.3], [-0.2, -0.4]]

    def test_cross_entropy(self):
        weighted = [(math.exp(-j / 3), -q) for chain in self.chains() for j, q in enumerate(chain)]
        expected = sum(w * v for w, v in weighted) / sum(w for w, _ in weighted)
        assert math.isclose(losses.cross_entropy(self.logq, self.learn, 3.0).item(), expected, rel_tol=1e-5)

    def test_total_variation(self):
        q, p = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.1, 0.3, 0.6])
        assert math.isclose(
            losses.total_variation(q, p).item(), 1 - sum(map(min, q.tolist(), p.tolist())), rel_tol=1e-6
        )

    def test_divergence_is_to_the_whole_distribution(self):
        logits, p = torch.tensor([0.3, -1.0, 2.0]), torch.tensor([0.25, 0.0, 0.75])
        q = logits.softmax(-1)
        expected = sum(a * math.log(a / b) for a, b in zip(p.tolist(), q.tolist(), strict=True) if a)
        assert math.isclose(losses.divergence(logits, p).item(), expected, rel_tol=1e-5)
        assert losses.divergence(logits, q).item() == pytest.approx(0, abs=1e-6)

    def test_streak_is_the_sum_of_products(self):
        expected = [
            sum(math.prod(math.exp(q) for q in chain[:j]) for j in range(1, len(chain) + 1))
            for chain in self.chains()
        ]
        torch.testing.assert_close(losses.survival(self.logq, self.learn).sum(-1), torch.tensor(expected))
        assert math.isclose(losses.streak(self.logq, self.learn).item(), -sum(expected) / 2, rel_tol=1e-5)

    def test_streaks_grow_with_every_probability_and_most_with_the_first(self):
        for loss in (losses.streak, losses.streak_of_ce):
            (gradient,) = torch.autograd.grad(loss(self.logq, self.learn), self.logq)
            assert (gradient[self.learn] < 0).all()
            assert (gradient[~self.learn] == 0).all()
            assert gradient[0].argmin() == 0

    def test_streak_of_the_release(self):
        expected = (
            sum(
                -sum(math.exp(sum(chain[:j])) * chain[j] for j in range(len(chain)))
                for chain in self.chains()
            )
            / 2
        )
        assert math.isclose(losses.streak_of_ce(self.logq, self.learn).item(), expected, rel_tol=1e-5)

    def test_an_impossible_token_gives_no_nan(self):
        logq = torch.tensor([[-200.0, -0.1]], requires_grad=True)
        (gradient,) = torch.autograd.grad(losses.streak(logq, torch.tensor([[True, True]])), logq)
        assert torch.isfinite(gradient).all()


class TestAnchors:
    def test_targets_are_what_follows_up_to_the_end_or_a_marker(self):
        places, following = Anchors(9, 3, markers=frozenset({7})).all_of(Text([7, 1, 2, 7, 3, 4, 5, 6], 2))
        assert places.tolist() == [4, 5, 6]
        assert following.tolist() == [[4, 5, 6], [5, 6, IGNORE], [6, IGNORE, IGNORE]]
        places, following = Anchors(9, 3, markers=frozenset({7})).all_of(Text([7, 1, 2, 7, 3], 1))
        assert places.tolist() == [1]
        assert following.tolist() == [[2, IGNORE, IGNORE]]

    def test_windows_are_asked_in_the_middle_alone(self):
        windows = some_windows()
        batch = Mixture(windows, Anchors(3, WINDOW), seed=1).batch(7, 8)
        contexts = {tuple(windows[i].context): len(windows[i].context) for i in range(len(windows))}
        for ids, at, targets in zip(batch.ids.tolist(), batch.at, batch.targets, strict=True):
            (start,) = (length for context, length in contexts.items() if tuple(ids[:length]) == context)
            assert all(
                start <= int(place) for place, after in zip(at, targets, strict=True) if after[0] != IGNORE
            )

    def test_windows_of_real_text_end_where_the_target_would_have_written_something_else(self):
        """Text 10 to 16, of which the target expects all but 13; from there on nothing is its own."""
        ids = torch.tensor([[10, 11, 12, 13, 14, 15, 16]])
        own = torch.tensor([[11, 12, 99, 14, 15, 16, 17]])
        at, following = Anchors(9, 3).all_of(Text(ids[0].tolist(), 1))
        batch = Batch(ids, at[None], following[None], torch.zeros_like(at)[None])
        assert at.tolist() == [1, 2, 3, 4, 5]
        assert batch.as_written(own).targets[0].tolist() == [
            [12, 99, IGNORE],
            [99, IGNORE, IGNORE],
            [IGNORE] * 3,  # its own token is not the target's
            [15, 16, IGNORE],
            [16, IGNORE, IGNORE],
        ]

    def test_targets_as_places_in_words_end_before_any_other(self):
        ids = torch.tensor([[5, 7, 9, 8, 7]])
        targets = torch.tensor([[[7, 9, 8], [9, 8, 7], [7, IGNORE, IGNORE]]])
        batch = Batch(ids, torch.tensor([[0, 1, 3]]), targets, torch.zeros(1, 3, dtype=torch.int64))
        words = torch.tensor([5, 7, 9], dtype=torch.int32)
        assert batch.within(words).targets[0].tolist() == [
            [1, 2, IGNORE],
            [2, IGNORE, IGNORE],
            [1, IGNORE, IGNORE],
        ]

    def test_batches_of_an_epoch_come_again(self):
        mixture = Mixture(some_windows(), Anchors(3, WINDOW), 1, epoch=2)
        first, second, third = (mixture.batch(step, 6) for step in range(3))
        assert torch.equal(first.ids, third.ids)
        assert torch.equal(first.at, third.at)
        assert first.ids.shape != second.ids.shape or not torch.equal(first.ids, second.ids)

    def test_filled_slots_leave_something_to_learn(self):
        batch = Mixture(some_windows(), Anchors(9, 8, fill_share=1.0), seed=1).batch(0, 8)
        used = batch.targets[..., 0] != IGNORE
        assert batch.learn.any(-1)[used].all()
        assert batch.filled.max() == 4
        assert not (batch.learn & batch.shown()).any()

    def test_a_batch_depends_on_seed_and_step_alone(self):
        def mixture(seed):
            return Mixture(
                some_windows(),
                Anchors(3, WINDOW, 0.5, frozenset({3, 5})),
                seed,
                Files([CODE], MAKER),
                0.5,
            )

        first = mixture(1).batch(4, 6)
        assert all(torch.equal(a, b) for a, b in zip(first, mixture(1).batch(4, 6), strict=True))
        assert not torch.equal(first.at, mixture(2).batch(4, 6).at)


class TestWhatASlotSees:
    def ask(self, net, target, batch, slots=None):
        seen = target.see(batch.ids)
        own, masked = batch.slots(WINDOW)
        return block_outputs(net, target, seen, batch.at, own if slots is None else slots, masked)

    def test_nothing_of_the_text_after_its_anchor(self, target):
        """A blank window is the same whatever follows; the anchor itself is seen."""
        batch = a_batch()
        for net in nets(target):
            asked = outputs(net, target, target.see(batch.ids), batch)
            for row, place in itertools.product(range(3), range(5)):
                if batch.targets[row, place, 0] == IGNORE:
                    continue
                for offset, same in ((1, True), (0, False), (-1, False)):
                    ids = batch.ids.clone()
                    ids[row, int(batch.at[row, place]) + offset] += 1
                    other = outputs(net, target, target.see(ids), batch._replace(ids=ids))
                    assert torch.allclose(asked[row, place], other[row, place], atol=1e-5) == same

    def test_nothing_of_other_windows_but_all_of_its_own(self, target):
        net, batch = nets(target)[1], a_batch(fill=1.0)
        slots, _ = batch.slots(WINDOW)
        asked = self.ask(net, target, batch, slots)
        changed = slots.clone()
        changed[1, 2, 1] += 1  # a slot that is filled
        different = (asked - self.ask(net, target, batch, changed)).abs().amax((2, 3)) > 1e-5
        assert different.nonzero().tolist() == [[1, 2]]
        masked_one = slots.clone()
        masked_one[1, 2, WINDOW] += 1
        torch.testing.assert_close(asked, self.ask(net, target, batch, masked_one))

    @pytest.mark.parametrize("fill", [0.0, 1.0])
    def test_many_windows_at_once_are_what_the_engine_computes_one_by_one(self, target, fill):
        """The target's own cache and hidden state, slots at the places that follow, no mask: what a drafter in use does."""
        batch = a_batch(fill)
        heads, block = nets(target)
        seen = target.see(batch.ids)
        all_heads, all_blocks = heads_outputs(heads, target, seen, batch), self.ask(block, target, batch)
        slots, masked = batch.slots(WINDOW)
        for row, place in itertools.product(range(3), range(5)):
            p = int(batch.at[row, place])
            if batch.targets[row, place, 0] == IGNORE:
                continue
            network, kv = fuse(target.model, 64, 8), KVBuffer(64)
            kv.start, kv.extent = 0, p
            with torch.inference_mode():
                mask = torch.ones(p, p, dtype=torch.bool).tril()
                network.forward(batch.ids[row : row + 1, :p], mask, kv, torch.tensor([p - 1]))
                hidden = network.hidden[:, 0]
                token = network.embed(batch.ids[row, p])[None]
                torch.testing.assert_close(
                    heads(hidden, token)[:, 0], all_heads[row, place], atol=1e-4, rtol=1e-4
                )
                x = block.inputs(hidden, network.embed(slots[row, place])[None], masked[row, place][None])[0]
                before = [tuple(t[None, :, :p] for t in kv.layer(i)) for i in (0, 1)]
                torch.testing.assert_close(
                    before[1][0][0], seen.layers[1][0][row, :, :p], atol=1e-4, rtol=1e-4
                )
                everything = bias_of(torch.ones(WINDOW + 1, p + WINDOW + 1, dtype=torch.bool), x.dtype)
                stack = block.stack(WINDOW + 1, pack=False)
                out = block.run(stack, x, network.rope(p, WINDOW + 1), everything, Joined(before))
                torch.testing.assert_close(out[1:], all_blocks[row, place], atol=1e-4, rtol=1e-4)


class Joined:
    def __init__(self, before):
        self.before = before

    def update(self, keys, values, index, /):
        return tuple(
            torch.cat([old, new], 2) for old, new in zip(self.before[index], (keys, values), strict=True)
        )


class TestAcceptance:
    def test_joint_drafts_are_the_likeliest_sequences(self):
        torch.manual_seed(0)
        logp = torch.randn(3, 4, 5).log_softmax(-1)
        drafts = joint(logp, 4)
        for row, found in zip(logp, drafts, strict=True):
            every = sorted(
                itertools.product(range(5), repeat=4),
                key=lambda c: -sum(float(row[j, t]) for j, t in enumerate(c)),
            )
            assert [tuple(c) for c in found.tolist()] == every[:4]
        assert torch.equal(drafts[:, 0], logp.argmax(-1))

    @pytest.mark.parametrize("kind", [0, 1])
    def test_a_tally_is_what_a_loop_counts(self, target, kind):
        net, batch = learned(target, kind), a_batch()
        result = tally(net, target, batch, 1, 2)
        assert 0.5 < result.mean_accepted() < 3.5
        logp = marginals(net, target, target.see(batch.ids), batch, 1)
        for row in range(3):
            asked = [place for place in range(5) if batch.targets[row, place, 0] != IGNORE]
            best, streak = [0.0, 0.0], 0.0
            for place in asked:
                matches = []
                for draft in joint(logp[row, place][None], 2)[0].tolist():
                    equal = [a == b for a, b in zip(draft, batch.targets[row, place].tolist(), strict=True)]
                    matches.append(next((i for i, same in enumerate(equal) if not same), WINDOW))
                best = [best[0] + matches[0], best[1] + max(matches)]
                product = 1.0
                for slot, token in enumerate(batch.targets[row, place].tolist()):
                    product *= math.exp(float(logp[row, place, slot, token])) if token != IGNORE else 0.0
                    streak += product
            assert result.accepted[row].tolist() == best
            assert result.anchors[row] == len(asked)
            assert math.isclose(float(result.streak[row]), streak, rel_tol=1e-4)
        assert result.reached[0] == result.anchors.sum()

    def test_more_steps_show_a_window_its_own_first_half(self, target):
        """Two steps: the right half as if the left half were filled with its likeliest tokens."""
        net, batch = nets(target)[1], a_batch()
        seen = target.see(batch.ids)
        one, two = (marginals(net, target, seen, batch, steps) for steps in (1, 2))
        torch.testing.assert_close(one[:, :, :2], two[:, :, :2])
        slots, _ = batch.slots(WINDOW)
        slots = torch.cat([slots[..., :1], one[:, :, :2].argmax(-1), slots[..., 3:]], -1)
        masked = (torch.arange(WINDOW + 1) > 2).expand_as(slots)
        half = target.head(block_outputs(net, target, seen, batch.at, slots, masked)).log_softmax(-1)
        torch.testing.assert_close(two[:, :, 2:], half[:, :, 2:])

    def test_intervals_hold_the_mean_and_shrink_with_more_texts(self):
        torch.manual_seed(0)
        anchors = torch.randint(1, 9, (400,)).double()
        values = anchors * torch.rand(400).double()
        wide, narrow = interval(values[:40], anchors[:40]), interval(values, anchors)
        assert wide.low < wide.mean < wide.high
        assert narrow.high - narrow.low < wide.high - wide.low
        assert interval(values - values, anchors) == (0, 0, 0)

    def test_parts_add_up(self, target):
        net, batch = nets(target)[0], a_batch()
        one = tally(net, target, batch)
        both = Tally.of([one, one])
        assert both.mean_accepted() == one.mean_accepted()
        assert both.by_position() == one.by_position()
        assert len(both.anchors) == 6


class TestTraining:
    @pytest.mark.parametrize("loss", losses.NAMES)
    @pytest.mark.parametrize("kind", ["heads", "block"])
    def test_it_learns(self, target, kind, loss):
        net = target.new_heads(WINDOW) if kind == "heads" else target.new_block((0, 1), WINDOW)
        trainer = Trainer(net, target, replace(RECIPE, loss=loss), bf16=False)
        if loss == "streak":  # from something that knows a little
            start = Trainer(net, target, RECIPE, bf16=False)
            for _ in range(8):
                start.step(a_batch(), 1.0)
        before = trainer.loss(a_batch()).item()
        for _ in range(12):
            trainer.step(a_batch(), 1.0)
        assert trainer.loss(a_batch()).item() < before - 0.1 * abs(before)

    def test_total_variation_is_to_the_target_itself(self, target):
        """Heads that say what the target says, one token early: by hand."""
        net, batch = target.new_heads(1), a_batch()
        batch = batch._replace(targets=batch.targets[..., :1])
        seen = target.see(batch.ids)
        expected = []
        for row, place in batch.learn[..., 0].nonzero().tolist():
            p = int(batch.at[row, place])
            q, p_next = (target.head(seen.hidden[row, i]).softmax(-1) for i in (p - 1, p))
            expected.append(1 - torch.minimum(q, p_next).sum().item())
        loss = Trainer(net, target, replace(RECIPE, loss="tv"), bf16=False).loss(batch).item()
        assert math.isclose(loss, sum(expected) / len(expected), rel_tol=1e-4)

    @pytest.mark.filterwarnings("ignore:Mismatch dtype")
    @pytest.mark.parametrize("kind", [0, 1])
    def test_half_precision_is_near_enough(self, target, kind):
        net, recipe = nets(target)[kind], replace(RECIPE, loss="ce")
        full, half = (
            Trainer(net, target, recipe, bf16=bf16).loss(a_batch(fill=0.5)).item() for bf16 in (False, True)
        )
        assert math.isclose(full, half, rel_tol=0.02)

    def test_the_target_stays_as_it_is(self, target):
        before = [p.clone() for p in target.model.parameters()]
        trainer = Trainer(target.new_block((0, 1), WINDOW), target, RECIPE, bf16=False)
        trainer.step(a_batch(), 1.0)
        assert all(torch.equal(a, b) for a, b in zip(before, target.model.parameters(), strict=True))
        assert all(p.grad is None for p in target.model.parameters())

    def test_a_block_starts_from_the_layers_it_borrows_from(self, target):
        net = target.new_block((1, 0), WINDOW)
        body = target.model.model
        assert torch.equal(net.layers[0].mlp.up_proj.weight, body.layers[1].mlp.up_proj.weight)
        assert torch.equal(net.layers[1].self_attn.k_norm.weight, body.layers[0].self_attn.k_norm.weight)
        assert torch.equal(net.blank, target.embedding[target.mask])

    def test_a_loss_that_is_not_finite_stops_the_run(self, target):
        trainer = Trainer(target.new_heads(WINDOW), target, RECIPE, bf16=False)
        with torch.no_grad():
            next(iter(trainer.net.parameters())).fill_(math.nan)
        with pytest.raises(FloatingPointError, match="lower the learning rate"):
            trainer.step(a_batch(), 1.0)


class TestRuns:
    def run(self, target, folder, name="run"):
        torch.manual_seed(0)
        trainer = Trainer(target.new_block((0, 1), WINDOW), target, RECIPE, bf16=False)
        data = Mixture(some_windows(), Anchors(5, WINDOW, 0.5), 1)
        return Run(trainer, data, {"greedy": [a_batch()]}, folder, name)

    def test_a_resumed_run_is_an_unbroken_run(self, target, tmp_path):
        whole = self.run(target, tmp_path / "whole")
        for _ in range(4):
            whole.one_step(1.0)
        first = self.run(target, tmp_path / "parts")
        first.resume()  # nothing there
        for _ in range(2):
            first.one_step(1.0)
        first.save()
        second = self.run(target, tmp_path / "parts")
        second.resume()
        assert second.progress == first.progress
        for _ in range(2):
            second.one_step(1.0)
        assert second.progress.step == 4
        assert second.progress.minutes > first.progress.minutes
        for ours, theirs in zip(second.trainer.net.parameters(), whole.trainer.net.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs)

    def test_a_checkpoint_of_another_run_is_left_aside(self, target, tmp_path, capsys):
        first = self.run(target, tmp_path, "one")
        first.one_step(1.0)
        first.save()
        second = self.run(target, tmp_path, "two")
        second.resume()
        assert second.progress == Progress()
        assert "starting anew" in capsys.readouterr().out
        fresh = target.new_block((0, 1), WINDOW)
        assert all(
            torch.equal(a, b)
            for a, b in zip(second.trainer.net.parameters(), fresh.parameters(), strict=True)
        )

    def test_it_logs_what_was_accepted_and_stops_in_time(self, target, tmp_path):
        run = self.run(target, tmp_path)
        run.train(minutes=0.01)
        last = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
        assert {"greedy_accepted", "greedy_streak", "greedy_at", "step", "minutes"} <= set(last)
        assert len(last["greedy_at"]) == WINDOW
        assert run.progress.minutes >= 0.01

    @pytest.mark.parametrize("kind", [0, 1])
    def test_gradients_reach_every_weight(self, target, kind):
        net = nets(target)[kind]
        torch.autograd.backward(Trainer(net, target, RECIPE, bf16=False).loss(a_batch()))
        assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []

    @pytest.mark.parametrize("kind", [0, 1])
    def test_what_is_saved_loads_for_its_target_alone(self, target, tmp_path, kind):
        net = nets(target)[kind]
        save_net(net, tmp_path / "net.safetensors", target.sha256)
        again = load_net((Heads, BlockNetwork)[kind], tmp_path / "net.safetensors", target.sha256)
        assert again.shape == net.shape
        batch = a_batch()
        ours, theirs = (outputs(n, target, target.see(batch.ids), batch) for n in (net, again))
        torch.testing.assert_close(ours, theirs, atol=0.1, rtol=0.1)  # bf16
        with pytest.raises(LoadError, match="other weights"):
            load_net((Heads, BlockNetwork)[kind], tmp_path / "net.safetensors", "0" * 64)
