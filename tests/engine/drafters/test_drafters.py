"""Each drafter on real networks: what it proposes and refuses, and that it never changes the text."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer

from fimserver.cards import MODELS, get_card
from fimserver.engine.drafters.block_window import BlockWindow
from fimserver.engine.drafters.diffusion import DiffusionDrafter, joint_drafts
from fimserver.engine.drafters.heads import HeadsDrafter
from fimserver.engine.drafters.model import ModelDrafter
from fimserver.engine.drafters.nets import BlockNetwork, BlockShape, Heads, HeadsShape, load_net, save_net
from fimserver.engine.drafters.registry import DRAFTERS, make_drafters
from fimserver.engine.drafters.window_kinds import WINDOWS
from fimserver.engine.drafters.windows import CanvasWindow, SelfWindow
from fimserver.engine.engines import make_ar
from fimserver.engine.load import load, weights_hash
from fimserver.engine.runtime import DraftContext, make_runtime
from fimserver.engine.sampling import choose
from fimserver.engine.speculation.drafts import DecodeState, ScriptedDrafter, draft_from
from fimserver.engine.speculation.verify import VERIFIERS
from fimserver.errors import InputError, LoadError
from fimserver.settings import Settings
from fimserver.types import Deadline, Request, Sampling
from tests.tiny import DREAM_CANVAS, make_card, make_checkpoint

CPU = torch.device("cpu")
PLAIN = Settings(drafter="none")
CODE = "def read(path):\n    with open(path) as file:\n        return file.read()\n\n\ndef write(path, text):\n    with open("
REQUESTS = [
    Request(
        CODE[:cut],
        CODE[cut + 9 :],
        sampling=Sampling(max_tokens=24, stop="none", temperature=temperature, seed=2),
    )
    for cut in (30, 90)
    for temperature in (0.0, 0.8)
]


def tiny(folder, architecture="qwen2", *, card=None, seed=0, **changes):
    """A loaded random checkpoint."""
    return load(card or make_card(architecture), make_checkpoint(folder, architecture, seed, **changes), CPU)


def texts(engine, drafters):
    """What the engine makes of every request with these drafters."""
    engine.speculation.drafters = tuple(drafters)
    return ["".join(c.text for c in engine.complete(r, Deadline())) for r in REQUESTS]


def a_line(engine, request=REQUESTS[0]):
    """A line with its prompt in the cache and its first token chosen."""
    line = engine.decode_state(request, Deadline())
    logits = engine.cache.prefill(line.prompt, Deadline(), want_logits=True)
    line.hidden = engine.cache.network.hidden[0, -1]
    line.ids.append(choose(logits, request.sampling.temperature, request.sampling.seed, 0))
    return line


class TestModel:
    @pytest.fixture
    def pair(self, tmp_path):
        """A target and a draft model of one family whose embeddings differ in length, as with Qwen2.5-Coder."""
        target = make_runtime(tiny(tmp_path / "target", vocab_size=8448), PLAIN)
        return target, make_runtime(tiny(tmp_path / "draft", seed=1), PLAIN)

    @pytest.mark.parametrize("swap", [False, True])
    def test_the_text_is_the_same_with_vocabularies_of_other_sizes(self, pair, swap):
        target, draft = reversed(pair) if swap else pair
        engine = make_ar(DraftContext(target, PLAIN))
        plain = texts(engine, [])
        assert texts(engine, [ModelDrafter(draft, target)]) == plain

    def test_the_target_as_its_own_draft_model_is_always_right(self, tmp_path):
        loaded = tiny(tmp_path / "target")
        target, draft = make_runtime(loaded, PLAIN), make_runtime(loaded, PLAIN)
        engine = make_ar(DraftContext(target, PLAIN))
        drafter = ModelDrafter(draft, target)
        for request in REQUESTS:
            engine.speculation.drafters = ()
            watcher = ScriptedDrafter()
            engine.speculation.drafters = (watcher,)
            list(engine.complete(request, Deadline()))
            line = a_line(engine, request)
            for size in (1, 4, 6):
                draft_ids = drafter.propose(line, size)[0].tokens
                assert list(draft_ids) == watcher.seen[len(line.ids) : len(line.ids) + len(draft_ids)]

    def test_it_reads_the_fim_markers(self, pair):
        target, draft = pair
        engine = make_ar(DraftContext(target, PLAIN))
        line = a_line(engine)
        ModelDrafter(draft, target).propose(line, 4)
        markers = {
            engine.vocabulary.special(name) for name in ("<fim_prefix>", "<fim_suffix>", "<fim_middle>")
        }
        assert markers <= set(draft.cache.prompts.current.ids)

    def test_its_cache_is_kept_from_call_to_call(self, pair):
        target, draft = pair
        engine = make_ar(DraftContext(target, PLAIN))
        line, drafter = a_line(engine), ModelDrafter(draft, target)
        first = drafter.propose(line, 3)[0]
        before = draft.cache.forwards
        line.ids += [*first.tokens[:1], 77]
        drafter.propose(line, 1)
        assert draft.cache.forwards - before == 1

    def test_another_tokenizer_is_refused(self, pair, tmp_path):
        target, _ = pair
        folder = make_checkpoint(tmp_path / "other", "qwen2")
        tokenizer = Tokenizer.from_file(str(MODELS / "nano" / "tokenizer.json"))
        tokenizer.add_special_tokens(
            [AddedToken(t, special=True) for t in ("<eos>", "<fim_prefix>", "<fim_suffix>", "<fim_middle>")]
        )
        tokenizer.save(str(folder / "tokenizer.json"))
        other = make_runtime(load(make_card("qwen2"), folder, CPU), PLAIN)
        with pytest.raises(LoadError, match="another tokenizer"):
            ModelDrafter(other, target)

    def test_a_shorter_draft_model_is_refused(self, pair, tmp_path):
        target, _ = pair
        short = make_runtime(
            tiny(tmp_path / "short", card=make_card("qwen2", prompt_tokens=64, max_new_tokens=8)), PLAIN
        )
        with pytest.raises(LoadError, match="shorter"):
            ModelDrafter(short, target)


class TestTrained:
    def test_heads_and_block_do_not_change_the_text(self, nano):
        runtime = nano.runtime(nano.card("ar"))
        engine = make_ar(DraftContext(runtime, PLAIN))
        plain = texts(engine, [])
        torch.manual_seed(0)
        block = BlockWindow(
            BlockNetwork(BlockShape(borrowed=(0, 5), window=9)), runtime.network, runtime.cache
        )
        for drafter in (
            HeadsDrafter(Heads(HeadsShape(heads=3)), runtime.network),
            DiffusionDrafter(block, 9, 1, 1),
            DiffusionDrafter(block, 6, 3, 3),
            DiffusionDrafter(
                SelfWindow(runtime.cache, runtime.loaded.vocabulary.special("<|mask|>"), 16), 12, 2, 2
            ),
        ):
            assert texts(engine, [drafter]) == plain

    def test_heads_of_some_words_draft_these_alone(self, nano):
        """With the logits that the whole head gives them."""
        runtime = nano.runtime(nano.card("ar"))
        engine = make_ar(DraftContext(runtime, PLAIN))
        plain = texts(engine, [])
        net = Heads(HeadsShape(heads=3, width=32, words=700, normed=True))
        net.words = torch.arange(100, 800, dtype=torch.int32)
        drafter = HeadsDrafter(net, runtime.network)
        assert texts(engine, [drafter]) == plain
        hidden = torch.randn(4, net.shape.hidden)
        whole, cut = runtime.network.head(hidden), drafter.head(hidden)
        torch.testing.assert_close(cut, whole[:, 100:800], atol=1e-4, rtol=1e-4)
        among_all = torch.full_like(whole, -torch.inf)
        among_all[:, 100:800] = cut
        for temperature in (0.0, 0.8):
            line = a_made_line(temperature)
            some = draft_from("heads", cut, line, words=drafter.words)
            assert some == draft_from("heads", among_all, line)
            assert all(100 <= token < 800 for token in some.tokens)

    def test_words_are_kept_in_the_file(self, tmp_path):
        heads = Heads(HeadsShape(hidden=8, heads=2, width=4, words=3))
        heads.words = torch.tensor([5, 70_001, 150_000], dtype=torch.int32)
        save_net(heads, tmp_path / "heads.safetensors", "abc")
        again = load_net(Heads, tmp_path / "heads.safetensors", "abc")
        assert torch.equal(again.words, heads.words)
        assert again.inward.shape == (2, 16, 4)

    def test_heads_may_lie_among_the_adapters(self, tmp_path):
        loaded = tiny(tmp_path / "target")
        runtime = make_runtime(loaded, PLAIN)
        width = runtime.network.embed(torch.tensor([1])).shape[-1]
        path = loaded.folder / "adapters" / "some.safetensors"
        save_net(Heads(HeadsShape(width, 2)), path, weights_hash(loaded.folder))
        (drafter,) = make_drafters(DraftContext(runtime, Settings(drafter="heads:some.safetensors")))
        assert drafter.drafter.net.shape.heads == 2

    def test_the_own_canvas_is_right_about_the_next_token(self, nano):
        runtime = nano.runtime(nano.card("ar"))
        engine = make_ar(DraftContext(runtime, PLAIN))
        drafter = DiffusionDrafter(
            SelfWindow(runtime.cache, runtime.loaded.vocabulary.special("<|mask|>"), 16), 8, 1, 1
        )
        for request in REQUESTS:
            line = a_line(engine, request)
            draft = drafter.propose(line, 8)[0]
            engine.speculation.drafters = ()
            made = engine.speculation.round(line, 8)
            assert made.token == draft.tokens[0]

    def test_files_of_drafters_are_checked(self, tmp_path):
        heads = Heads(HeadsShape(hidden=8, heads=2))
        path = tmp_path / "heads.safetensors"
        save_net(heads, path, "abc")
        assert torch.equal(load_net(Heads, path, "abc").inward, heads.inward.to(torch.bfloat16).float())
        with pytest.raises(LoadError, match="other weights"):
            load_net(Heads, path, "another")
        with pytest.raises(LoadError):
            load_net(BlockNetwork, path, "abc")
        with pytest.raises(LoadError, match="cannot be read"):
            load_net(Heads, tmp_path / "none.safetensors", "abc")
        path.write_bytes(path.read_bytes()[:-9])
        with pytest.raises(LoadError, match="cannot be read"):
            load_net(Heads, path, "abc")
        with torch.no_grad():
            heads.inward[0, 0, 0] = torch.nan
        save_net(heads, path, "abc")
        with pytest.raises(LoadError, match="NaN"):
            load_net(Heads, path, "abc")

    def test_a_block_file_keeps_its_words_and_its_sampler(self, tmp_path):
        shape = BlockShape(
            borrowed=(1,),
            window=3,
            hidden=64,
            heads=1,
            kv_heads=1,
            mlp=16,
            words=5,
            normed=True,
            sees_token=True,
            sampler=4,
        )
        block = BlockNetwork(shape)
        block.words = torch.tensor([2, 3, 5, 7, 151_000], dtype=torch.int32)
        save_net(block, tmp_path / "block.safetensors", "abc")
        again = load_net(BlockNetwork, tmp_path / "block.safetensors", "abc")
        assert again.shape == shape
        assert again.words.tolist() == [2, 3, 5, 7, 151_000]
        assert torch.equal(again.inward, block.inward.to(torch.bfloat16).float())

    def test_a_block_file_without_the_newer_sizes_loads(self, tmp_path):
        old = {"borrowed": [1], "window": 3, "hidden": 64, "heads": 1, "kv_heads": 1, "mlp": 16}
        block = BlockNetwork(BlockShape(**old | {"borrowed": (1,)}))
        metadata = {"kind": "Block", "shape": json.dumps(old), "target": "abc"}
        save_file(dict(block.named_parameters()), tmp_path / "block.safetensors", metadata)
        again = load_net(BlockNetwork, tmp_path / "block.safetensors", "abc")
        assert again.words is None
        assert again.shape.sampler == 0


class TestBlockInputs:
    @staticmethod
    def block(**sizes):
        torch.manual_seed(0)
        shape = BlockShape(borrowed=(1,), window=3, hidden=64, heads=1, kv_heads=1, mlp=16, **sizes)
        return BlockNetwork(shape).requires_grad_(False)

    def test_sizes_of_the_inputs_do_not_matter_where_they_are_normed(self):
        block = self.block(normed=True, sees_token=True)
        hidden = torch.randn(2, 64)
        slots = torch.randn(2, 4, 64)
        masked = torch.tensor([[False, True, True, True]] * 2)
        small = block.inputs(hidden, slots * 0.01, masked)
        torch.testing.assert_close(small, block.inputs(hidden * 9, slots, masked), atol=0.05, rtol=0.05)

    def test_masked_slots_see_the_last_known_token_if_asked(self):
        masked = torch.tensor([[False, True, True, True]])
        hidden, slots = torch.randn(1, 64), torch.randn(2, 1, 4, 64)
        for sees in (False, True):
            block = self.block(sees_token=sees)
            one, two = (block.inputs(hidden, some, masked)[0, 1:] for some in slots)
            assert torch.equal(one, two) != sees

    def test_the_sampler_adds_what_the_token_before_says(self):
        x, before = torch.randn(3, 64), torch.randn(2, 3, 64)
        plain = self.block()
        assert torch.equal(plain.after(x, before[0]), x)
        block = self.block(sampler=8)
        assert torch.equal(block.after(x, before[0]), x)  # untrained: nothing
        block.outward.normal_()
        assert not torch.allclose(block.after(x, before[0]), block.after(x, before[1]))
        torch.testing.assert_close(block.after(x, before[0]), block.after(x, before[0] * 100))


class TestDiffusion:
    def test_a_resident_diffusion_model_drafts(self, tmp_path):
        card = make_card("Dream", loads_as="qwen2", fim=None, canvas=DREAM_CANVAS)
        dream = tiny(tmp_path / "dream", "Dream", card=card)
        target = make_runtime(tiny(tmp_path / "target", vocab_size=8448), PLAIN)
        engine = make_ar(DraftContext(target, PLAIN))
        plain = texts(engine, [])
        window = CanvasWindow(
            make_runtime(dream, PLAIN).network, card, dream.vocabulary, target.network.vocab_size
        )
        drafter = DiffusionDrafter(window, 6, 2, 2)
        assert len(drafter.propose(a_line(engine), 6)[0].tokens) == 6
        assert texts(engine, [drafter]) == plain

    def test_steps_fill_the_window_from_the_left(self):
        class Window:
            longest = 8
            words = None

            def __init__(self):
                self.seen = []

            def predict(self, line, slots):  # noqa: ARG002
                self.seen.append(list(slots))
                return torch.eye(8)[: len(slots)] * 9

        window = Window()
        DiffusionDrafter(window, 6, 3, 1).propose(a_made_line(), 6)
        assert window.seen == [[None] * 6, [0, 1, *[None] * 4], [0, 1, 2, 3, None, None]]

    def test_a_filled_slot_stays_as_it_is(self):
        """What a network predicts for a filled slot is not used."""

        class Window:
            longest = 8
            words = None

            def predict(self, line, slots):  # noqa: ARG002
                return torch.eye(8)[[7 if slot is not None else i for i, slot in enumerate(slots)]] * 9

        for steps in (1, 2, 3, 6):
            assert DiffusionDrafter(Window(), 6, steps, 1).propose(a_made_line(), 6)[0].tokens == (
                0,
                1,
                2,
                3,
                4,
                5,
            )

    def test_another_drafter_may_give_the_first_tokens(self):
        class Window:
            longest = 8
            words = None

            def predict(self, line, slots):  # noqa: ARG002
                self.seen = list(slots)
                return torch.eye(8)[: len(slots)] * 9

        window = Window()
        drafts = DiffusionDrafter(window, 6, 1, 1, ScriptedDrafter([99, 7, 6, 5, 4])).propose(
            a_made_line(), 6
        )
        assert window.seen == [7, 6, 5, None, None, None]
        assert drafts[0].tokens == (7, 6, 5, 3, 4, 5)

    def test_joint_drafts_differ_where_it_helps_most(self):
        """Two choices of 0.5 each at place 1, certainty elsewhere: the second draft takes the other one."""
        logits = torch.full((3, 4), -20.0)
        logits[0, 0] = logits[1, 1] = logits[2, 3] = 5.0
        logits[1, 2] = 4.9
        line = a_made_line()
        best, other = joint_drafts(draft_from("d", logits, line), logits, 2)
        assert best.tokens == (0, 1, 3)
        assert other.tokens == (0, 2, 3)

    def test_drawn_drafts_are_independent(self):
        class Window:
            longest = 8
            words = None

            def predict(self, line, slots):  # noqa: ARG002
                return torch.zeros(len(slots), 50)

        line = a_made_line(temperature=1.0, rule="recursive")
        drafts = DiffusionDrafter(Window(), 4, 2, 4).propose(line, 4)
        assert len({d.tokens for d in drafts}) == 4
        assert all(torch.allclose(d.marginals.sum(-1), torch.ones(4, dtype=torch.float64)) for d in drafts)


def a_made_line(temperature=0.0, rule="keyed"):
    request = Request("", "", sampling=Sampling(temperature=temperature))
    return DecodeState(
        request, [1], [1], [], VERIFIERS[rule]().picker(request), ids=[99], hidden=torch.zeros(1)
    )


class TestRegistry:
    @pytest.mark.parametrize("name", ["nope", "ngram,nope", ""])
    def test_an_unknown_name_lists_the_names(self, nano, name):
        with pytest.raises(InputError, match=", ".join(DRAFTERS)):
            make_drafters(DraftContext(nano.runtime(nano.card("ar")), Settings(drafter=name)))

    def test_what_was_asked_for_and_cannot_be_had_is_an_error(self, tmp_path):
        runtime = make_runtime(tiny(tmp_path / "target"), PLAIN)
        for name in ("heads", "diffusion", "model", "diffusion:self", "model:qwen2.5-coder-7b"):
            with pytest.raises(LoadError):
                make_drafters(DraftContext(runtime, Settings(drafter=name)))

    def test_what_the_card_suggests_and_cannot_be_had_is_left_out(self, tmp_path, caplog):
        drafters = {
            "default": "ngram,heads,diffusion",
            "heads": "drafters/heads.safetensors",
            "diffusion": "self",
        }
        runtime = make_runtime(tiny(tmp_path / "target", card=make_card("qwen2", drafters=drafters)), PLAIN)
        assert [d.name for d in make_drafters(DraftContext(runtime, Settings(drafter="auto")))] == ["ngram"]
        assert caplog.text.count("left out") == 2

    def test_a_damaged_file_is_left_out_and_the_target_goes_on(self, tmp_path, caplog):
        folder = shutil.copytree(MODELS / "nano", tmp_path / "nano")
        card = get_card("nano")
        files = {"heads": "drafters/heads.safetensors", "default": "heads"}
        (folder / "drafters").mkdir(exist_ok=True)
        (folder / "drafters" / "heads.safetensors").write_bytes(b"not a file of weights")
        card = card.model_copy(update={"drafters": files})
        engine = make_ar(DraftContext(make_runtime(load(card, folder, CPU), PLAIN), Settings(drafter="auto")))
        assert engine.speculation.drafters == ()
        assert "left out" in caplog.text

    def test_none_means_none_and_one_row_means_none(self, nano, tmp_path):
        assert make_drafters(DraftContext(nano.runtime(nano.card("ar")), PLAIN)) == []
        one_row = make_runtime(tiny(tmp_path / "target"), Settings(decode_rows=1))
        assert make_drafters(DraftContext(one_row, Settings(drafter="ngram"))) == []

    def test_drafters_stand_from_cheap_to_dear(self, nano):
        target = DraftContext(nano.runtime(nano.card("ar")), Settings(drafter="diffusion:self,ngram"))
        assert [d.name for d in make_drafters(target)] == ["ngram", "diffusion:self"]

    def test_options_belong_to_their_drafter(self, nano):
        spec = "ngram,diffusion:self,steps=2,tokens=5,drafts=3,first=ngram"
        settings = Settings(drafter=spec, draft_tokens=9)
        _, guarded = make_drafters(DraftContext(nano.runtime(nano.card("ar")), settings))
        drafter = guarded.drafter
        assert (drafter.size, drafter.steps, drafter.drafts, drafter.first.name) == (5, 2, 3, "ngram")

    def test_the_old_settings_are_the_defaults_of_the_options(self, nano):
        settings = Settings(drafter="diffusion:self,steps=2", draft_tokens=9, draft_steps=4)
        (guarded,) = make_drafters(DraftContext(nano.runtime(nano.card("ar")), settings))
        assert (guarded.drafter.size, guarded.drafter.steps) == (9, 2)

    @pytest.mark.parametrize(
        ("spec", "complaint"),
        [
            ("ngram,steps=2", "drafter ngram does not understand 'steps=2': it takes window=24"),
            ("diffusion:self,step=2", "it takes tokens=16, steps=1, drafts=1, first=''"),
            ("diffusion:self,steps=two", "steps must be of type int"),
            ("diffusion:self,steps=0", "steps must be above 0"),
        ],
    )
    def test_an_option_that_cannot_be_is_named_with_what_could(self, spec, complaint, nano):
        with pytest.raises(InputError, match=complaint):
            make_drafters(DraftContext(nano.runtime(nano.card("ar")), Settings(drafter=spec)))

    def test_the_window_of_ngram_can_be_chosen(self, nano):
        text = "alpha beta gamma delta epsilon zeta eta theta iota kappa\n"
        request = Request(text * 3 + "alpha", "\n", sampling=Sampling(stop="none"))
        engine = make_ar(DraftContext(nano.runtime(nano.card("ar")), Settings(drafter="ngram,window=3")))
        state = engine.decode_state(request, Deadline())
        state.ids = engine.vocabulary.encode(" beta")
        (short,) = engine.speculation.drafters
        (long,) = make_drafters(DraftContext(nano.runtime(nano.card("ar")), Settings(drafter="ngram")))
        assert max(len(draft.tokens) for draft in short.propose(state, 16)) == 3
        assert max(len(draft.tokens) for draft in long.propose(state, 16)) > 3

    def test_a_toy_drafter_from_outside_has_options_of_its_own(self, nano, monkeypatch):
        def make_parrot(context, what, *, times: int = 2):
            return ScriptedDrafter([int(what)] * times)

        monkeypatch.setitem(DRAFTERS, "parrot", make_parrot)
        settings = Settings(drafter="parrot:7,times=3,ngram")
        ngram, parrot = make_drafters(DraftContext(nano.runtime(nano.card("ar")), settings))
        assert (ngram.name, parrot.drafter.middle) == ("ngram", [7, 7, 7])
        engine = make_ar(DraftContext(nano.runtime(nano.card("ar")), settings))
        plain = make_ar(DraftContext(nano.runtime(nano.card("ar")), PLAIN))
        request = Request("def f(a):\n    return ", "\n", sampling=Sampling(max_tokens=8, stop="none"))
        texts = [
            "".join(chunk.text for chunk in each.complete(request, Deadline())) for each in (engine, plain)
        ]
        assert texts[0] == texts[1] != ""

    def test_a_toy_window_from_outside_is_drafted_in(self, nano, monkeypatch):
        class Always:
            """Predicts one token everywhere."""

            longest = 8
            words = None

            def predict(self, line, slots):  # noqa: ARG002 - the seam
                return torch.nn.functional.one_hot(torch.full((len(slots),), 7), 8192).float()

        monkeypatch.setitem(WINDOWS, "toy", lambda *_: Always())
        (guarded,) = make_drafters(
            DraftContext(nano.runtime(nano.card("ar")), Settings(drafter="diffusion:toy,tokens=3"))
        )
        assert [draft.tokens for draft in guarded.propose(a_made_line(), 5)] == [(7, 7, 7)]


def test_the_hash_of_weights_tells_weights_apart(tmp_path):
    one, two = make_checkpoint(tmp_path / "a", "qwen2", 0), make_checkpoint(tmp_path / "b", "qwen2", 1)
    assert weights_hash(one) != weights_hash(two)
    assert weights_hash(one) == weights_hash(shutil.copytree(one, tmp_path / "c"))


@pytest.mark.parametrize(("net", "name"), [(Heads, "heads"), (BlockNetwork, "block")])
def test_the_shipped_files_are_of_the_kind_that_their_drafter_reads(net, name):
    path = MODELS / "nano" / "drafters" / f"{name}.safetensors"
    load_net(net, path, weights_hash(MODELS / "nano"))
