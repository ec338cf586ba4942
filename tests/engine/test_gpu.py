"""The properties of ``test_speculate.py`` on a GPU in bf16, if there is one."""

import pytest
import torch

from fimserver.engine.engines import ModelPool
from fimserver.engine.speculation.drafts import RandomDrafter, ScriptedDrafter
from fimserver.settings import Settings
from fimserver.types import Deadline
from tests.engine.speculation.test_speculate import REQUESTS, Liar, ids_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


@pytest.fixture(scope="module")
def engine():
    return ModelPool(Settings(device="cuda", drafter="none")).engine("ar")


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda r: f"{len(r.prefix)}-{r.sampling.temperature}")
def test_the_text_is_the_same_whatever_is_drafted(engine, request_):
    plain, _ = ids_of(engine, request_)
    for seed in range(3):
        for drafter in (ScriptedDrafter(plain), Liar(plain, seed), RandomDrafter(seed, 8192)):
            assert ids_of(engine, request_, [drafter])[0] == plain


def test_passes_are_replayed_from_graphs_that_were_captured_at_load(engine):
    graphs = engine.cache.network.static.graphs
    captured = set(graphs._graphs)
    for request in REQUESTS:
        engine.cache.clear()
        ids_of(engine, request)
    assert graphs.failures == {}
    assert set(graphs._graphs) == captured


def test_rows_are_the_same_bits_in_every_shape_that_is_used(engine):
    cache, costs = engine.cache, engine.speculation.policy.costs
    prompt, chain = engine.prompt(REQUESTS[0]), [300 + i for i in range(24)]
    cache.prefill(prompt, Deadline(), want_logits=False)
    idle = [0] * (costs.plain[1] - 1)
    one_by_one = [cache.branches([[chain[i], *idle]], len(prompt) + i)[0, 0] for i in range(costs.longest)]
    for branches, rows in costs.ms:
        logits = cache.branches([[9] * rows] * (branches - 1) + [chain[:rows]], len(prompt))[-1]
        assert torch.equal(logits, torch.stack(one_by_one[:rows])), (branches, rows)
