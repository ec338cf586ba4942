"""LLaDA 2.0: original tensor names in a native GLM-4 MoE network, compared with an independent model and sampler."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from fimserver.cards import get_card
from fimserver.engine.denoising.schedules import threshold
from fimserver.engine.engines import make_dllm
from fimserver.engine.forward.prefix_cache import PrefixCache
from fimserver.engine.load import load
from fimserver.engine.runtime import DraftContext, make_runtime
from fimserver.errors import LoadError
from fimserver.settings import Settings
from tests.engine.block_reference import block_decode, block_mask, mlp, norm, rotate, under
from tests.engine.test_block_diffusion import (
    CANVAS,
    UncachedCanvas,
    request_of,
    steps_of,
    texts,
)
from tests.tiny import copy_checkpoint, make_card, write_checkpoint

BLOCK = 8
CONFIG = {
    "model_type": "llada2_moe",
    "architectures": ["LLaDA2MoeModelLM"],
    "auto_map": {"AutoModelForCausalLM": "modeling_llada2_moe.LLaDA2MoeModelLM"},
    "vocab_size": 8320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 2048,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "num_shared_experts": 1,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 2.5,
    "first_k_dense_replace": 1,
    "score_function": "sigmoid",
    "moe_router_enable_expert_bias": True,
    "norm_topk_prob": True,
    "use_qk_norm": True,
    "use_bias": False,
    "use_qkv_bias": False,
    "norm_head": False,
    "rope_theta": 600000,
    "partial_rotary_factor": 0.5,
    "tie_word_embeddings": False,
    "pad_token_id": 8195,
}


def shapes():
    yield "model.word_embeddings.weight", (8320, 64)
    yield "model.norm.weight", (64,)
    yield "lm_head.weight", (8320, 64)
    for n in range(3):
        at = f"model.layers.{n}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{at}{name}.weight", (64,)
        yield f"{at}attention.query_key_value.weight", ((4 + 2 * 2) * 16, 64)
        yield f"{at}attention.dense.weight", (64, 64)
        for name in ("query_layernorm", "key_layernorm"):
            yield f"{at}attention.{name}.weight", (16,)
        mlps = {"mlp.": 96} if n == 0 else {"mlp.shared_experts.": 32}
        if n > 0:
            yield f"{at}mlp.gate.weight", (8, 64)
            yield f"{at}mlp.gate.expert_bias", (8,)
            mlps |= {f"mlp.experts.{e}.": 32 for e in range(8)}
        for name, width in mlps.items():
            yield f"{at}{name}gate_proj.weight", (width, 64)
            yield f"{at}{name}up_proj.weight", (width, 64)
            yield f"{at}{name}down_proj.weight", (64, width)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llada2") / "tiny"
    folder.mkdir()
    generator = torch.Generator().manual_seed(3)
    tensors = {
        name: 0.2 * torch.randn(shape, generator=generator) + (1.0 if name.endswith("norm.weight") else 0.0)
        for name, shape in shapes()
    }
    write_checkpoint(folder, tensors, CONFIG)
    return folder


def card_of():
    canvas = CANVAS | {"block_tokens": BLOCK}
    return make_card("llada2_moe", loads_as="glm4_moe", fim=None, canvas=canvas)


@pytest.fixture(scope="module")
def engine(good):
    loaded = load(card_of(), good, torch.device("cpu"))
    return make_dllm(DraftContext(make_runtime(loaded, Settings()), Settings()))


def experts(w, h):
    """Eight experts in four groups: the best two groups by their two best biased scores, three experts."""
    rows = []
    for x in h:
        scores = torch.sigmoid(w["gate.weight"] @ x)
        biased = (scores + w["gate.expert_bias"]).view(4, 2)
        groups = biased.sum(-1).topk(2).indices.tolist()
        allowed = [e for e in range(8) if e // 2 in groups]
        chosen = sorted(allowed, key=lambda e: -float(biased.view(-1)[e]))[:3]
        share = scores[chosen] / scores[chosen].sum() * 2.5
        routed = sum(s * mlp(under(w, f"experts.{e}."), x) for s, e in zip(share, chosen, strict=True))
        rows.append(routed + mlp(under(w, "shared_experts."), x))
    return torch.stack(rows)


def reference_of(folder):
    tensors = load_file(folder / "model.safetensors")

    def attention(w, h):
        qkv = (h @ w["query_key_value.weight"].T).view(len(h), 8, 16).transpose(0, 1)
        q = rotate(norm(qkv[:4], w["query_layernorm.weight"], 1e-6), 600000.0, 8)
        k = rotate(norm(qkv[4:6], w["key_layernorm.weight"], 1e-6), 600000.0, 8).repeat_interleave(2, 0)
        v = qkv[6:].repeat_interleave(2, 0)
        scores = (q @ k.transpose(1, 2) / 4).masked_fill(~block_mask(len(h), BLOCK), -torch.inf)
        return (scores.softmax(-1) @ v).transpose(0, 1).reshape(len(h), -1) @ w["dense.weight"].T

    def logits(ids):
        x = F.embedding(torch.tensor(ids), tensors["model.word_embeddings.weight"])
        for n in range(3):
            w = under(tensors, f"model.layers.{n}.")
            x = x + attention(under(w, "attention."), norm(x, w["input_layernorm.weight"], 1e-6))
            h = norm(x, w["post_attention_layernorm.weight"], 1e-6)
            x = x + (mlp(under(w, "mlp."), h) if n == 0 else experts(under(w, "mlp."), h))
        return norm(x, tensors["model.norm.weight"], 1e-6) @ tensors["lm_head.weight"].T

    return logits


def test_original_names_give_the_original_network(good, engine):
    ids = [300, 301, engine.tokens.mask, 302, 17, 5, 9, 11, 40, 41, 42, 43, 44, 45, 46, 47]
    cache = PrefixCache(engine.network, 16, 16, block=BLOCK)
    ours = cache.rows(ids, 0, cache.causal(0, 16), torch.arange(16))
    torch.testing.assert_close(ours, reference_of(good)(ids), atol=2e-4, rtol=1e-4)
    assert isinstance(engine.network.model, transformers.Glm4MoeForCausalLM)


@pytest.mark.parametrize(("temperature", "seed"), [(0.0, 0), (0.7, 1), (1.0, 5)])
@pytest.mark.parametrize("level", [0.05, 0.95])
def test_every_step_is_that_of_the_sampler(temperature, seed, level, good, engine):
    engine.schedule = threshold(level)
    request = request_of(35, temperature=temperature, seed=seed, max_tokens=16)
    left, _ = engine._sides(request)
    tokens = engine.tokens
    blocks = -(-(16 + len(left) % BLOCK) // BLOCK)
    history = block_decode(
        reference_of(good), left, BLOCK, tokens.mask, tokens.end, tokens.forbidden, level, blocks,
        temperature, 1.0, seed,
    )  # fmt: skip
    assert steps_of(engine, request) == [step for step in texts(engine, history) if step]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_cached_equals_uncached(temperature, engine, monkeypatch):
    engine.schedule = threshold(0.2)
    request = request_of(62, temperature=temperature)
    cached = steps_of(engine, request)
    assert steps_of(engine, request) == cached
    left, _ = engine._sides(request)
    canvas = UncachedCanvas(engine.cache, left, BLOCK)
    canvas.mask = engine.tokens.mask
    monkeypatch.setattr(engine, "open_canvas", lambda _: canvas)
    assert steps_of(engine, request) == cached


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"model_type": "llada"}, "config.json says 'llada', the card 'llada2_moe'"),
        ({"num_experts": None}, "config.json has no num_experts: it cannot be read as glm4_moe"),
        ({"partial_rotary_factor": None}, "config.json has no partial_rotary_factor"),
        ({"score_function": "softmax"}, "score_function = 'softmax', which is not supported"),
        ({"use_qkv_bias": True}, "use_qkv_bias = True"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling"),
        ({"num_hidden_layers": 4}, "lacks tensor"),
        ({"num_hidden_layers": 2}, "unknown tensor"),
        ({"num_key_value_heads": 1}, "lacks tensor"),
        ({"moe_intermediate_size": 16}, "another shape"),
    ],
)
def test_a_config_that_contradicts_is_refused(change, complaint, good, tmp_path):
    folder = copy_checkpoint(good, tmp_path / "tiny")
    (folder / "config.json").write_text(json.dumps(CONFIG | change))
    with pytest.raises(LoadError, match=complaint):
        load(card_of(), folder, torch.device("cpu"))


@pytest.mark.parametrize(
    "name",
    ["attention.query_key_value.weight", "mlp.gate.expert_bias", "mlp.shared_experts.up_proj.weight",
     "mlp.experts.5.down_proj.weight"],
)  # fmt: skip
def test_a_missing_or_additional_tensor_is_refused(name, good, tmp_path):
    folder = copy_checkpoint(good, tmp_path / "tiny")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    kept = tensors.pop(f"model.layers.1.{name}")
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(LoadError):
        load(card_of(), folder, torch.device("cpu"))
    tensors |= {f"model.layers.1.{name}": kept, "model.layers.1.mlp.timestep.weight": torch.zeros(4)}
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(LoadError, match="unknown tensor"):
        load(card_of(), folder, torch.device("cpu"))


def test_a_damaged_file_is_one_line(good, tmp_path):
    folder = copy_checkpoint(good, tmp_path / "tiny")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(LoadError, match="cannot be read"):
        load(card_of(), folder, torch.device("cpu"))


def test_the_card_is_that_layout():
    card = get_card("llada2.0-mini")
    assert (card.loads_as, card.canvas.shift, card.canvas.block_tokens) == ("glm4_moe", False, 32)
