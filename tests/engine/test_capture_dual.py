"""Canvases that their context sees, over static buffers: the numbers of the native class, in captured shapes."""

import dataclasses

import pytest
import torch

from fimserver.engine import runtime as runtime_module
from fimserver.engine.capture import capture_dual
from fimserver.engine.denoising.dual_cache import CanvasText, DualCache
from fimserver.engine.denoising.refresh import read_cache
from fimserver.engine.engines import make_dllm
from fimserver.engine.forward import fused
from fimserver.engine.forward.fused import FusedModel
from fimserver.engine.forward.graphs import EagerGraphs
from fimserver.engine.forward.network import NativeNetwork
from fimserver.engine.forward.passes import finish
from fimserver.engine.forward.static_pass import ROWS, shape_of
from fimserver.engine.load import load
from fimserver.engine.runtime import DraftContext, make_runtime
from fimserver.settings import Settings
from fimserver.types import Deadline
from tests.engine.test_autoregressive import REQUEST
from tests.tiny import DREAM_CANVAS, DREAMON_CANVAS, make_card, make_checkpoint

CPU = torch.device("cpu")
CAPACITY = 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("dual") / "tiny", "Dream", seed=5)


def loaded_of(folder, canvas=DREAM_CANVAS):
    return load(make_card("Dream", loads_as="qwen2", fim=None, canvas=canvas), folder, CPU)


def cache_of(loaded, network):
    return DualCache(network, CAPACITY, loaded.model.model.rotary_emb.inv_freq)


def static_network(loaded, capacity=CAPACITY):
    network = fused.fuse(loaded.model, capacity, 1)
    graphs = EagerGraphs()
    network.use_graphs(graphs)
    return network, graphs


def text_of(left, slots, right):
    ids = torch.randint(
        10, 8000, (left + slots + right,), generator=torch.Generator().manual_seed(left)
    ).tolist()
    return CanvasText(tuple(ids[:left]), tuple(ids[left : left + slots]), tuple(ids[left + slots :]), slots)


def test_whole_passes_and_canvases_have_the_numbers_of_the_native_class(folder):
    loaded = loaded_of(folder)
    native = cache_of(loaded, NativeNetwork(loaded.model, CPU))
    static = cache_of(loaded, static_network(loaded)[0])
    for left, slots, right in ((40, 8, 30), (150, 20, 60), (3, 5, 0)):
        text = text_of(left, slots, right)
        rows = range(left - 1, left - 1 + slots)
        wanted, got = (finish(cache.whole_pass(text, rows)) for cache in (native, static))
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4)
        changed = dataclasses.replace(text, slots=tuple(reversed(text.slots)))
        wanted, got = (finish(cache.canvas_pass(changed, rows, 2)) for cache in (native, static))
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4)
        assert got.shape[0] == slots


def test_what_is_captured_at_load_is_all_that_requests_run(folder):
    loaded = loaded_of(folder)
    network, graphs = static_network(loaded)
    cache = cache_of(loaded, network)
    capture_dual(cache, 25)
    captured = set(graphs.keys)
    assert cache.is_due(text_of(20, 8, 8), read_cache("dual"))  # what was run for it is forgotten
    for left in (4, 20, 70, 150, 240):
        for slots in (2, 7, 12, 24):
            text = text_of(left, slots, 30)
            finish(cache.whole_pass(text, range(left - 1, left - 1 + slots)))
            finish(cache.canvas_pass(text, range(left - 1, left - 1 + slots), 0))
    assert set(graphs.keys) - captured == set()
    assert len({shape.rows for *_, shape, _ in captured if shape.rows > ROWS[-1]}) == 2  # 256 and 384


def test_a_whole_text_has_the_logits_of_its_canvas_alone():
    assert shape_of(1, 1056, 1056, 32, 1100) == (1, 1152, 1100, 128)
    assert shape_of(1, 33, 1056, 32, 1100) == (1, 48, 1100, 48)


def test_passes_that_are_not_static_are_not_captured(folder):
    loaded = loaded_of(folder)
    cache = cache_of(loaded, NativeNetwork(loaded.model, CPU))
    capture_dual(cache, 8)
    assert cache.forwards == 0


@pytest.mark.parametrize("cache", ["dual:1", "dual", "checked"])
def test_an_engine_on_captured_passes_writes_what_the_native_one_writes(cache, folder):
    loaded = loaded_of(folder, DREAMON_CANVAS | {"initial_tokens": 12, "cache": cache})
    runtime = make_runtime(loaded, Settings(network="native"))
    native = make_dllm(DraftContext(runtime, Settings()))
    network, graphs = static_network(loaded, 400)
    engine = make_dllm(DraftContext(dataclasses.replace(runtime, network=network), Settings()))
    captured = set(graphs.keys)
    assert captured
    texts = ["".join(chunk.text for chunk in e.complete(REQUEST, Deadline())) for e in (native, engine)]
    assert texts[0] == texts[1] != ""
    assert set(graphs.keys) == captured


def test_on_a_gpu_our_own_pass_runs_through_graphs(folder, monkeypatch):
    """The choice alone: there is no GPU here."""
    loaded = dataclasses.replace(loaded_of(folder), device=torch.device("cuda"))
    monkeypatch.setattr(runtime_module, "CudaGraphs", EagerGraphs)
    monkeypatch.setattr(runtime_module, "free_gib", lambda _: 8.0)
    runtime = make_runtime(loaded, Settings(batch=3))
    network = runtime.network
    assert isinstance(network, FusedModel)
    assert network.static is not None
    assert (runtime.width, runtime.is_shared) == (3, True)
    assert isinstance(make_runtime(loaded, Settings(network="native")).network, NativeNetwork)
    on_cpu = make_runtime(loaded_of(folder), Settings()).network
    assert isinstance(on_cpu, FusedModel)
    assert on_cpu.static is None
