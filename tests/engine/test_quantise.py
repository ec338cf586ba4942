"""Weights in 8 and 4 bits by torchao: which are asked for, and where they come to lie."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from fimserver.engine.load import load
from fimserver.engine.native_model import quantise
from fimserver.errors import LoadError
from tests.tiny import DREAM_CANVAS, make_card, make_checkpoint

CPU = torch.device("cpu")
GPU = torch.device("cuda")


@pytest.fixture
def torchao(monkeypatch):
    """Its interface as far as it is used; ``calls``: model, configuration and device of each."""
    calls = []
    package = ModuleType("torchao.quantization")
    package.Int8WeightOnlyConfig = lambda **options: ("int8", options)
    package.Int4WeightOnlyConfig = lambda **options: ("int4", options)
    package.quantize_ = lambda model, config, device=None: calls.append((model, config, device))
    monkeypatch.setitem(sys.modules, "torchao", ModuleType("torchao"))
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
    with pytest.raises(LoadError, match=r"int8 needs torchao: `pip install 'fimserver\[int8\]'`"):
        quantise(SimpleNamespace(), "int8", CPU)


def test_int8_agrees_with_16_bits_on_a_cpu(tmp_path):
    """With the real torchao, where it is installed."""
    pytest.importorskip("torchao")
    card = make_card("Dream", loads_as="qwen2", canvas=DREAM_CANVAS, fim=None)
    folder = make_checkpoint(tmp_path / "tiny", "Dream")
    ids = torch.arange(100, 130)[None]
    with torch.inference_mode():
        whole, small = (load(card, folder, CPU, name).model(ids).logits for name in ("none", "int8"))
    assert (small - whole).norm() / whole.norm() < 0.05
