"""LLaDA: original tensor names in a native Llama network, compared with an independent model and sampler."""

import dataclasses
import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from fimserver.cards import get_card
from fimserver.engine.engines import make_dllm
from fimserver.engine.load import load
from fimserver.engine.runtime import DraftContext, make_runtime
from fimserver.errors import LoadError
from fimserver.settings import Settings
from fimserver.types import Deadline
from tests.engine.test_autoregressive import REQUEST
from tests.tiny import DREAM_CANVAS, copy_checkpoint, make_card, write_checkpoint

LAYERS = 2
WIDTH = 64
HEADS = 4
CONFIG = {
    "model_type": "llada",
    "architectures": ["LLaDAModelLM"],
    "auto_map": {"AutoConfig": "configuration_llada.LLaDAConfig", "AutoModel": "modeling_llada.LLaDAModelLM"},
    "d_model": WIDTH,
    "n_heads": HEADS,
    "n_kv_heads": HEADS,
    "n_layers": LAYERS,
    "mlp_hidden_size": 96,
    "vocab_size": 8320,
    "embedding_size": 8320,
    "max_sequence_length": 2048,
    "rope": True,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
    "block_type": "llama",
    "activation_type": "silu",
    "layer_norm_type": "rms",
    "include_bias": False,
    "weight_tying": False,
    "mask_token_id": 8197,
}
CANVAS = DREAM_CANVAS | {
    "shift": False,
    "start": None,
    "after_suffix": None,
    "schedule": "fixed",
    "initial_tokens": 16,
}


def shapes():
    yield "wte.weight", (8320, WIDTH)
    yield "ln_f.weight", (WIDTH,)
    yield "ff_out.weight", (8320, WIDTH)
    for n in range(LAYERS):
        for name in ("attn_norm", "ff_norm"):
            yield f"blocks.{n}.{name}.weight", (WIDTH,)
        for name in ("q_proj", "k_proj", "v_proj", "attn_out"):
            yield f"blocks.{n}.{name}.weight", (WIDTH, WIDTH)
        for name in ("ff_proj", "up_proj"):
            yield f"blocks.{n}.{name}.weight", (96, WIDTH)
        yield f"blocks.{n}.ff_out.weight", (WIDTH, 96)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llada") / "tiny"
    folder.mkdir()
    generator = torch.Generator().manual_seed(3)
    tensors = {
        f"model.transformer.{name}": 0.2 * torch.randn(shape, generator=generator)
        + (1.0 if len(shape) == 1 else 0.0)
        for name, shape in shapes()
    }
    write_checkpoint(folder, tensors, CONFIG)
    return folder


@pytest.fixture
def folder(good, tmp_path):
    return copy_checkpoint(good, tmp_path / "tiny")


def card_of(**canvas):
    return make_card("llada", loads_as="llama", fim=None, canvas=CANVAS | canvas)


def engine_of(folder, **canvas):
    loaded = load(card_of(**canvas), folder, torch.device("cpu"))
    return make_dllm(DraftContext(make_runtime(loaded, Settings()), Settings()))


def reference_logits(folder, ids):
    """The network written down from its description: RMS norm, rotary halves, full attention, SwiGLU."""
    weights = {
        k.removeprefix("model.transformer."): v for k, v in load_file(folder / "model.safetensors").items()
    }
    size = WIDTH // HEADS
    angles = torch.outer(
        torch.arange(len(ids)).float(), 1 / 500000.0 ** (torch.arange(0, size, 2).float() / size)
    )
    cos, sin = angles.cos(), angles.sin()

    def norm(x, weight):
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-5) * weight

    def rotate(x):  # (heads, T, D)
        low, high = x[..., : size // 2], x[..., size // 2 :]
        return torch.cat([low * cos - high * sin, low * sin + high * cos], -1)

    x = weights["wte.weight"][torch.tensor(ids)]
    for n in range(LAYERS):
        w = {k.removeprefix(f"blocks.{n}."): v for k, v in weights.items() if k.startswith(f"blocks.{n}.")}
        h = norm(x, w["attn_norm.weight"])
        q, k, v = (
            (h @ w[f"{name}.weight"].T).view(-1, HEADS, size).transpose(0, 1)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        scores = rotate(q) @ rotate(k).transpose(1, 2) / size**0.5
        x = x + (scores.softmax(-1) @ v).transpose(0, 1).reshape(-1, WIDTH) @ w["attn_out.weight"].T
        h = norm(x, w["ff_norm.weight"])
        x = x + (F.silu(h @ w["ff_proj.weight"].T) * (h @ w["up_proj.weight"].T)) @ w["ff_out.weight"].T
    return norm(x, weights["ln_f.weight"]) @ weights["ff_out.weight"].T


def test_original_names_give_the_original_network(good):
    engine = engine_of(good)
    ids = [300, 301, engine.tokens.mask, 302, 17, 5]
    native = engine.network.whole.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    torch.testing.assert_close(native, reference_logits(good, ids), atol=2e-4, rtol=1e-4)
    assert isinstance(engine.network.whole.model, transformers.LlamaForCausalLM)


@pytest.mark.parametrize("steps", [16, 8, 5])
@pytest.mark.parametrize("cut", [30, 60, 90])
@pytest.mark.parametrize("cache", ["none", "dual:1"])
def test_greedy_decoding_equals_low_confidence_remasking(steps, cut, cache, good):
    """LLaDA's sampler over 16 masks: masks // steps of the most probable a step, the remainder first."""
    slots = 16
    counts = [slots // steps + (i < slots % steps) for i in range(steps)]
    engine = engine_of(good, cache=cache)
    request = dataclasses.replace(REQUEST, prefix=REQUEST.prefix[:cut])
    canvas = engine.open_canvas(request)
    left, right = list(canvas.left), list(canvas.right)
    mask = engine.tokens.mask
    theirs = [mask] * slots
    ours = [mask] * slots
    for count in counts:
        logits = reference_logits(good, [*left, *theirs, *right])[len(left) : len(left) + slots]
        logits[:, mask] = -torch.inf
        probability, token = logits.double().softmax(-1).max(-1)
        probability[[t != mask for t in theirs]] = -1.0
        for i in probability.topk(count).indices.tolist():
            theirs[i] = int(token[i])
        ours = one_step(engine, canvas, ours, count)
        assert ours == theirs


def one_step(engine, canvas, slots, count):
    """The schedule ``fixed:count`` on one prediction."""
    from fimserver.engine.denoising.schedules import DenoisingStep, read_schedule
    from fimserver.engine.sampling import draw, read

    masked = [i for i, token in enumerate(slots) if token == engine.tokens.mask]
    logits = canvas.predict(slots)[masked].float().clone()
    logits[:, engine.tokens.mask] = -torch.inf
    step = DenoisingStep(0, masked, {}, lambda rows: read(draw(logits[list(rows)]))[0])
    chosen = step.chosen(read_schedule(f"fixed:{count}")(step).fill)
    return [chosen[i][0] if i in chosen else token for i, token in enumerate(slots)]


@pytest.mark.parametrize("length", ["fixed", "search"])
def test_it_fills_a_middle(length, good):
    chunks = list(engine_of(good, length=length, cache="checked").complete(REQUEST, Deadline()))
    assert "".join(c.text for c in chunks)
    assert chunks[-1].reason


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"model_type": "llama"}, "config.json says 'llama', the card 'llada'"),
        ({"block_type": "sequential"}, "block_type = 'sequential', which is not supported"),
        ({"weight_tying": True}, "weight_tying = True"),
        ({"alibi": True}, "alibi = True"),
        ({"include_qkv_bias": True}, "include_qkv_bias = True"),
        ({"n_layers": None}, "config.json has no n_layers"),
        ({"d_model": 32}, "another shape"),
        ({"n_layers": 3}, "lacks tensor"),
        ({"n_layers": 1}, "unknown tensor"),
    ],
)
def test_a_config_that_contradicts_is_refused(change, complaint, folder):
    (folder / "config.json").write_text(json.dumps(CONFIG | change))
    with pytest.raises(LoadError, match=complaint):
        load(card_of(), folder, torch.device("cpu"))


@pytest.mark.parametrize("name", ["blocks.1.ff_proj.weight", "ff_out.weight", "ln_f.weight"])
def test_a_missing_or_additional_tensor_is_refused(name, folder):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    kept = tensors.pop(f"model.transformer.{name}")
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(LoadError, match="lacks tensor"):
        load(card_of(), folder, torch.device("cpu"))
    tensors |= {f"model.transformer.{name}": kept, "model.transformer.wpe.weight": torch.zeros(4)}
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(LoadError, match="unknown tensor"):
        load(card_of(), folder, torch.device("cpu"))


def test_gate_and_up_are_not_swapped(folder):
    """The swap loads as well, as both have one shape: only numbers show it."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    ids = [300, 301, 302]
    before = reference_logits(folder, ids)
    for n in range(LAYERS):
        names = [f"model.transformer.blocks.{n}.{p}.weight" for p in ("ff_proj", "up_proj")]
        tensors[names[0]], tensors[names[1]] = tensors[names[1]], tensors[names[0]]
    save_file(tensors, path, {"format": "pt"})
    swapped = engine_of(folder).network.whole.model(input_ids=torch.tensor([ids])).logits[0]
    assert not torch.allclose(swapped, before, atol=1e-2)


def test_the_card_is_that_layout():
    card = get_card("llada-8b")
    assert (card.loads_as, card.canvas.shift, card.canvas.length) == ("llama", False, "search")
