"""The fused forward pass against the native class: cached, chunked, masked, packed or not."""

import pytest
import torch

from fimserver.engine.denoising.canvas import CachedCanvas
from fimserver.engine.forward import fused
from fimserver.engine.forward.network import NativeNetwork
from fimserver.engine.forward.prefix_cache import PrefixCache
from fimserver.engine.load import load
from fimserver.types import Deadline
from tests.tiny import CONFIGS, make_card, make_checkpoint

LEAN = ("qwen2", "qwen3", "llama")


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("architecture", LEAN)
def test_lean_agrees_with_the_native_class(architecture, packed, tmp_path, monkeypatch):
    if not packed:
        monkeypatch.setattr(fused, "PACK_LIMIT_BYTES", 0)
    model = load(
        make_card(architecture), make_checkpoint(tmp_path / "tiny", architecture), torch.device("cpu")
    ).model
    ids = torch.randint(10, 8000, (77,), generator=torch.Generator().manual_seed(1)).tolist()
    results = []
    for network in (NativeNetwork(model, torch.device("cpu")), fused.fuse(model, 128, 8)):
        cache = PrefixCache(network, 128, 32)
        last = cache.prefill(ids, Deadline(), want_logits=True)
        rows = cache.rows([5, 6, 7, 8], len(ids), cache.block(len(ids), 4), torch.arange(4))
        results.append((last, rows))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-4, atol=1e-4)
    whole = model(input_ids=torch.tensor([ids])).logits[0, -1]
    torch.testing.assert_close(results[1][0], whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", sorted(CONFIGS))
def test_lean_is_used_only_where_it_fits(architecture, tmp_path):
    model = load(
        make_card(architecture), make_checkpoint(tmp_path / "tiny", architecture), torch.device("cpu")
    ).model
    assert fused.fits(model) == (architecture in LEAN)


def test_lean_computes_nano(nano):
    runtime = nano.runtime(nano.card("ar"))
    assert isinstance(runtime.network, fused.FusedModel)


class Halved:
    """A toy adapter: a product whose result is halved."""

    def __init__(self, product):
        self.product = product

    def __call__(self, x):
        return self.product(x) / 2


def test_canvas_rows_may_go_through_other_products_over_the_same_cache(nano):
    runtime = nano.runtime(nano.card("ar"))
    network, cache = runtime.network, PrefixCache(runtime.network, 128, 32)
    ids = torch.randint(10, 8000, (40,), generator=torch.Generator().manual_seed(1)).tolist()
    seen = []

    def halve(layer, name, product):
        seen.append((layer, name))
        return Halved(product) if name == "down" else product

    other = network.wrapped(halve)
    assert seen[:4] == [(0, "qkv"), (0, "out"), (0, "gate_up"), (0, "down")]
    assert len(seen) == 4 * len(network.stack.layers)
    cache.prefill(ids, Deadline(), want_logits=False)
    before = [tensor.clone() for tensor in cache.kv.layer(2)]
    canvas, plain = CachedCanvas(cache, ids, other), CachedCanvas(cache, ids)
    mixed, same = canvas.predict([5, 6, 7]), plain.predict([5, 6, 7])
    assert not torch.equal(mixed, same)
    after = cache.kv.layer(2)
    assert all(torch.equal(a[:, : len(ids)], b[:, : len(ids)]) for a, b in zip(before, after, strict=True))
    whole = PrefixCache(other, 128, 32)
    whole.prefill(ids, Deadline(), want_logits=False)
    assert not torch.equal(
        CachedCanvas(whole, ids).predict([5, 6, 7]), mixed
    )  # the text did not go through it


class NativeMlp:
    """A toy: whatever transformers' module computes, called as it is."""

    def __init__(self, module):
        self.module = module

    def __call__(self, x):
        return self.module(x[None])[0]

    def wrapped(self, _wrap, _index):
        return self


def test_a_mixture_of_experts_needs_one_entry(tmp_path, monkeypatch):
    model = load(
        make_card("qwen3_moe"), make_checkpoint(tmp_path / "tiny", "qwen3_moe"), torch.device("cpu")
    ).model
    assert not fused.fits(model)
    monkeypatch.setitem(fused.MLPS, "qwen3_moe", lambda module, _rows, _pack: NativeMlp(module))
    assert fused.fits(model)
    ids = torch.randint(10, 8000, (30,), generator=torch.Generator().manual_seed(1)).tolist()
    last = PrefixCache(fused.fuse(model, 128, 8), 128, 32).prefill(ids, Deadline(), want_logits=True)
    whole = model(input_ids=torch.tensor([ids])).logits[0, -1]
    torch.testing.assert_close(last, whole, rtol=1e-4, atol=1e-4)
