"""Drafters of a coder in training: its outputs are those that are served, and its heads draft for it."""

import random
from dataclasses import replace

import pytest
import torch

from fimserver.engine.drafters.heads import HeadsDrafter
from fimserver.engine.drafters.nets import Heads, load_net, save_net
from fimserver.engine.engines import make_ar
from fimserver.engine.forward.int8 import is_exact
from fimserver.engine.load import load, weights_hash
from fimserver.engine.runtime import DraftContext, make_runtime
from fimserver.settings import Settings
from fimserver.types import Deadline, Request, Sampling
from models.training.anchors import Anchors, Files, Mixture, Text
from models.training.ask import taught
from models.training.coder_target import CoderTarget
from models.training.distil import Progress, Recipe, Trainer
from models.training.holes import Hole
from models.training.rows import IGNORE
from models.training.windows import Windows
from tests.tiny import make_card, make_checkpoint
from tests.training.test_rows import CODE

CARD = make_card("qwen2")
RECIPE = Recipe("kl", rows=2, anchors=1000, text_share=1.0, lr=0.01, warmup_steps=1)
PLAIN = Settings(drafter="none")

pytestmark = pytest.mark.skipif(not is_exact(), reason="this processor has no exact int8 products")


@pytest.fixture
def target(tmp_path):
    return CoderTarget(make_checkpoint(tmp_path / "coder", "qwen2"), CARD, tmp_path / "kept")


def mixture(target):
    anchors = Anchors(RECIPE.anchors, 3, markers=target.markers)
    return Mixture(Windows.of([]), anchors, 1, Files([CODE], target), 1.0, epoch=2)


def own_batch(target, count=40):
    """A text that goes on as the coder itself would."""
    ids = [*target.tokens(Hole(CODE, 60, 90, "characters"), random.Random(0))[0]]
    first = len(ids)
    for _ in range(count):
        ids.append(int(target.see(torch.tensor([ids])).own[0, -1]))
    return Anchors(RECIPE.anchors, 3).collate([Text(ids, first)], random.Random(0))


def words_of(target):
    """Half of what the coder can write."""
    return torch.arange(0, target.network.vocab_size, 2)


def test_what_is_kept_is_what_the_served_coder_computes(target, tmp_path):
    runtime = make_runtime(load(CARD, tmp_path / "coder", torch.device("cpu"), "int8"), PLAIN)
    ids = mixture(target).batch(0, 2).ids
    seen = target.see(ids)
    for row in range(2):
        for end in (1, 64, ids.shape[1]):
            logits = runtime.cache.prefill(ids[row, :end].tolist(), Deadline(), want_logits=True)
            hidden = runtime.cache.network.hidden[0, -1]
            torch.testing.assert_close(seen.hidden[row, end - 1].float(), hidden, atol=0.05, rtol=0.01)
            assert seen.own[row, end - 1] == logits.argmax()


def test_a_text_is_read_once(target):
    ids = mixture(target).batch(0, 2).ids
    first = target.see(ids)
    target.network = None
    again = target.see(ids)
    assert torch.equal(first.hidden, again.hidden)
    assert torch.equal(first.own, again.own)


def test_the_head_is_the_served_one_cut_to_the_words(target):
    hidden, words = torch.randn(5, target.width), words_of(target)
    whole = target.network.head(hidden)
    # The served product rounds what the head sees to int8, training does not.
    torch.testing.assert_close(target.head(hidden, words), whole[:, words], atol=0.1, rtol=0.05)


def test_prompts_are_those_of_the_card(target):
    batch = mixture(target).batch(0, 2)
    markers = {target.prompts.vocabulary.special(m) for m in ("<fim_prefix>", "<fim_suffix>", "<fim_middle>")}
    for row in batch.ids.tolist():
        assert markers <= set(row)


def test_heads_learn_what_the_coder_writes_and_draft_it(target, tmp_path):
    """Heads of half of the words, from its own text to the served coder, whose text is that of plain decoding."""
    batch, words = own_batch(target), words_of(target)
    torch.manual_seed(0)
    trainer = Trainer(target.new_heads(3, 16, words), target, RECIPE, bf16=False)
    learned = taught(trainer.net, target.see(batch.ids), batch)
    assert 0 < (learned.targets != IGNORE).sum() < (batch.targets != IGNORE).sum()
    before = trainer.loss(batch).item()
    for _ in range(12):
        trainer.step(batch, 1.0)
    assert trainer.loss(batch).item() < 0.9 * before
    save_net(trainer.net, tmp_path / "heads.safetensors", target.sha256)
    net = load_net(Heads, tmp_path / "heads.safetensors", weights_hash(tmp_path / "coder"))
    assert torch.equal(net.words, words.int())
    runtime = make_runtime(load(CARD, tmp_path / "coder", torch.device("cpu"), "int8"), PLAIN)
    engine = make_ar(DraftContext(runtime, PLAIN))
    request = Request(CODE[:90], CODE[99:], sampling=Sampling(max_tokens=24, stop="none"))
    plain = "".join(chunk.text for chunk in engine.complete(request, Deadline()))
    drafter = HeadsDrafter(net, runtime.network)
    engine.speculation.drafters = (drafter,)
    assert "".join(chunk.text for chunk in engine.complete(request, Deadline())) == plain
    state = engine.decode_state(request, Deadline())
    state.ids.append(4)
    state.hidden = torch.randn(target.width)
    (draft,) = drafter.propose(state, 2)
    assert len(draft.tokens) == 2
    assert set(draft.tokens) <= set(words.tolist())


def test_a_run_that_was_cut_off_keeps_its_words(target, tmp_path):
    net = target.new_heads(3, 16, words_of(target))
    Trainer(net, target, RECIPE).save(tmp_path / "checkpoint", Progress(3), "run")
    again = target.new_heads(3, 16, words_of(target) + 1)
    assert Trainer(again, target, RECIPE).load(tmp_path / "checkpoint", "run") == Progress(3)
    assert torch.equal(again.words, net.words)


def test_total_variation_is_over_the_words_too(target):
    trainer = Trainer(
        target.new_heads(3, 16, words_of(target)), target, replace(RECIPE, loss="tv"), bf16=False
    )
    assert 0 < trainer.loss(own_batch(target)).item() < 1
