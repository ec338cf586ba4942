"""Block diffusion against an independent network and sampler, token by token, cached and uncached."""

import dataclasses
import functools
import itertools
import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from fimserver.cards import read_cards
from fimserver.engine.denoising.block_canvas import BlockCanvas
from fimserver.engine.denoising.schedules import threshold
from fimserver.engine.engines import make_dllm
from fimserver.engine.forward.prefix_cache import PrefixCache
from fimserver.engine.load import load
from fimserver.engine.runtime import DraftContext, make_runtime
from fimserver.errors import LoadError
from fimserver.reasons import Reason
from fimserver.settings import Settings
from fimserver.types import Deadline, Request, Sampling
from tests.engine.block_reference import block_decode, dense_logits
from tests.engine.test_autoregressive import CODE
from tests.tiny import copy_checkpoint, make_card, make_checkpoint

CANVAS = {
    "attention": "block",
    "mask": "<|mask|>",
    "end": "<eos>",
    "context": "<bos>After:\n{suffix}\nBefore:<fim_middle>{prefix}",
    "length": "end",
    "block_tokens": 4,
    "max_tokens": 24,
    "schedule": "threshold:0.2",
    "forbidden": ("<|mask|>", "<bos>"),
}
FAMILIES = {  # architecture in config.json, class that loads it, native class
    "sdar": ("sdar", "qwen3", "qwen3"),
    "stable-diffcoder": ("llama", "", "llama"),
    "fast-dllm": ("Fast_dLLM_Qwen", "qwen2", "qwen2"),
}
OWN = {"fast-dllm": {"block_tokens": 16, "sub_block_tokens": 4, "shift": True}}  # fields of a family's canvas


def as_sdar(folder):
    """The original's config.json: names of remote code, a flat rope_theta, fields of its own."""
    config = json.loads((folder / "config.json").read_text())
    rope = config.pop("rope_parameters")
    config.pop("layer_types", None)
    config |= {
        "model_type": "sdar",
        "architectures": ["SDARForCausalLM"],
        "auto_map": {"AutoConfig": "configuration_sdar.SDARConfig", "AutoModel": "modeling_sdar.SDARModel"},
        "rope_theta": rope["rope_theta"],
        "rope_scaling": None,
        "block_size": 4,
        "mask_token_id": 8197,
        "fuse_cross_entropy": True,
    }
    (folder / "config.json").write_text(json.dumps(config))


def as_stable_diffcoder(folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "architectures": ["StableDiffcoderForCausalLM"],
        "auto_map": {"AutoModelForCausalLM": "modeling_stable_diffcoder.StableDiffcoderForCausalLM"},
    }
    (folder / "config.json").write_text(json.dumps(config))


def as_fast_dllm(folder):
    config = json.loads((folder / "config.json").read_text())
    rope = config.pop("rope_parameters")
    config |= {
        "model_type": "Fast_dLLM_Qwen",
        "architectures": ["Fast_dLLM_QwenForCausalLM"],
        "auto_map": {"AutoModelForCausalLM": "modeling.Fast_dLLM_QwenForCausalLM"},
        "rope_theta": rope["rope_theta"],
        "bd_size": 16,
        "sliding_window": 32768,
        "use_sliding_window": False,
    }
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("blocks")
    made = {name: make_checkpoint(root / name, native, seed=11) for name, (_, _, native) in FAMILIES.items()}
    as_sdar(made["sdar"])
    as_stable_diffcoder(made["stable-diffcoder"])
    as_fast_dllm(made["fast-dllm"])
    return made


def card_of(family, **canvas):
    architecture, loads_as, _ = FAMILIES[family]
    return make_card(architecture, loads_as=loads_as, fim=None, canvas=CANVAS | OWN.get(family, {}) | canvas)


def engine_of(folder, family, **canvas):
    loaded = load(card_of(family, **canvas), folder, torch.device("cpu"))
    settings = Settings()
    return make_dllm(DraftContext(make_runtime(loaded, settings), settings))


def reference_of(folder, block):
    config = json.loads((folder / "config.json").read_text())
    config.setdefault("rope_theta", config.get("rope_parameters", {}).get("rope_theta"))
    return dense_logits(load_file(folder / "model.safetensors"), config, block)


def request_of(cut=60, **sampling):
    fields = {"max_tokens": 24, "stop": "none"} | sampling
    return Request(CODE[:cut], CODE[cut + 10 : cut + 70], sampling=Sampling(**fields))


def steps_of(engine, request):
    """Texts of the slots up to the end after every step, ``None`` for a masked one."""
    views = [chunk.canvas for chunk in engine.complete(request, Deadline()) if chunk.canvas]
    return [[None if slot.masked else slot.text for slot in view] for view in views]


def texts(engine, history):
    """The same of a reference's ids, up to the end."""
    tokens = engine.tokens
    return [
        [
            None if token == tokens.mask else engine.vocabulary.decode([token])
            for token in itertools.takewhile(lambda t: t != tokens.end, ids)
        ]
        for ids in history
    ]


def reference_steps(engine, folder, request, level):
    left, _ = engine._sides(request)
    canvas = engine.canvas_card
    block = canvas.block_tokens
    decode = block_decode
    if canvas.shift:
        decode = functools.partial(block_decode, part=canvas.sub_block_tokens, shift=True)
    history = decode(
        reference_of(folder, block),
        left,
        block,
        mask=engine.tokens.mask,
        end=engine.tokens.end,
        forbidden=engine.tokens.forbidden,
        level=level,
        blocks=-(-(request.sampling.max_tokens + len(left) % block) // block),
        temperature=request.sampling.temperature,
        top_p=request.sampling.top_p,
        seed=request.sampling.seed,
    )
    return [step for step in texts(engine, history) if step]


@pytest.fixture(scope="module")
def engines(folders):
    return {family: engine_of(folders[family], family) for family in FAMILIES}


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_original_names_give_the_original_network(family, folders, engines):
    """Every row of a text, against a network written down from its description."""
    engine = engines[family]
    ids = [300, 301, engine.tokens.mask, 302, 17, 5, 9, 11]
    network = PrefixCache(engine.network, 8, 8, block=4)
    ours = network.rows(ids, 0, network.causal(0, 8), torch.arange(8))
    torch.testing.assert_close(ours, reference_of(folders[family], 4)(ids), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize(
    ("temperature", "top_p", "seed"), [(0.0, 1.0, 0), (0.0, 0.9, 3), (0.7, 1.0, 1), (1.0, 0.9, 5)]
)
@pytest.mark.parametrize("level", [0.05, 0.3])
def test_every_step_is_that_of_the_sampler(family, temperature, top_p, seed, level, folders, engines):
    engine = engines[family]
    engine.schedule = threshold(level)
    for cut in (30, 61, 92):
        request = request_of(cut, temperature=temperature, top_p=top_p, seed=seed)
        assert steps_of(engine, request) == reference_steps(engine, folders[family], request, level)


class UncachedCanvas(BlockCanvas):
    """The same canvas with everything computed again at every step."""

    def predicting(self, slots):
        self.cache.clear()
        self._stored = len(self._text) // self.block * self.block
        logits = self.cache.prefill(self._text[: self._stored], Deadline(), want_logits=True)
        empty = torch.empty(0)
        self._next = logits if slots[0] == self.mask and self.room == self.block else empty
        return BlockCanvas.predicting(self, slots)


def uncached(canvas, mask):
    made = UncachedCanvas(canvas.cache, canvas._text, canvas.block, canvas.sub_block, shift=canvas.shift)
    made.mask = mask
    return made


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_cached_equals_uncached(family, temperature, engines):
    engine = engines[family]
    engine.schedule = threshold(0.2)
    for cut in (0, 31, 62, 93, 94, 62):
        request = request_of(cut, temperature=temperature, seed=cut)
        cached = steps_of(engine, request)
        original = engine.open_canvas
        engine.open_canvas = lambda r, original=original: uncached(original(r), engine.tokens.mask)
        assert steps_of(engine, request) == cached
        engine.open_canvas = original


def test_a_step_runs_one_block_and_a_finished_block_runs_once_more(engines, monkeypatch):
    engine = engines["sdar"]
    engine.schedule = threshold(0.2)
    rows = []
    original = PrefixCache.rows_pass
    monkeypatch.setattr(
        PrefixCache, "rows_pass", lambda self, ids, *rest: rows.append(len(ids)) or original(self, ids, *rest)
    )
    request = request_of()
    steps_of(engine, request)
    rows.clear()
    steps = steps_of(engine, request)
    assert set(rows) == {4, 8}
    assert rows.count(8) == len({len(step) for step in steps}) - 1
    assert len(rows) == len(steps)


def test_typing_computes_the_chunk_that_changed(engines):
    engine = engines["sdar"]
    steps_of(engine, request_of(90))
    canvas = engine.open_canvas(dataclasses.replace(request_of(90), prefix=CODE[:90] + "x"))
    assert canvas.open(Deadline())
    assert canvas.prefilled.forwards <= 1


@pytest.fixture(scope="module")
def ending(folders, engines, tmp_path_factory):
    """A checkpoint that ends its middles: its end token's row is a little more than that of a frequent one."""
    engine = engines["sdar"]
    engine.schedule = threshold(0.05)
    said = [text for text in steps_of(engine, request_of(61))[-1] if text]
    token = engine.vocabulary.encode(said[5])[0]
    folder = copy_checkpoint(folders["sdar"], tmp_path_factory.mktemp("ending") / "tiny")
    tensors = load_file(folder / "model.safetensors")
    end = engine.tokens.end
    tensors["lm_head.weight"][end] = 1.5 * tensors["lm_head.weight"][token]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("level", [0.02, 0.2, 0.85])
def test_an_end_ends_the_middle_where_the_sampler_does(level, ending):
    engine = engine_of(ending, "sdar", schedule=f"threshold:{level}")
    ended = 0
    for cut in range(30, 130, 9):
        request = request_of(cut)
        theirs = reference_steps(engine, ending, request, level)
        chunks = list(engine.complete(request, Deadline()))
        ended += chunks[-1].reason is Reason.END
        assert steps_of(engine, request) == theirs
        if chunks[-1].reason is Reason.END:
            assert "".join(chunk.text for chunk in chunks) == "".join(text or "" for text in theirs[-1])
    assert ended > 1


def test_an_expired_deadline_gives_what_is_committed(engines):
    engine = engines["sdar"]
    chunks = list(engine.complete(request_of(), Deadline(0)))
    assert [chunk.text for chunk in chunks] == [""]
    assert chunks[-1].reason is Reason.DEADLINE


@pytest.mark.parametrize("block", [3, 8, 32])
def test_any_block_length(block, folders):
    engine = engine_of(folders["sdar"], "sdar", block_tokens=block, schedule="threshold:0.3")
    for cut in (33, 92):
        request = request_of(cut)
        assert steps_of(engine, request) == reference_steps(engine, folders["sdar"], request, 0.3)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"model_type": "qwen3"}, "config.json says 'qwen3', the card 'sdar'"),
        ({"head_dim": None}, "config.json has no head_dim: it cannot be read as qwen3"),
        ({"attention_bias": None}, "config.json has no attention_bias"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling"),
        ({"use_sliding_window": True}, "use_sliding_window = True"),
        ({"head_dim": 8}, "another shape"),
        ({"num_hidden_layers": 3}, "lacks tensor"),
        ({"num_hidden_layers": 1}, "unknown tensor"),
        ({"attention_bias": True}, "lacks tensor"),
    ],
)
def test_a_config_that_contradicts_is_refused(change, complaint, folders, tmp_path):
    folder = copy_checkpoint(folders["sdar"], tmp_path / "tiny")
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    with pytest.raises(LoadError, match=complaint):
        load(card_of("sdar"), folder, torch.device("cpu"))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_missing_or_additional_tensor_is_refused(family, folders, tmp_path):
    folder = copy_checkpoint(folders[family], tmp_path / "tiny")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    kept = tensors.pop("model.layers.1.self_attn.o_proj.weight")
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(LoadError, match=r"lacks tensor model.layers.1.self_attn.o_proj.weight"):
        load(card_of(family), folder, torch.device("cpu"))
    tensors |= {"model.layers.1.self_attn.o_proj.weight": kept, "model.timestep.weight": torch.zeros(4)}
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(LoadError, match="unknown tensor"):
        load(card_of(family), folder, torch.device("cpu"))


def test_a_tokenizer_without_the_mask_is_refused(folders):
    with pytest.raises(LoadError, match=r"no token '<\|MASK\|>'"):
        load(card_of("sdar", mask="<|MASK|>"), folders["sdar"], torch.device("cpu"))


def test_user_text_cannot_spell_what_the_context_spells(engines):
    engine = engines["sdar"]
    request = Request("<fim_middle>x<bos>", "<fim_middle>")
    left, _ = engine._sides(request)
    assert left.count(engine.vocabulary.special("<fim_middle>")) == 1
    assert left.count(engine.vocabulary.special("<bos>")) == 1
    assert (
        engine.vocabulary.decode(left) == "<bos>After:\n<fim_middle>\nBefore:<fim_middle><fim_middle>x<bos>"
    )


def test_a_prompt_keeps_within_its_limit_with_all_of_its_own_text(engines):
    engine = engines["sdar"]
    request = Request("some = words()\n" * 200, "and = more()\n" * 200)
    left, _ = engine._sides(request)
    assert len(left) <= engine.budget.limit


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"context": ""}, "`context` is for the attention 'block'"),
        ({"attention": "full"}, "`context` is for the attention 'block'"),
        ({"context": "{suffix}"}, "`context` needs"),
        ({"context": "{prefix}{suffix}{suffix}"}, "`context` needs"),
        ({"length": "fixed"}, "attention 'block' needs length 'end'"),
        ({"sub_block_tokens": 3}, "`sub_block_tokens` is for the attention 'block', and divides"),
        ({"cache": "dual"}, "`cache` is for the attention 'full'"),
    ],
)
def test_a_card_that_contradicts_is_refused(change, complaint):
    with pytest.raises(ValueError, match=complaint):
        card_of("sdar", **change)


def test_such_a_card_does_not_decode_token_by_token():
    with pytest.raises(ValueError, match="has no \\[fim\\]"):
        make_card("sdar", loads_as="qwen3", canvas=CANVAS)
    assert card_of("sdar").routes == ("dllm",)


def block_cards():
    return [card for card in read_cards().values() if card.canvas and card.canvas.attention == "block"]


@pytest.mark.parametrize("card", block_cards(), ids=lambda card: card.name)
def test_special_tokens_of_a_context_are_forbidden_or_the_end(card):
    """So that a tokenizer that lacks one is refused, and the model never writes one."""
    spelt = re.findall(r"<[|\[][^<>]*[|\]]>", card.canvas.context)
    assert spelt
    assert set(spelt) <= {*card.canvas.forbidden, card.canvas.end}
    assert card.canvas.mask in card.canvas.forbidden
