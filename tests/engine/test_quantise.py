"""Weights in 8 and 4 bits by torchao: which are quantised, and on which device."""

import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import pytest
import torch
import transformers
from torch.nn import functional as F

from fimserver.engine import runtime
from fimserver.engine.forward.fused import FusedModel, fits, fuse
from fimserver.engine.forward.graphs import EagerGraphs
from fimserver.engine.forward.network import NativeNetwork
from fimserver.engine.forward.prefix_cache import PrefixCache
from fimserver.engine.load import load
from fimserver.engine.quantise import INT4_OPTIONS, quantise
from fimserver.errors import LoadError
from fimserver.settings import Settings
from fimserver.types import Deadline
from tests.tiny import DREAM_CANVAS, make_card, make_checkpoint

CPU = torch.device("cpu")
GPU = torch.device("cuda")


@pytest.fixture
def torchao(monkeypatch):
    """Its interface as far as it is used; ``calls``: model, configuration and device of each."""
    _ = transformers.Qwen2ForCausalLM  # which imports the real one where that is installed
    calls = []
    package = ModuleType("torchao.quantization")
    package.Int8WeightOnlyConfig = lambda **options: ("int8", options)
    package.Int4WeightOnlyConfig = lambda **options: ("int4", options)
    package.quantize_ = lambda model, config, device=None: calls.append((model, config, device))
    monkeypatch.setitem(sys.modules, "torchao.quantization", package)
    return calls


@pytest.mark.parametrize("arithmetic", ["int8", "int4"])
def test_products_are_quantised_on_the_device_and_the_rest_follows(torchao, arithmetic):
    moved = []
    model = SimpleNamespace(to=moved.append)
    quantise(model, arithmetic, GPU)
    ((seen, (name, options), device),) = torchao
    assert seen is model
    assert (name, device, moved) == (arithmetic, GPU, [GPU])
    wanted = {"int4_packing_format": "tile_packed_to_4d", "group_size": 128} if arithmetic == "int4" else {}
    assert options == wanted


@pytest.mark.parametrize("arithmetic", ["int8", "int4"])
def test_a_gpu_never_holds_the_16_bit_weights(torchao, arithmetic, tmp_path, monkeypatch):
    """Weights are read on the CPU; the memory that is planned is that of the quantised ones."""
    read_on, planned = [], []

    def native(_card, _folder, _checkpoint, device, dtype):
        read_on.append((device, dtype))
        raise LoadError("far enough")

    monkeypatch.setattr("fimserver.engine.load.free_gibs", lambda _device: [24.0])
    monkeypatch.setattr("fimserver.engine.load.require_memory", lambda *a: planned.append(a[2]))
    monkeypatch.setattr("fimserver.engine.load.native_model", native)
    folder = make_checkpoint(tmp_path / "tiny", "qwen2")
    with pytest.raises(LoadError, match="far enough"):
        load(make_card("qwen2"), folder, GPU, arithmetic)
    assert read_on == [(CPU, torch.bfloat16)]
    assert planned == [arithmetic]


def test_int4_on_a_cpu_says_what_to_use():
    with pytest.raises(LoadError, match="use --quantize int8 on a CPU"):
        quantise(SimpleNamespace(), "int4", CPU)


def test_without_torchao_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(LoadError, match=r"int8 needs torchao: `pip install 'fimserver\[gpu\]'`"):
        quantise(SimpleNamespace(), "int8", CPU)


class Int8Rows(torch.Tensor):
    """Weights in 8 bits with a scale a row, to the outside in 16 or 32: how torchao's tensors behave."""

    @staticmethod
    def __new__(cls, weight):
        return torch.Tensor._make_wrapper_subclass(cls, weight.shape, dtype=weight.dtype)

    def __init__(self, weight):
        self.scale = weight.abs().amax(-1, keepdim=True) / 127
        self.values = (weight / self.scale).round().to(torch.int8)

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is F.linear:
            x, weight, bias = (*args, None)[:3]
            return F.linear(x, weight.values.to(x.dtype) * weight.scale.to(x.dtype), bias)
        if func in {torch.cat, torch.split}:
            raise NotImplementedError("quantised weights cannot be joined")
        return super().__torch_function__(func, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return args[0]
        raise NotImplementedError(str(func))


Int8Rows.__module__ = "torchao.quantization"


def quantised(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight = torch.nn.Parameter(Int8Rows(module.weight.detach()), requires_grad=False)
    return model


def logits_of(network):
    """Of a prefill in chunks and of a pass of four rows."""
    cache = PrefixCache(network, 128, 32)
    ids = torch.randint(10, 8000, (77,), generator=torch.Generator().manual_seed(1)).tolist()
    last = cache.prefill(ids, Deadline(), want_logits=True)
    return last, cache.rows([5, 6, 7, 8], len(ids), cache.block(len(ids), 4), torch.arange(4))


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "llama"])
@pytest.mark.parametrize("static", [True, False])
def test_our_pass_runs_quantised_products(architecture, static, tmp_path):
    """It agrees with the native class on the same weights, as passes over static buffers too."""
    card = make_card(architecture)
    model = load(card, make_checkpoint(tmp_path / "tiny", architecture), CPU).model
    whole = logits_of(NativeNetwork(model, CPU))
    quantised(model)
    assert fits(model)
    native = logits_of(NativeNetwork(model, CPU))
    network = fuse(model, 128, 8)
    assert not network.pack
    if static:
        network.use_graphs(EagerGraphs())
    for ours, theirs, exact in zip(logits_of(network), native, whole, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        assert 0 < (ours - exact).norm() / exact.norm() < 0.1


def test_a_quantised_model_runs_as_graphs_on_a_gpu(tmp_path, monkeypatch):
    """The forward pass that is chosen for it is our own, captured."""
    captured = []
    monkeypatch.setattr(runtime, "CudaGraphs", lambda: captured.append(1) or EagerGraphs())
    card = make_card("qwen2")
    loaded = load(card, make_checkpoint(tmp_path / "tiny", "qwen2"), CPU)
    quantised(loaded.model)
    on_gpu = replace(loaded, device=GPU)
    network = runtime._network(on_gpu, 128, 8, Settings(), fused_pass=fits(loaded.model))
    assert isinstance(network, FusedModel)
    assert captured == [1]


def test_tensors_of_other_libraries_are_left_to_the_native_class(tmp_path):
    model = load(make_card("qwen2"), make_checkpoint(tmp_path / "tiny", "qwen2"), CPU).model
    quantised(model)
    Int8Rows.__module__ = "elsewhere"
    try:
        assert not fits(model)
    finally:
        Int8Rows.__module__ = "torchao.quantization"


@pytest.mark.parametrize("arithmetic", ["int8", "int4"])
def test_experts_are_refused_before_weights_are_read(arithmetic, tmp_path, monkeypatch):
    """torchao quantises linear layers; the experts of a mixture are none, and would stay in 16 bits."""
    monkeypatch.setattr("fimserver.engine.load.free_gibs", lambda _device: [24.0])
    monkeypatch.setattr(
        "fimserver.engine.load.native_model", lambda *_args: pytest.fail("weights are being read")
    )
    folder = make_checkpoint(tmp_path / "tiny", "qwen3_moe")
    with pytest.raises(LoadError, match=f"tiny: {arithmetic} does not support mixtures of experts: use"):
        load(make_card("qwen3_moe"), folder, GPU, arithmetic)


@pytest.fixture
def real_torchao():
    """The library itself: ``make torchao`` installs it, the other tests do without."""
    return pytest.importorskip("torchao.quantization")


@pytest.mark.usefixtures("real_torchao")
def test_int8_agrees_with_16_bits_on_a_cpu(tmp_path):
    card = make_card("Dream", loads_as="qwen2", canvas=DREAM_CANVAS, fim=None)
    folder = make_checkpoint(tmp_path / "tiny", "Dream")
    ids = torch.arange(100, 130)[None]
    with torch.inference_mode():
        whole, small = (load(card, folder, CPU, name).model(ids).logits for name in ("none", "int8"))
    assert (small - whole).norm() / whole.norm() < 0.05


@pytest.mark.usefixtures("real_torchao")
@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "llama"])
def test_our_pass_runs_the_products_of_the_real_library(architecture, tmp_path):
    model = load(make_card(architecture), make_checkpoint(tmp_path / "tiny", architecture), CPU).model
    quantise(model, "int8", CPU)
    assert {type(m.weight.data).__name__ for m in model.modules() if isinstance(m, torch.nn.Linear)} == {
        "Int8Tensor"
    }
    assert fits(model)
    with torch.inference_mode():
        native = logits_of(NativeNetwork(model, CPU))
        ours = logits_of(fuse(model, 128, 8))
    for mine, theirs in zip(ours, native, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3)


def test_the_real_library_takes_the_layout_of_int4(real_torchao):
    """Its products exist on a GPU alone; that the configuration is one it knows can be said anywhere."""
    config = real_torchao.Int4WeightOnlyConfig(**INT4_OPTIONS)
    assert config.group_size == INT4_OPTIONS["group_size"]


@pytest.mark.usefixtures("real_torchao")
def test_the_real_library_leaves_experts_as_they_are():
    """The reason why mixtures are refused: should it ever quantise them, they need not be."""
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Qwen3MoeConfig(
        **sizes,
        num_key_value_heads=1,
        intermediate_size=32,
        moe_intermediate_size=32,
        num_experts=4,
        head_dim=16,
    )
    model = transformers.Qwen3MoeForCausalLM(config)
    quantise(model, "int8", CPU)
    experts = model.model.layers[0].mlp.experts
    assert type(experts.down_proj.data) is torch.Tensor
