"""Passes over static buffers: the results of the ordinary pass, in few shapes, with one read per round."""

from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fimserver.engine import sampling
from fimserver.engine.autoregressive import Autoregressive
from fimserver.engine.capture import capture_canvas, capture_decoding, decode_starts
from fimserver.engine.device import Pace
from fimserver.engine.forward import attention, fused, linear
from fimserver.engine.forward.attention import attend, attend_by_products, fold_bias
from fimserver.engine.forward.graphs import EagerGraphs
from fimserver.engine.forward.layers import bias_of
from fimserver.engine.forward.pass_cost import PassCosts, measure_costs
from fimserver.engine.forward.prefix_cache import PrefixCache
from fimserver.engine.forward.static_pass import EXTENT, PassShape, shape_of
from fimserver.engine.load import load
from fimserver.engine.speculation import verify
from fimserver.engine.speculation.drafts import Draft, RandomDrafter, ScriptedDrafter
from fimserver.engine.speculation.speculate import Speculation
from fimserver.engine.speculation.verify import GumbelMaxVerifier
from fimserver.errors import NonFiniteError
from fimserver.types import Deadline
from tests.engine.speculation.test_speculate import EVERY_SHAPE, REQUESTS, Liar, ids_of
from tests.tiny import make_card, make_checkpoint

CPU = torch.device("cpu")
CAPACITY = 640


@pytest.fixture(scope="module", params=["qwen2", "qwen3", "llama"])
def model(request, tmp_path_factory):
    folder = make_checkpoint(tmp_path_factory.mktemp("static") / "tiny", request.param)
    return load(make_card(request.param), folder, CPU).model


def caches(model, branches=3):
    """The same network twice: an ordinary pass, and one over static buffers with its graphs."""
    plain, static = (fused.fuse(model, CAPACITY, 8) for _ in range(2))
    graphs = EagerGraphs()
    static.use_graphs(graphs)
    return PrefixCache(plain, CAPACITY, 64, branches), PrefixCache(static, CAPACITY, 64, branches), graphs


def tokens(count, seed=1):
    return torch.randint(10, 8000, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def test_decoding_passes_have_the_same_bits(model):
    """Shapes that a decoding pass has are not filled up, and read the keys that the ordinary pass reads."""
    plain, static, _ = caches(model)
    text = tokens(200)
    for cache in (plain, static):
        cache.prefill(text, Deadline(), want_logits=False)
    static.kv.copy_text(plain.kv, len(text))
    for branches, rows in ((1, 8), (3, 4), (2, 12), (1, 24)):
        drafts = [tokens(rows, seed=b) for b in range(branches)]
        wanted, got = (cache.branches(drafts, len(text)) for cache in (plain, static))
        assert torch.equal(got, wanted)
        assert torch.equal(static.network.hidden, plain.network.hidden)


def test_prefill_and_canvas_agree_with_the_ordinary_pass(model):
    """Keys beyond the text are masked rather than left out, so only to rounding."""
    plain, static, _ = caches(model)
    text = tokens(130)
    last = [cache.prefill(text, Deadline(), want_logits=True) for cache in (plain, static)]
    torch.testing.assert_close(last[1], last[0], rtol=1e-5, atol=1e-5)
    for count in (3, 13, 40):
        every = torch.arange(count)
        canvas = [
            cache.rows(tokens(count, 2), len(text), cache.block(len(text), count), every)
            for cache in (plain, static)
        ]
        torch.testing.assert_close(canvas[1], canvas[0], rtol=1e-4, atol=1e-5)
        assert canvas[1].shape == (count, model.config.vocab_size)


def test_rows_that_fill_a_pass_up_touch_nothing_that_is_read(model):
    """A canvas in the middle of a text that sees both ways: what is right of it stays."""
    _, static, _ = caches(model, branches=1)
    static.prefill(tokens(192), Deadline(), want_logits=False)
    before = [tensor.clone() for tensor in static.kv.layer(1)]
    everything = torch.ones(5, 192, dtype=torch.bool)
    static.rows(tokens(5, 3), 100, everything, torch.arange(5))
    for old, new in zip(before, static.kv.layer(1), strict=True):
        assert not torch.equal(old[:, 100:105], new[:, 100:105])
        assert torch.equal(old[:, :100], new[:, :100])
        assert torch.equal(old[:, 105:], new[:, 105:])


def test_results_outlive_the_next_pass(model):
    _, static, _ = caches(model)
    static.prefill(tokens(64), Deadline(), want_logits=False)
    first = static.branches([tokens(8, 1)], 64)
    hidden = static.network.hidden
    kept, kept_hidden = first.clone(), hidden.clone()
    static.branches([tokens(8, 2)], 64)
    assert torch.equal(first, kept)
    assert torch.equal(hidden, kept_hidden)


def test_few_shapes_are_captured(model):
    _, static, graphs = caches(model, branches=1)
    static.prefill(tokens(300), Deadline(), want_logits=False)
    assert {shape for *_, shape, _ in graphs.keys} == {PassShape(1, 64, EXTENT, 0)}
    for count in range(33, 49):  # a canvas that grows
        static.rows(tokens(count), 300, static.block(300, count), torch.arange(count))
    assert len(graphs.keys) == 2


def test_shapes_are_rounded_up_to_few_sizes():
    assert shape_of(1, 8, 512, 8, 4096) == (1, 8, 512, 8)
    assert shape_of(1, 9, 513, 9, 4096) == (1, 12, 1024, 12)
    assert shape_of(1, 128, 1100, 1, 1536) == (1, 128, 1536, 128)
    assert shape_of(1, 200, 100, 0, 4096) == (1, 256, 512, 0)


class Reads(TorchDispatchMode):
    """Counts what makes the host wait for a device: numbers read out of tensors, shapes that depend on them."""

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique")

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if any(wait in name for wait in self.WAITS):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def engine(nano):
    """The ar route of nano over static buffers, as it runs on a GPU."""
    runtime = nano.runtime(nano.card("ar"))
    network = fused.fuse(runtime.loaded.model, runtime.cache.capacity, runtime.rows)
    network.use_graphs(EagerGraphs())
    cache = PrefixCache(network, runtime.cache.capacity, runtime.cache.chunk, 3)
    speculation = Speculation(cache, (), GumbelMaxVerifier(at_once=True), PassCosts(EVERY_SHAPE))
    return Autoregressive(runtime.loaded.card, runtime.loaded.vocabulary, speculation)


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda r: f"{len(r.prefix)}-{r.sampling.temperature}")
def test_the_text_is_the_same_whatever_is_drafted(engine, request_):
    plain, _ = ids_of(engine, request_)
    assert len(plain) > 1
    for drafter in (ScriptedDrafter(plain), Liar(plain, 1), RandomDrafter(2, 8192)):
        assert ids_of(engine, request_, [drafter])[0] == plain
        engine.cache.clear()


@pytest.mark.parametrize("request_", REQUESTS[:2], ids=["greedy", "keyed"])
def test_a_round_reads_from_the_device_once(engine, request_, monkeypatch):
    read = []
    whole = sampling.choose_rows
    monkeypatch.setattr(
        "fimserver.engine.speculation.verify.choose_rows", lambda *a: read.append(a) or whole(*a)
    )
    state = engine.decode_state(request_, Deadline())
    logits = engine.cache.prefill(state.prompt, Deadline(), want_logits=True)
    engine.speculation.begin(state, logits)
    read.clear()
    with Reads() as reads:
        for _ in range(4):
            engine.speculation.round(state, 20)
    assert len(read) == 4
    assert reads.seen == []


def test_tokens_chosen_together_are_those_chosen_one_by_one():
    logits = torch.randn(3, 8, 500, generator=torch.Generator().manual_seed(0))
    for temperature in (0.0, 0.7):
        together = sampling.choose_rows(logits, temperature, 11, 40)
        for branch, row in ((0, 0), (1, 3), (2, 7)):
            assert together[branch][row] == sampling.choose(logits[branch, row], temperature, 11, 40 + row)


def test_on_a_cpu_no_token_is_chosen_in_rows_that_no_draft_reaches(engine, monkeypatch):
    chosen = []
    state = engine.decode_state(REQUESTS[0], Deadline())

    def choose(row, temperature, seed, position):
        chosen.append(position - len(state.ids))
        return int(row.argmax())

    monkeypatch.setattr(verify, "choose", choose)
    logits = torch.zeros(2, 8, 50)
    logits[:, 0, 7] = logits[:, 1, 9] = 1.0
    drafts = (Draft("a", (7, 8, 9), (0, 0, 0)), Draft("b", (3, 9), (0, 0)))
    assert GumbelMaxVerifier().accept(logits, drafts, state) == ([7, 9], 0)
    assert chosen == [0, 1]
    logits[1, 7, 0] = torch.nan
    with pytest.raises(NonFiniteError):
        GumbelMaxVerifier().accept(logits, drafts, state)


def test_numbers_that_are_not_finite_are_found_in_the_same_read():
    logits = torch.zeros(1, 4, 50)
    logits[0, 3, 7] = torch.nan
    with pytest.raises(NonFiniteError):
        sampling.choose_rows(logits, 0.0, 0, 0)


def test_all_that_requests_need_is_captured_at_load(model):
    _, static, graphs = caches(model)
    shapes = [(1, 8), (2, 4), (1, 24)]
    capture_decoding(static, shapes)
    capture_canvas(static, 40)
    captured = len(graphs.keys)
    for length in (30, 300, 500, 590):
        static.prefill(tokens(length), Deadline(), want_logits=True)
        for branches, rows in shapes:
            static.branches([tokens(rows)] * branches, length)
        for count in (4, 17, 40):
            static.rows(tokens(count), length, static.block(length, count), torch.arange(count))
    assert len(graphs.keys) == captured


def test_shapes_are_tried_at_every_number_of_keys_that_passes_read(model):
    """A shape whose bits differ at one of them is not used at all."""
    _, static, _ = caches(model)
    starts = decode_starts(static)
    assert [shape_of(1, 8, start + 8, 8, CAPACITY).extent for start in starts] == [EXTENT, CAPACITY]
    whole = static.branches
    tried = set()

    def other_bits(branches, start):
        logits = whole(branches, start)
        tried.add(start)
        return logits + (len(branches[0]) == 12 and start == starts[-1])

    static.branches = other_bits
    costs = measure_costs(static, 8, starts=starts)
    assert tried == set(starts)
    assert (1, 8) in costs.ms
    assert (1, 12) not in costs.ms


def test_the_host_stays_one_pass_ahead_of_the_device():
    log = []

    class Mark:
        def __init__(self, number):
            self.number = number

        def synchronize(self):
            log.append(self.number)

    marks = iter(range(9))
    pace = Pace(lambda: Mark(next(marks)))
    for _ in range(4):
        pace.step()
    assert log == [0, 1, 2]  # after pass 3 is given, pass 2 is done: pass 3 alone may still run


def test_joined_weights_are_there_once(model):
    """The modules of the native class become views of the joined matrix."""
    first = model.model.layers[0].self_attn
    joined = linear.joined([first.q_proj, first.k_proj, first.v_proj])
    assert first.k_proj.weight.untyped_storage().data_ptr() == joined.untyped_storage().data_ptr()
    rows = slice(len(first.q_proj.weight), len(first.q_proj.weight) + len(first.k_proj.weight))
    assert torch.equal(first.k_proj.weight, joined[rows])
    assert linear.joined([first.o_proj]) is first.o_proj.weight


def test_attention_as_two_products_agrees_with_the_fused_kernel(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    q, keys, values = (
        torch.randn(2, *shape, 16, generator=generator) for shape in ((5, 8), (2, 40), (2, 40))
    )
    bias = fold_bias(bias_of(torch.ones(5, 40, dtype=torch.bool).tril(20), torch.float32), 4, bf16=False)
    wanted = attend(q, keys, values, bias, 0.25)
    got = attend_by_products(q, keys, values, bias, 0.25)
    assert (got - wanted).norm() / wanted.norm() < 0.01  # bf16
    monkeypatch.setattr(attention, "_leaves_idle", lambda _q: True)
    assert torch.equal(attend(q, keys, values, bias, 0.25), got)


def test_a_gpu_attends_by_products_where_rows_are_few():
    """The choice alone: there is no GPU here."""

    def rows(count, *, dtype=torch.bfloat16, is_cuda=True):
        return SimpleNamespace(shape=(1, count, 14, 64), dtype=dtype, is_cuda=is_cuda)

    assert attention._leaves_idle(rows(8))
    assert attention._leaves_idle(rows(attention.FEW_ROWS))
    assert not attention._leaves_idle(rows(256))  # a prefill
    assert not attention._leaves_idle(rows(8, dtype=torch.float32))
    assert not attention._leaves_idle(rows(8, is_cuda=False))
