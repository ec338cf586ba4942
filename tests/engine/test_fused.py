"""Our forward pass against the native class: cached, chunked, masked, packed or not."""

import pytest
import torch

from fimserver.engine import fused
from fimserver.engine.load import load
from fimserver.engine.network import NativeNetwork
from fimserver.engine.prefix_cache import PrefixCache
from fimserver.types import Deadline
from tests.tiny import CONFIGS, make_card, make_checkpoint

LEAN = ("qwen2", "qwen3", "llama")


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("architecture", LEAN)
def test_lean_agrees_with_the_native_class(architecture, packed, tmp_path, monkeypatch):
    if not packed:
        monkeypatch.setattr(fused, "PACK_LIMIT_BYTES", 0)
    model = load(make_card(architecture), make_checkpoint(tmp_path / "tiny", architecture), torch.device("cpu")).model
    ids = torch.randint(10, 8000, (77,), generator=torch.Generator().manual_seed(1)).tolist()
    results = []
    for network in (NativeNetwork(model, torch.device("cpu")), fused.FusedModel(model, 128, 8)):
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
    model = load(make_card(architecture), make_checkpoint(tmp_path / "tiny", architecture), torch.device("cpu")).model
    assert fused.fits(model) == (architecture in LEAN)


def test_lean_computes_nano(nano):
    runtime = nano.runtime(nano.card("ar"))
    assert isinstance(runtime.network, fused.FusedModel)
