"""Canvases side by side, and beside texts: the bits of each are those that it has alone."""

import pytest
import torch

from fimserver.engine.denoising.schedules import FOR_ADAPTERS, SCHEDULES
from fimserver.engine.engines import make_dllm
from fimserver.engine.forward.passes import Pass, run_together
from fimserver.engine.runtime import DraftContext
from fimserver.reasons import Reason
from fimserver.settings import Settings
from fimserver.types import Chunk, Deadline
from tests.engine.denoising.test_dual_cache import engine_of, folders  # noqa: F401 - fixtures
from tests.engine.forward.test_adapter import ar_engine, folder, requests, runtime_of  # noqa: F401 - fixture
from tests.engine.forward.test_passes import REQUESTS, network, said, together  # noqa: F401 - fixture
from tests.engine.test_block_diffusion import FAMILIES, request_of
from tests.engine.test_block_diffusion import engine_of as block_engine
from tests.engine.test_block_diffusion import folders as block_folders  # noqa: F401 - fixture

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


def test_a_canvas_whose_guesses_are_checked_has_the_engine_to_itself(adapted):
    """It keeps what it has prepared for one text: its passes are run as they come."""
    dllm = make_dllm(DraftContext(adapted, Settings(schedule="checked")))
    for request in requests():
        expected = said(list(dllm.complete(request, Deadline())))
        steps = list(dllm.steps(request, Deadline()))
        assert all(isinstance(step, Chunk) for step in steps)
        assert said(steps) == expected


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


@pytest.mark.parametrize("cache", ["none", "dual"])
def test_where_every_token_sees_every_other_a_canvas_has_the_engine_to_itself(cache, engine_of):  # noqa: F811
    """Its passes are run as they come: nothing is left that could run with others."""
    engine = engine_of("dream", cache)
    expected = list(engine.complete(SOME[1], Deadline()))
    if cache == "dual":
        engine.dual.clear()
    steps = list(engine.steps(SOME[1], Deadline()))
    assert all(isinstance(step, Chunk) for step in steps)
    assert seen(steps) == seen(expected)
