"""Canvases in one pass with other canvases and texts: each has the bits that it has alone."""

import dataclasses
import itertools

import pytest
import torch

from fimserver.engine import runtime as runtime_module
from fimserver.engine.denoising.schedules import FOR_ADAPTERS, SCHEDULES
from fimserver.engine.engines import make_dllm
from fimserver.engine.forward.pass_cost import PassCosts
from fimserver.engine.forward.passes import Pass, run_together
from fimserver.engine.load import load
from fimserver.engine.runtime import DraftContext, make_runtime
from fimserver.engine.speculation.lookahead import Outlook
from fimserver.reasons import Reason
from fimserver.settings import Settings
from fimserver.types import Deadline, Sampling
from tests.engine.denoising.test_dual_cache import engine_of, folders  # noqa: F401 - fixtures
from tests.engine.forward.test_adapter import ar_engine, folder, requests, runtime_of  # noqa: F401 - fixture
from tests.engine.forward.test_passes import REQUESTS, network, said, together  # noqa: F401 - fixture
from tests.engine.test_block_diffusion import FAMILIES, request_of
from tests.engine.test_block_diffusion import engine_of as block_engine
from tests.engine.test_block_diffusion import folders as block_folders  # noqa: F401 - fixture
from tests.over_graphs import run_over_graphs
from tests.tiny import DREAM_CANVAS, make_card

SOME = REQUESTS[:4]


def seen(chunks):
    """What a canvas shows step by step, and how a request ends; drafts decide in what pieces a text comes."""
    return [(chunk.text, chunk.canvas) for chunk in chunks if chunk.canvas], said(chunks)


def alone(engine, wanted):
    found = [seen(list(engine.complete(request, Deadline()))) for request in wanted]
    engine.cache.clear()
    return found


def side_by_side(runs):
    chunks, companies = together(runs)
    assert max(companies) > 1
    return [each and seen(each) for each in chunks]


@pytest.fixture
def adapted(folder):  # noqa: F811
    """A tiny coder with a canvas adapter."""
    runtime = runtime_of(folder)
    if not runtime.network.joins:
        pytest.skip("the products of this machine depend on the number of rows")
    return runtime


@pytest.mark.usefixtures("network")
@pytest.mark.parametrize("schedule", sorted(SCHEDULES.keys() - FOR_ADAPTERS))
def test_canvases_side_by_side_are_those_alone(schedule, nano):
    engine = make_dllm(DraftContext(nano.runtime(nano.card("dllm")), Settings(schedule=schedule)))
    wanted = alone(engine, SOME)
    assert side_by_side([engine.steps(request, Deadline()) for request in SOME]) == wanted


@pytest.mark.usefixtures("network")
def test_canvases_and_texts_are_one_pass(nano):
    ar, dllm = nano.engine("ar"), nano.engine("dllm")
    wanted = [found for request in SOME for engine in (ar, dllm) for found in alone(engine, [request])]
    runs = [engine.steps(request, Deadline()) for request in SOME for engine in (ar, dllm)]
    assert side_by_side(runs) == wanted


@pytest.mark.parametrize("schedule", sorted(SCHEDULES.keys() - FOR_ADAPTERS))
def test_through_an_adapter_canvases_and_texts_are_one_pass(schedule, adapted):
    runtime = adapted
    ar = ar_engine(runtime)
    dllm = make_dllm(DraftContext(runtime, Settings(schedule=schedule, threshold=0.2)))
    wanted = [found for request in requests() for engine in (ar, dllm) for found in alone(engine, [request])]
    runs = [engine.steps(request, Deadline()) for request in requests() for engine in (ar, dllm)]
    assert side_by_side(runs) == wanted


def test_through_an_adapter_canvases_without_texts_are_one_pass(adapted):
    dllm = make_dllm(DraftContext(adapted, Settings(schedule="threshold", threshold=0.2)))
    wanted = alone(dllm, requests())
    assert side_by_side([dllm.steps(request, Deadline()) for request in requests()]) == wanted


def kind_of(pass_, mask_token):
    """The state of a checked canvas that a pass is of."""
    masked = mask_token in pass_.ids[0].tolist()
    if pass_.reads_prompt:
        return "last chunk" if masked else "prompt"
    if pass_.positions is None:
        return "plain"
    return "checking" if int(pass_.ids[0].tolist().index(mask_token)) > 1 else "guessing"


@pytest.fixture
def checked(adapted, monkeypatch):
    """Makes checked canvases that guess in most passes, whatever a guess costs on this machine."""

    def made(schedule="checked:0.001"):
        engine = make_dllm(DraftContext(adapted, Settings(schedule=schedule)))
        ahead = engine.checked.ahead
        speculation = engine.checked.decoder.speculation
        speculation.drafters = tuple(d for d in speculation.drafters if d.drafter is ahead)
        speculation.policy.costs = PassCosts(dict.fromkeys(speculation.policy.costs.ms, 1.0))
        monkeypatch.setattr(speculation.policy, "asks", lambda _name, _plan: True)
        passes = itertools.count()

        def outlook(plan, survival, costs):
            if next(passes) % 5 == 4:  # so that a pass comes for which nothing is guessed
                return None
            texts = 1 + sum(len(draft.tokens) for draft in plan.drafts)
            masks = max(ahead.sizes)
            rows = min((rows for b, rows in costs.ms if b == 1 and rows >= texts + masks), default=0)
            lengths = range(texts)[-((rows - texts) // masks) :] if rows else ()
            return Outlook(rows, tuple(lengths), masks) if len(plan.drafts) < 2 and rows else None

        monkeypatch.setattr(ahead, "outlook", outlook)
        return engine

    return made


@pytest.mark.parametrize("beside", ["canvases", "texts", "threshold"])
@pytest.mark.parametrize("schedule", ["checked", "checked:0.001,masks=1"])
def test_canvases_whose_guesses_are_checked_join_in_every_state(schedule, beside, adapted, checked):
    dllm = checked(schedule)
    others = {
        "canvases": dllm,
        "texts": ar_engine(adapted),
        "threshold": make_dllm(DraftContext(adapted, Settings(schedule="threshold", threshold=0.2))),
    }
    engines = [dllm, others[beside]]
    asked = [(engine, request) for request in requests() for engine in engines]
    wanted = []
    for engine, request in asked:
        wanted.append(said(list(engine.complete(request, Deadline()))))
        engine.cache.clear()
    passes = []

    def watched(engine, request):
        for step in engine.steps(request, Deadline()):
            if isinstance(step, Pass) and engine is dllm:
                passes.append(step)
            yield step

    chunks, _ = together([watched(engine, request) for engine, request in asked])
    assert [said(each) for each in chunks] == wanted
    joined = {kind_of(each, adapted.canvas_network.mask_token) for each in passes if each.company > 1}
    assert joined >= {"last chunk", "guessing", "checking"}


@pytest.mark.parametrize("state", ["last chunk", "guessing", "checking"])
def test_a_checked_canvas_that_is_cancelled_leaves_without_its_pass(state, adapted, checked):
    dllm = checked()
    mask_token = adapted.canvas_network.mask_token
    wanted = [said(list(dllm.complete(request, Deadline()))) for request in requests()]
    adapted.cache.clear()
    deadlines = [Deadline() for _ in wanted]
    dropped = []

    def cancelling(number, request):
        for step in dllm.steps(request, deadlines[number]):
            is_there = isinstance(step, Pass) and kind_of(step, mask_token) == state
            if number == 3 and is_there and not dropped:
                dropped.append(step)
                deadlines[number].cancelled.set()
            yield step

    runs = [cancelling(number, request) for number, request in enumerate(requests())]
    chunks, companies = together(runs)
    assert dropped
    assert chunks[3][-1].reason is Reason.CANCELLED
    assert [said(each) for each in chunks[:3]] == wanted[:3]
    assert max(companies) > 1
    assert said(list(dllm.complete(list(requests())[3], Deadline()))) == wanted[3]


def test_a_checked_canvas_whose_caller_hangs_up_does_not_run_its_pass(adapted, checked):
    deadline = Deadline()
    steps = checked().steps(next(requests()), deadline)
    waits = next(step for step in steps if isinstance(step, Pass) and step.positions is not None)
    deadline.cancelled.set()
    (last,) = steps
    assert last.reason is Reason.CANCELLED
    assert not waits.done
    assert adapted.cache.prompts.current.taken is False


def test_a_mask_in_a_text_beside_a_canvas_is_a_token_like_others(adapted):
    canvas, cache = adapted.canvas_network, adapted.cache
    ids = torch.tensor([[20, canvas.mask_token, 21, 22]])
    mask, every = cache.causal(0, 4), torch.arange(4)
    text, beside = (
        Pass(through, cache.prompts.take([number]).kv, ids, 0, mask, every)
        for number, through in enumerate((adapted.network, canvas))
    )
    run_together([text, beside])
    assert text.company == beside.company == 2
    for through, found in ((adapted.network, text), (canvas, beside)):
        by_itself = Pass(through, cache.prompts.take([3]).kv, ids, 0, mask, every)
        assert torch.equal(by_itself.result(), found.result())
    assert not torch.allclose(text.result(), beside.result(), atol=1e-3)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_canvases_of_blocks_side_by_side_are_those_alone(family, block_folders):  # noqa: F811
    engine = block_engine(block_folders[family], family)
    if not engine.cache.network.joins:
        pytest.skip("the products of this machine depend on the number of rows")
    wanted = [request_of(cut, temperature=0.8 * (cut % 2), seed=cut) for cut in (31, 62, 93, 120)]
    expected = alone(engine, wanted)
    assert side_by_side([engine.steps(request, Deadline()) for request in wanted]) == expected


@pytest.mark.usefixtures("network")
@pytest.mark.parametrize("cut", ["prefill", "step"])
def test_one_that_is_cancelled_leaves_without_its_pass(cut, nano):
    engine = nano.engine("dllm")
    deadline = Deadline()
    steps = engine.steps(SOME[0], deadline)
    waits = next(step for step in steps if isinstance(step, Pass) and step.reads_prompt == (cut == "prefill"))
    deadline.cancelled.set()
    (last,) = steps
    assert last.reason is Reason.CANCELLED
    assert not waits.done
    assert engine.cache.prompts.current.taken is False


@pytest.mark.usefixtures("network")
def test_the_search_for_a_length_runs_beside_others(nano, monkeypatch):
    engine = make_dllm(DraftContext(nano.runtime(nano.card("dllm")), Settings()))
    card = engine.canvas_card.model_copy(update={"length": "search", "end": None})
    monkeypatch.setattr(engine, "canvas_card", card)
    wanted = alone(engine, SOME)
    assert side_by_side([engine.steps(request, Deadline()) for request in SOME]) == wanted


@pytest.mark.usefixtures("network")
def test_warm_ups_read_their_prompts_beside_others(nano):
    engine = nano.engine("dllm")
    wanted = alone(engine, SOME[:1])
    runs = [engine.steps(SOME[0], Deadline()), engine.warm_steps(SOME[2], Deadline())]
    assert side_by_side(runs)[:1] == wanted
    assert engine.num_uncached_tokens(SOME[2]) <= engine.cache.chunk


APART = [
    dataclasses.replace(request, sampling=Sampling(12, 0.7 * (n % 2), seed=n, stop="none"))
    for n, request in enumerate(REQUESTS[::2])
]  # of different texts


def found_alone(engine, wanted):
    """What each shows alone, each with nothing in the cache."""
    found = []
    for request in wanted:
        if engine.duals:
            engine.duals.clear()
        found.append(seen(list(engine.complete(request, Deadline()))))
    if engine.duals:
        engine.duals.clear()
    return found


@pytest.mark.parametrize("cache", ["none", "dual", "checked"])
@pytest.mark.parametrize("family", ["dream", "dream-search", "dreamon", "open-dcoder", "a2d"])
def test_canvases_that_their_context_sees_are_those_alone(family, cache, engine_of):  # noqa: F811
    engine = engine_of(family, cache)
    if not engine.network.joins:
        pytest.skip("the products of this machine depend on the number of rows")
    wanted = found_alone(engine, APART)
    assert side_by_side([engine.steps(request, Deadline()) for request in APART]) == wanted


@pytest.mark.parametrize("network", ["native", "auto"])
@pytest.mark.parametrize("cache", ["none", "dual"])
def test_such_canvases_take_turns_where_they_cannot_join(cache, network, engine_of):  # noqa: F811
    engine = engine_of("dream", cache, settings=Settings(network=network, batch=3))
    if network == "auto":
        engine.network.joins = False
    wanted = found_alone(engine, APART[:3])
    chunks, companies = together([engine.steps(request, Deadline()) for request in APART[:3]])
    assert [seen(each) for each in chunks] == wanted
    assert set(companies) == {1}
    assert len(companies) > 3 * 4  # it came out before each step


def test_a_text_of_more_rows_than_were_tried_runs_by_itself(engine_of):  # noqa: F811
    engine = engine_of("dream", "none", prompt_tokens=400)
    long = dataclasses.replace(APART[0], prefix="x = [1, 2, 3]\n" * 60)
    passes = [
        next(step for step in engine.steps(request, Deadline()) if isinstance(step, Pass))
        for request in (long, APART[1])
    ]
    assert passes[0].ids.numel() > 256
    assert not passes[0].joins


def test_a_document_keeps_its_cache_beside_others(engine_of):  # noqa: F811
    engine = engine_of("dream", "dual")
    for request in APART[:3]:
        engine.warm(request, Deadline())
    assert [engine.num_uncached_tokens(request) for request in APART[:3]] == [0, 0, 0]
    assert engine.num_uncached_tokens(APART[3]) > 0


def test_a_canvas_that_is_cancelled_gives_its_cache_back(engine_of):  # noqa: F811
    engine = engine_of("dream", "dual")
    wanted = found_alone(engine, APART[:1])
    deadline = Deadline()
    steps = engine.steps(APART[0], deadline)
    passes = (step for step in steps if isinstance(step, Pass))
    *_, waits = itertools.islice(passes, 3)
    deadline.cancelled.set()
    *_, last = steps
    assert last.reason is Reason.CANCELLED
    assert waits.done is False
    assert engine.dual.taken is False
    assert found_alone(engine, APART[:1]) == wanted


@pytest.mark.parametrize("cache", ["none", "dual"])
def test_canvases_over_captured_graphs_take_turns_with_one_set_of_graphs(
    cache,
    engine_of,  # noqa: F811
    monkeypatch,
):
    run_over_graphs(monkeypatch)
    engine = engine_of("dream", cache, settings=Settings(batch=3))
    captured = set(engine.network.static.graphs.keys)
    wanted = found_alone(engine, APART[:3])
    chunks, companies = together([engine.steps(request, Deadline()) for request in APART[:3]])
    assert [seen(each) for each in chunks] == wanted
    assert set(companies) == {1}
    assert set(engine.network.static.graphs.keys) == captured


@pytest.mark.parametrize(
    ("settings", "width", "shared"),
    [({}, 8, True), ({"network": "native"}, 8, True), ({"batch": 3}, 3, True), ({"batch": 1}, 1, False)],
)
def test_so_many_canvases_that_their_context_sees_run_side_by_side(
    settings,
    width,
    shared,
    folders,  # noqa: F811
    monkeypatch,
):
    monkeypatch.setattr(runtime_module, "free_ram_gib", lambda: 8.0)
    card = make_card("Dream", loads_as="qwen2", fim=None, canvas=DREAM_CANVAS)
    runtime = make_runtime(load(card, folders["Dream"], torch.device("cpu")), Settings(**settings))
    assert (runtime.width, runtime.is_shared) == (width, shared)
