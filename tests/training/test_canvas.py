"""Training of the canvas adapter: it acts on canvas rows only, the base does not change, and a run can be resumed at any step."""

import random
from dataclasses import replace

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders
from tokenizers.models import BPE
from transformers import Qwen2Config, Qwen2ForCausalLM

from fimserver.engine.denoising.canvas import ShiftedCanvas
from fimserver.engine.forward.adapter import CanvasNetwork, load_adapter
from fimserver.engine.forward.fused import fuse
from fimserver.engine.forward.prefix_cache import PrefixCache
from fimserver.engine.prompts.prompt import cut_context, fim_prompt
from fimserver.engine.prompts.vocabulary import Vocabulary
from fimserver.types import Deadline, Request
from models.training.canvas import Run, load, save, start_from
from models.training.canvas_data import MASK, NO_TARGET, Example, Examples, Plan, plans, work
from models.training.canvas_eval import WINDOW, Development, greedy
from models.training.canvas_export import export
from models.training.canvas_model import Canvases, Coder
from models.training.canvas_prompts import Prompts
from models.training.canvas_shrink import low_rank, shrink
from models.training.canvas_trainer import Recipe, Trainer, streak_of
from tests.tiny import make_card

VOCABULARY = 132
PREFIX, SUFFIX, MIDDLE, END = range(128, 132)
RECIPE = Recipe(
    rows=32,
    blocks="8,16",
    drafts="0",
    draft_share=0.5,
    sampler=8,
    attention_rank=4,
    mlp_rank=2,
    lr=3e-3,
    warmup_steps=2,
    lag=2,
    words=100,
    sampled_words=20,
)
CODE = "".join(
    f"def area_{i}(width, height):\n    total = width * {i}\n    return total + height\n\n\n"
    for i in range(30)
)


def encode(text):
    return list(text.encode("ascii"))


def prompts_of(layout="psm", *, heal=False):
    """Prompts of a card whose tokens are the ASCII characters, with the markers after them."""
    card = make_card("qwen2")
    card = card.model_copy(
        update={"fim": card.fim.model_copy(update={"layout": layout, "heal": heal, "stops": ("<eos>",)})}
    )
    tokenizer = Tokenizer(BPE(vocab={chr(i): i for i in range(128)}, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    texts = ("<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<eos>")
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in texts])
    return card, Prompts(card, Vocabulary(tokenizer, card))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
    )
    model = Qwen2ForCausalLM(config)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    text = torch.tensor(encode(CODE))
    for step in range(60):  # long enough to know the code by heart, so that its law is worth learning
        rows = torch.stack([text[i * 97 + step : i * 97 + step + 96] for i in range(12)])
        model(input_ids=rows, labels=rows).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def coder(model):
    return Coder(model, "cpu", torch.float32)


def make_examples(seed=1):
    return Examples({"python": [CODE]}, {"python": 1.0}, prompts_of()[1], seed, middle_tokens=40)


def make_trainer(coder, recipe=RECIPE):
    return Trainer(coder, make_examples(), torch.arange(20, 120), recipe)


def stirred(adapter):
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return adapter


def an_example(middle=20):
    ids = [PREFIX, *encode("def f(x):"), SUFFIX, *encode("\nend"), MIDDLE]
    return Example((*ids, *encode("return x + 12345 * yzw"[:middle]), END), len(ids))


def denoised(coder, adapter, example, chosen):
    rows = work(example, chosen, END)
    with torch.no_grad():
        return coder.denoise(adapter, [coder.clean(example.ids)], [rows.canvases])


class TestTheNetwork:
    def test_text_is_what_the_native_class_makes_of_it(self, model, coder):
        ids = encode(CODE[:200])
        logits = coder.logits(coder.clean(ids).hidden)
        torch.testing.assert_close(
            logits, model(input_ids=torch.tensor([ids])).logits[0], atol=1e-4, rtol=1e-4
        )

    def test_text_may_be_read_in_pieces(self, coder):
        ids = encode(CODE[:60])
        whole, first = coder.clean(ids), coder.clean(ids[:40])
        rest = coder.clean(ids[40:], first.kv)
        torch.testing.assert_close(rest.hidden, whole.hidden[40:], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(rest.kv, whole.kv, atol=1e-4, rtol=1e-4)

    def test_a_new_adapter_changes_nothing_but_the_masks(self, coder):
        ids = encode(CODE[:50])
        rows, text = torch.arange(40, 50), coder.clean(ids[:40])
        mask = torch.ones(10, 50, dtype=torch.bool).tril(40)
        canvas = Canvases(torch.tensor(ids)[rows], rows, mask)
        with torch.no_grad():
            fresh = coder.denoise(coder.adapter(RECIPE.ranks(), 1.0, 0), [text], [canvas])
            torch.testing.assert_close(fresh, coder.clean(ids).hidden[40:], atol=1e-4, rtol=1e-4)
            changed = coder.denoise(stirred(coder.adapter(RECIPE.ranks(), 1.0, 0)), [text], [canvas])
        assert not torch.allclose(changed, fresh, atol=1e-2)

    def test_a_canvas_sees_the_text_before_it_and_itself_alone(self, coder):
        adapter, example = stirred(coder.adapter(RECIPE.ranks(), 1.0, 0)), an_example()
        canvas, other = Plan(5, (True,) * 8), Plan(2, (True, False, True, True))
        alone = denoised(coder, adapter, example, [canvas])
        torch.testing.assert_close(
            denoised(coder, adapter, example, [canvas, other])[:8], alone, atol=1e-5, rtol=1e-5
        )
        ids = list(example.ids)
        ids[example.prompt + 5] = 7  # a token that the canvas covers
        changed = Example(tuple(ids), example.prompt)
        torch.testing.assert_close(denoised(coder, adapter, changed, [canvas]), alone, atol=1e-5, rtol=1e-5)
        ids[example.prompt + 4] = 7  # one before it
        changed = Example(tuple(ids), example.prompt)
        assert not torch.allclose(denoised(coder, adapter, changed, [canvas]), alone, atol=1e-3)

    def test_a_later_token_is_seen_by_the_masks_before_it(self, coder):
        adapter, example = stirred(coder.adapter(RECIPE.ranks(), 1.0, 0)), an_example()
        masks, known = Plan(5, (True,) * 8), Plan(5, (*(True,) * 7, False))
        one, two = (denoised(coder, adapter, example, [plan]) for plan in (masks, known))
        assert not torch.allclose(one[0], two[0], atol=1e-4)


class TestRows:
    def test_the_first_place_is_always_a_mask(self):
        example = an_example()
        for seed in range(20):
            for plan in plans(example, 64, 8, random.Random(seed)):
                rows = work(example, [plan], END)
                assert rows.canvases.ids[0] == MASK

    def test_each_row_predicts_the_place_after_it(self):
        example, plan = an_example(), Plan(3, (True, False, True, True))
        rows = work(example, [plan], END)
        middle = example.middle
        assert rows.canvases.ids.tolist() == [MASK, middle[4], MASK, MASK]
        assert rows.canvases.positions.tolist() == [example.prompt + 3 + i for i in range(4)]
        assert rows.targets.tolist() == [NO_TARGET, middle[5], middle[6], middle[7]]
        assert rows.teacher.tolist() == [-1] * 4  # a later token is visible: the frozen law is no target

    def test_leading_masks_learn_the_law_of_the_text_row_at_their_place(self):
        example = an_example()
        rows = work(example, [Plan(3, (True,) * 4)], END)
        assert rows.teacher.tolist() == [example.prompt + 3 + i for i in range(4)]

    def test_the_end_is_learned_and_nothing_behind_it(self):
        example = an_example(middle=6)
        rows = work(example, [Plan(4, (True, False, False, False, True))], END)
        assert rows.canvases.ids.tolist() == [MASK, example.middle[5], MASK, MASK, MASK]
        assert rows.targets.tolist() == [NO_TARGET, END, *[NO_TARGET] * 3]

    def test_examples_follow_from_seed_and_number(self):
        assert make_examples()(7) == make_examples()(7)
        assert make_examples()(7) != make_examples(seed=2)(7)
        assert make_examples()(7) != make_examples()(8)
        for number in range(30):
            example = make_examples()(number)
            assert example.ids[example.prompt - 1] == MIDDLE
            assert 1 <= len(example.middle) <= 40


class TestPrompts:
    @pytest.mark.parametrize("layout", ["psm", "spm", "spm_tail"])
    @pytest.mark.parametrize("heal", [False, True])
    @pytest.mark.parametrize("prefix", ["x = 1\nreturn ", "x = 1\n", "retu", "a  "])
    def test_the_engine_asks_with_the_same_prompt(self, layout, heal, prefix):
        card, prompts = prompts_of(layout, heal=heal)
        context = cut_context(
            Request(prefix, "\nend"), card, prompts.vocabulary, tokens=128, healing=prompts.healing
        )
        cut = prompts.cut(prefix, "\nend", 64, 64)
        assert list(cut.ids) == fim_prompt(context, card.fim, prompts.vocabulary)
        assert cut.held == context.held
        assert bool(cut.held) == (heal and not prefix.endswith("\n"))

    def test_the_middle_spells_what_was_held_back(self):
        _, prompts = prompts_of("spm_tail", heal=True)
        examples = Examples({"python": [CODE]}, {"python": 1.0}, prompts, 1, middle_tokens=40)
        healed = 0
        for number in range(30):
            example = examples(number)
            before = prompts.vocabulary.decode(example.ids[example.prefix_at : example.prompt])
            middle = prompts.vocabulary.decode([token for token in example.middle if token != END])
            assert before + middle in CODE
            healed += not before.endswith("\n")
        assert healed > 5

    def test_drafts_in_the_prompt_follow_a_prefix_that_comes_last(self):
        _, prompts = prompts_of("spm_tail")
        example = Examples({"python": [CODE]}, {"python": 1.0}, prompts, 1, middle_tokens=40)(3)
        assert example.ids[example.prefix_at - 1] == MIDDLE
        own = [True] * len(example.ids)
        chosen = plans(example, 400, 8, random.Random(1), own, (1.0, 1))
        assert min(plan.start for plan in chosen) < 0
        assert all(example.prompt + plan.start > example.prefix_at for plan in chosen)


class TestTraining:
    def test_it_learns_and_leaves_the_base_as_it_is(self, coder):
        before, trainer = coder.fingerprint(), make_trainer(coder)
        losses = [trainer.step(number)["infill"] for number in range(40)]
        assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
        assert coder.fingerprint() == before

    def test_a_run_that_was_cut_off_goes_on_to_the_bit(self, coder, tmp_path):
        whole = make_trainer(coder)
        for number in range(6):
            whole.step(number)
        part = make_trainer(coder)
        for number in range(4):
            part.step(number)
        run = Run(part, None, tmp_path, "base")
        save(part, replace(run.progress, step=4), "base", tmp_path / "state.safetensors")
        resumed = make_trainer(coder)
        progress = load(resumed, "base", tmp_path / "state.safetensors")
        assert progress.step == 4
        for number in range(4, 6):
            resumed.step(number)
        for name, value in whole.adapter.state_dict().items():
            assert torch.equal(value, resumed.adapter.state_dict()[name]), name
        for name, value in whole.average.state_dict().items():
            assert torch.equal(value, resumed.average.state_dict()[name]), name

    def test_a_checkpoint_of_other_weights_is_refused(self, coder, tmp_path):
        trainer = make_trainer(coder)
        trainer.step(0)
        save(trainer, Run(trainer, None, tmp_path, "a").progress, "a" * 64, tmp_path / "state.safetensors")
        with pytest.raises(ValueError, match="use its own base"):
            load(trainer, "b" * 64, tmp_path / "state.safetensors")

    def test_a_changed_base_is_not_saved_over(self, model, tmp_path):
        coder = Coder(model, "cpu", torch.float32)
        trainer = make_trainer(coder)
        run = Run(trainer, None, tmp_path, "base")
        coder.layers = [coder.layers[0]._replace(down=coder.layers[0].down + 1e-3), *coder.layers[1:]]
        with pytest.raises(RuntimeError, match="frozen weights have changed"):
            run.checkpoint(measure=False)
        assert not (tmp_path / "state.safetensors").exists()

    @pytest.mark.parametrize("spoil", [0.0, float("nan")])
    def test_a_dead_or_broken_gradient_is_an_error(self, coder, monkeypatch, spoil):
        trainer = make_trainer(coder)
        losses = trainer.losses

        def spoiled(*args):
            found = losses(*args)
            return found | {"loss": found["loss"] * spoil}

        monkeypatch.setattr(trainer, "losses", spoiled)
        with pytest.raises(FloatingPointError, match="gradient"):
            trainer.step(0)

    def test_a_shuffled_teacher_teaches_nothing_about_places(self, coder, tmp_path):
        results = []
        for shuffled in (False, True):
            trainer = make_trainer(coder, replace(RECIPE, shuffled_teacher=shuffled))
            for number in range(60):
                trainer.step(number)
            development = Development(coder, make_examples(seed=9), 6, tmp_path / "spans.json")
            results.append(development.measure(trainer.adapter)["infill_loss"])
        assert results[0] < results[1] - 0.5

    def test_the_streak_makes_longer_drafts_likelier(self, coder):
        trainer = make_trainer(coder, replace(RECIPE, streak=True, drafts="4", lr=1e-3))
        losses = [float(trainer.step(number)["loss"]) for number in range(60)]
        assert sum(losses[-10:]) < sum(losses[:10]) - 1

    def test_the_rate_rises_and_falls(self):
        recipe = Recipe(lr=1.0, warmup_steps=4, decay_from=10, decay_steps=5)
        assert [recipe.rate(n) for n in (0, 3, 9, 10, 12, 15)] == [0.25, 1.0, 1.0, 1.0, 0.6, 0.0]


class TestTheStreak:
    def test_it_is_the_expected_length_of_what_is_accepted(self):
        likely = torch.tensor([[0.5, 0.5], [0.25, 0.75], [0.9, 0.1]])
        own, starts = torch.tensor([0, 1, 0]), torch.tensor([0, 1, 0])
        loss = streak_of(likely.log(), own, starts)  # drafts of two places and of one
        assert float(loss) == pytest.approx(-((0.5 + 0.5 * 0.75) + 0.9) / 2)

    def test_a_place_gains_by_what_lies_before_it(self):
        logits = torch.tensor([[4.0, 0.0], [0.0, 0.0], [-4.0, 0.0], [0.0, 0.0]], requires_grad=True)
        own = torch.zeros(4, dtype=torch.long)
        streak_of(logits, own, torch.tensor([0, 1, 0, 1])).backward()
        assert -logits.grad[1, 0] > -logits.grad[3, 0] * 10


class TestShrinking:
    def test_what_fits_into_the_lower_rank_stays_what_it_was(self):
        generator = torch.Generator().manual_seed(1)
        down = torch.randn(3, 20, generator=generator)
        up = torch.randn(30, 3, generator=generator)
        wide_down, wide_up = torch.cat([down, down]), torch.cat([up, up * 0.5], 1)  # rank 3, written as 6
        small_down, small_up = low_rank(wide_down, wide_up, 3)
        torch.testing.assert_close(small_up @ small_down, wide_up @ wide_down, atol=1e-4, rtol=1e-4)
        rows = small_down.norm(dim=1)
        torch.testing.assert_close(rows, torch.full((3,), float(wide_down.norm(dim=1).mean())))

    def test_a_run_goes_on_from_one_with_larger_ranks(self, coder, tmp_path):
        trainer = make_trainer(coder)
        for number in range(6):
            trainer.step(number)
        save(trainer, Run(trainer, None, tmp_path, "base").progress, "base", tmp_path / "state.safetensors")
        small = make_trainer(coder, replace(RECIPE, attention_rank=3, mlp_rank=1, sampler=6))
        start_from(small, "base", tmp_path / "state.safetensors")
        assert torch.equal(small.average.mask, trainer.average.mask)
        assert small.average.sampler["inward"].shape[0] == 6
        assert small.average.up["0_qkv"].abs().sum() > 0
        small.step(0)
        with pytest.raises(ValueError, match="use its own base"):
            start_from(small, "other", tmp_path / "state.safetensors")

    def test_the_strongest_units_of_a_sampler_are_kept(self):
        tensors = {
            "mask": torch.ones(2),
            "sampler.inward": torch.tensor([[1.0, 0.0], [9.0, 0.0], [0.0, 2.0]]),
            "sampler.outward": torch.tensor([[1.0, 0.01, 5.0]]),
        }
        small = shrink(tensors, {"mask": torch.Size([2]), "sampler.inward": torch.Size([2, 2])})
        assert torch.equal(small["sampler.inward"], tensors["sampler.inward"][[0, 2]])
        assert torch.equal(small["sampler.outward"], tensors["sampler.outward"][:, [0, 2]])
        assert torch.equal(small["mask"], tensors["mask"])


class TestExport:
    def test_the_engine_computes_what_was_trained(self, model, coder, tmp_path):
        """The exported file on the engine's own network gives the logits of the training's."""
        trainer = make_trainer(coder)
        for number in range(5):
            trainer.step(number)
        save(trainer, Run(trainer, None, tmp_path, "base").progress, "a" * 64, tmp_path / "state.safetensors")
        export(tmp_path / "state.safetensors", tmp_path / "adapter.safetensors", "adapter")
        adapter = load_adapter(tmp_path / "adapter.safetensors", "a" * 64)
        assert adapter.blocks == (8, 16)
        example, mask_token = an_example(), 127
        frozen = fuse(model, 128, 8)
        cache = PrefixCache(frozen, 128, 32)
        canvas = ShiftedCanvas(
            cache, example.ids[: example.prompt + 3], CanvasNetwork(frozen, adapter, mask_token), mask_token
        )
        assert canvas.open(Deadline())
        plan = Plan(3, (True, True, False, True, True, False, True, True))
        slots = [mask_token if masked else example.middle[3 + i] for i, masked in enumerate(plan.masked)]
        trained = coder.logits(denoised(coder, trainer.adapter, example, [plan]))
        torch.testing.assert_close(
            canvas.predict(slots)[1:], trained[:-1], atol=0.1, rtol=0.05
        )  # the file is in bf16
        untouched = coder.logits(denoised(coder, coder.adapter(RECIPE.ranks(), 1.0, 0), example, [plan]))
        assert not torch.allclose(untouched[:-1], trained[:-1], atol=0.5)


class TestDevelopment:
    def test_greedy_text_is_the_native_class_text(self, model, coder):
        example = an_example()
        own = greedy(coder, example, 5)
        ids = list(example.ids[: example.prompt])
        for _ in range(5):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        assert list(own.ids) == ids

    def test_the_spans_are_kept(self, coder, tmp_path):
        development = Development(coder, make_examples(seed=9), 3, tmp_path / "spans.json")
        again = Development(coder, make_examples(seed=9), 3, tmp_path / "spans.json")
        assert development.own == again.own
        measured = development.measure(coder.adapter(RECIPE.ranks(), 1.0, 0))
        survival = [measured[f"survival_{i}"] for i in range(1, WINDOW + 1)]
        assert survival == sorted(survival, reverse=True)
        assert measured["tokens_a_cycle"] == pytest.approx(2 + sum(survival))
