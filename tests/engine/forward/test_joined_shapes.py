"""Shapes in which passes of several texts join over static buffers: each is compared with plain decoding."""

import pytest
import torch

from fimserver.engine import runtime as runtimes
from fimserver.engine.engines import make_ar, make_dllm
from fimserver.engine.forward import attention, fused
from fimserver.engine.forward.attention import attend_by_products, fold_bias
from fimserver.engine.forward.graphs import EagerGraphs
from fimserver.engine.forward.joined_shapes import JOINED, PRODUCT_ROWS, product_rows, try_shapes
from fimserver.engine.forward.kv import make_buffers
from fimserver.engine.forward.layers import bias_of, filled
from fimserver.engine.forward.passes import run_together
from fimserver.engine.forward.prefix_cache import PrefixCache
from fimserver.engine.load import load
from fimserver.engine.runtime import DraftContext
from fimserver.errors import LoadError
from fimserver.settings import Settings
from fimserver.types import Deadline
from tests.engine.forward.test_adapter import folder, runtime_of  # noqa: F401 - fixture
from tests.engine.forward.test_passes import REQUESTS, said, together
from tests.over_graphs import run_over_graphs
from tests.tiny import make_card, make_checkpoint

CPU = torch.device("cpu")
CAPACITY = 640


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    made = make_checkpoint(tmp_path_factory.mktemp("joined") / "tiny", "qwen2")
    return load(make_card("qwen2"), made, CPU).model


def cache_of(model, prompts=8, rows=PRODUCT_ROWS):
    network = fused.fuse(model, CAPACITY, 8)
    network.use_graphs(EagerGraphs()).product_rows = rows
    return PrefixCache(network, CAPACITY, 64, 3, prompts=prompts)


def tokens(count, seed=1):
    return torch.randint(10, 8000, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def decoding(cache, lengths, rows=8, branches=1):
    """A decoding pass after each of several prompts, in buffers of their own."""
    passes = []
    for number, length in enumerate(lengths):
        text = tokens(length, number)
        kept = cache.prompts.take(text)
        cache.prefill(text, Deadline(), want_logits=False)
        passes.append(cache.branches_pass([tokens(rows, length + b) for b in range(branches)], length))
        assert passes[-1].kv is kept.kv
    return passes


def give_back(cache):
    for kept in cache.prompts._all:
        kept.taken = False
    cache.clear()


LENGTHS = (30, 600, 200, 500, 3, 410, 64, 590)


@pytest.mark.parametrize("rows", [8, 12])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_texts_of_any_length_have_the_bits_of_each_alone(count, rows, model):
    cache = cache_of(model)
    try_shapes(cache, 8)
    alone = [(each.result(), cache.network.hidden) for each in decoding(cache, LENGTHS[:count], rows)]
    give_back(cache)
    passes = decoding(cache, LENGTHS[:count], rows)
    run_together(passes)
    assert max(each.company for each in passes) == min(count, PRODUCT_ROWS // (8 if rows == 8 else 16))
    for each, (logits, hidden) in zip(passes, alone, strict=True):
        assert torch.equal(each.result(), logits)
        assert torch.equal(cache.network.hidden, hidden)


def test_branches_of_a_text_join_too(model):
    cache = cache_of(model)
    try_shapes(cache, 8, [(2, 8), (3, 8)])
    alone = [each.result() for each in decoding(cache, LENGTHS[:3], branches=2)]
    give_back(cache)
    passes = decoding(cache, LENGTHS[:3], branches=2)
    run_together(passes)
    assert [each.company for each in passes] == [3, 3, 3]
    assert all(torch.equal(each.result(), logits) for each, logits in zip(passes, alone, strict=True))


def test_a_pass_beside_others_leaves_their_rows_and_those_of_nobody(model):
    """Entries without a text write nothing that is read."""
    cache = cache_of(model, prompts=4)
    try_shapes(cache, 8)
    passes = decoding(cache, (200, 30, 64))
    before = [[rows.clone() for rows in each.kv.layer(1)] for each in passes]
    run_together(passes)
    assert [each.company for each in passes] == [3, 3, 3]
    for each, old in zip(passes, before, strict=True):
        for kept, now in zip(old, each.kv.layer(1), strict=True):
            assert torch.equal(kept[:, : each.start], now[:, : each.start])
            assert torch.equal(kept[:, each.start + 8 :], now[:, each.start + 8 :])
            assert not torch.equal(kept[:, each.start : each.start + 8], now[:, each.start : each.start + 8])


def test_a_shape_whose_bits_differ_is_not_used(model, monkeypatch):
    cache = cache_of(model)
    whole = fused.FusedModel.run_at

    def other_bits(self, ids, *rest):
        hidden, logits = whole(self, ids, *rest)
        return hidden, logits + (len(ids) == 4)

    monkeypatch.setattr(cache.network.static, "compute", lambda *a: other_bits(cache.network, *a))
    try_shapes(cache, 8)
    assert {entries for entries, _ in cache.network.static.alike} == {1, 2, 8}
    assert (cache.network.static.apart, cache.network.static.mixes) == (False, True)
    assert cache.network.static.joined_shape(3, 8) == (8, 8)


def test_attention_that_depends_on_the_texts_beside_one_is_run_for_each(model, monkeypatch):
    """As where a library chooses the kernel of batched products by their number."""
    cache = cache_of(model)
    whole = attention.attend
    monkeypatch.setattr(
        cache.network.stack, "attention", lambda q, *rest: whole(q, *rest) * (1 + 0.1 * len(q))
    )
    try_shapes(cache, 8)
    static = cache.network.static
    assert (static.apart, static.mixes) == (True, True)
    alone = [each.result() for each in decoding(cache, LENGTHS)]
    give_back(cache)
    passes = decoding(cache, LENGTHS)
    captured = set(static.graphs.keys)
    run_together(passes)
    assert {each.company for each in passes} == {8}
    assert all(torch.equal(each.result(), logits) for each, logits in zip(passes, alone, strict=True))
    assert set(static.graphs.keys) == captured


def test_texts_whose_bits_depend_on_the_number_of_keys_join_those_of_as_many(model, monkeypatch):
    cache = cache_of(model)
    whole = attention.attend
    monkeypatch.setattr(
        cache.network.stack, "attention", lambda q, keys, *rest: whole(q, keys, *rest) * (1 + keys.shape[2])
    )
    try_shapes(cache, 8)
    static = cache.network.static
    assert (static.apart, static.mixes) == (False, False)
    alone = [each.result() for each in decoding(cache, LENGTHS[:4])]
    give_back(cache)
    passes = decoding(cache, LENGTHS[:4])  # of 30, 600, 200 and 500 tokens: up to 512 keys, or 640
    run_together(passes)
    assert [each.company for each in passes] == [3, 1, 3, 3]
    assert all(torch.equal(each.result(), logits) for each, logits in zip(passes, alone, strict=True))


def test_more_buffers_than_fit_are_refused_with_the_size(folder, monkeypatch):  # noqa: F811
    run_over_graphs(monkeypatch)
    monkeypatch.setattr(runtimes, "free_ram_gib", lambda: 1e-4)
    with pytest.raises(LoadError, match=r"--batch 64 needs .* GiB for keys and values.*smaller --batch"):
        runtime_of(folder, batch=64)
    assert runtime_of(folder).width == 1


class WithoutCapture(EagerGraphs):
    """A device that runs a pass of several entries, but captures none."""

    def __init__(self):
        super().__init__()
        self.failures = {}

    def run(self, key, work):
        if key[2].entries > 1:
            self.failures[key] = "operation not permitted when stream is capturing"
        super().run(key, work)


def test_texts_do_not_join_in_passes_that_cannot_be_captured(model, caplog):
    cache = cache_of(model)
    static = cache.network.static
    static.graphs = WithoutCapture()
    try_shapes(cache, 8)
    assert len(static.graphs.failures) == 1  # the first one ends the trial
    assert "one after another, as with --batch 1: operation not permitted" in caplog.text
    assert not static.joins_any


class WithoutJoining(EagerGraphs):
    """A device that cannot run a pass of several entries."""

    def run(self, key, work):
        if key[2].entries > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")
        super().run(key, work)


def test_requests_run_one_after_another_where_passes_cannot_run_as_one(folder, monkeypatch, caplog):  # noqa: F811
    run_over_graphs(monkeypatch, PRODUCT_ROWS)
    runtime = runtime_of(folder, batch=4)
    cache, canvas = runtime.cache, runtime.canvas_network
    wanted = [each.result() for each in decoding(cache, (30, 200))]
    give_back(cache)
    runtime.network.static.alike = frozenset({(1, 8), (2, 8)})  # found for another route
    runtime.network.static.graphs = canvas.static.graphs = WithoutJoining()
    try_shapes(cache, 8, adapted=[canvas])
    assert "one after another, as with --batch 1: CUDA out of memory." in caplog.text
    assert len(caplog.records) == 1
    assert not runtime.is_shared
    assert runtime.network.static.alike == canvas.static.alike == frozenset()
    assert not any(kept.taken or kept.ids for kept in cache.prompts._all)
    passes = decoding(cache, (30, 200))
    run_together(passes)
    assert [each.company for each in passes] == [1, 1]
    assert all(torch.equal(each.result(), logits) for each, logits in zip(passes, wanted, strict=True))


def test_texts_beyond_the_largest_shape_run_as_a_second_pass(model):
    cache = cache_of(model, prompts=3)
    try_shapes(cache, 8)
    assert max(entries for entries, _ in cache.network.static.alike) == 4
    passes = decoding(cache, (30, 600, 200))
    cache.network.static.alike -= {(4, 8), (4, 16)}
    run_together(passes)
    assert [each.company for each in passes] == [2, 2, 1]


def test_a_buffer_beyond_the_pool_has_tensors_of_its_own(model):
    cache = cache_of(model, prompts=2)
    try_shapes(cache, 8)
    alone = [each.result() for each in decoding(cache, LENGTHS[:3])]
    give_back(cache)
    cache = cache_of(model, prompts=2)
    try_shapes(cache, 8)
    passes = decoding(cache, LENGTHS[:3])
    assert len({id(each.kv.pool) for each in passes}) == 2
    run_together(passes)
    assert [each.company for each in passes] == [2, 2, 1]
    assert all(torch.equal(each.result(), logits) for each, logits in zip(passes, alone, strict=True))


def test_shapes_are_tried_only_where_passes_can_join(model):
    single = cache_of(model, prompts=1)
    plain = PrefixCache(fused.fuse(model, CAPACITY, 8), CAPACITY, 64, 3, prompts=4)
    for cache in (single, plain):
        try_shapes(cache, 8)
        assert cache.prompts.forwards == 0
    assert not single.network.static.alike


def test_a_prompt_in_another_buffer_of_the_pool_runs_the_same_graphs(model):
    cache = cache_of(model, prompts=4)
    for each in decoding(cache, (100, 100, 100)):
        each.result()
    assert len(cache.network.static.graphs.keys) == 2  # a chunk of the prompt, a round


def test_products_are_filled_up_where_their_bits_depend_on_the_rows(model, monkeypatch):
    network = fused.fuse(model, CAPACITY, 8)
    exact = network.head
    monkeypatch.setattr(network, "head", lambda x: exact(x) * (1 + 1e-6 * (len(x) > 8)))
    assert product_rows(network) == PRODUCT_ROWS
    monkeypatch.setattr(network, "head", exact)
    assert product_rows(network) in (0, PRODUCT_ROWS)  # by the library of this machine


def test_products_that_cannot_be_compared_are_not_filled(model, monkeypatch, caplog):
    network = fused.fuse(model, CAPACITY, 8)

    def fail(_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(network, "head", fail)
    assert product_rows(network) == 0
    assert "could not be compared: CUDA out of memory." in caplog.text


def test_filled_products_have_one_number_of_rows(model):
    cache = cache_of(model)
    seen = set()
    exact = cache.network.head
    cache.network.head = lambda x: seen.add(len(x)) or exact(x)
    for branches, rows in ((1, 8), (2, 12), (3, 8), (1, 24)):
        cache.branches([tokens(rows)] * branches, 64)
    assert seen == {PRODUCT_ROWS}
    assert max(entries * rows for entries, rows in JOINED) == PRODUCT_ROWS


def test_rows_are_filled_with_zeros():
    x = torch.ones(2, 3)
    assert filled(x, 2) is x
    assert filled(x, 4).tolist() == [[1.0] * 3] * 2 + [[0.0] * 3] * 2


def test_buffers_of_a_pool_are_parts_of_its_tensors():
    make = make_buffers(16, 2, 3, pooled=True)
    first, second, _, beyond = (make() for _ in range(4))
    rows = torch.ones(1, 1, 4, 2)
    second.place(0, 4)
    second.update(rows, rows, 0)
    assert second.pool is first.pool is not beyond.pool
    assert first.layer(0)[0].sum() == 0
    first.copy_text(second, 2)
    assert first.pool.layers[0][0][:, 0, :, 0].sum(1).tolist() == [2, 0, 4, 0, 0, 0]
    second.wipe()
    assert first.pool.layers[0][0].sum() == 4
    assert make_buffers(16, 2, 1, pooled=True)().pool.entries == 2
    assert make_buffers(16, 2, 3, pooled=False)().pool.entries == 2


def test_attention_as_two_products_takes_a_mask_for_each_text():
    generator = torch.Generator().manual_seed(0)
    q, keys, values = (
        torch.randn(3, *shape, 16, generator=generator) for shape in ((5, 8), (2, 40), (2, 40))
    )
    masks = torch.stack([torch.ones(5, 40, dtype=torch.bool).tril(last) for last in (9, 20, 35)])[:, None]
    together = attend_by_products(
        q, keys, values, fold_bias(bias_of(masks, torch.float32), 4, bf16=False), 0.25
    )
    for number in range(3):
        one = slice(number, number + 1)
        bias = fold_bias(bias_of(masks[number, 0], torch.float32), 4, bf16=False)
        alone = attend_by_products(q[one], keys[one], values[one], bias, 0.25)
        torch.testing.assert_close(together[one], alone)


@pytest.fixture(params=[0, PRODUCT_ROWS], ids=["as they come", "filled up"])
def adapted(request, folder, monkeypatch):  # noqa: F811
    """A tiny coder with a canvas adapter over static buffers, its gate as on a GPU."""
    run_over_graphs(monkeypatch, request.param)
    runtime = runtime_of(folder, batch=4)
    runtime.canvas_network.gate.on_device = True
    return runtime


def test_texts_and_canvases_of_an_adapter_side_by_side_are_those_alone(adapted):
    engines = [
        make_ar(DraftContext(adapted, Settings(drafter="none"))),
        make_dllm(DraftContext(adapted, Settings(schedule="checked"))),
    ]
    captured = set(adapted.network.static.graphs.keys)
    asked = [(engine, request) for request in REQUESTS[:4:2] for engine in engines]
    wanted = [said(list(engine.complete(request, Deadline()))) for engine, request in asked]
    chunks, companies = together([engine.steps(request, Deadline()) for engine, request in asked])
    assert [said(each) for each in chunks] == wanted
    assert max(companies) > 1
    assert set(adapted.network.static.graphs.keys) == captured


def test_canvases_of_an_adapter_join_apart_from_texts(adapted):
    cache, network = adapted.cache, adapted.canvas_network
    try_shapes(cache, 8, adapted=[network])
    masks = [network.mask_token] * 5

    def passes():
        found = []
        for number, length in enumerate((30, 200, 64)):
            text = tokens(length, number)
            cache.prompts.take(text)
            cache.prefill(text, Deadline(), want_logits=False)
            rows, every = cache.block(length, 8), torch.arange(3, 8)
            places = torch.tensor([*range(length, length + 3), *range(length + 5, length + 10)])
            found.append(cache.rows_pass([*text[:3], *masks], length, rows, every, network, places))
            if number < 2:
                found.append(cache.branches_pass([tokens(8)], length))
        return found

    alone = [(each.result(), each.network.hidden) for each in passes()]
    give_back(cache)
    joined = passes()
    run_together(joined)
    assert [each.company for each in joined] == [3, 2, 3, 2, 3]
    for each, (logits, hidden) in zip(joined, alone, strict=True):
        assert torch.equal(each.result(), logits)
        assert torch.equal(each.network.hidden, hidden)
