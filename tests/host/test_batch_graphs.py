"""Jobs in a batch over captured graphs: the bits of single jobs, in few passes or in turns."""

import pytest

from fimserver.engine.engines import ModelPool
from fimserver.host.batch import JobBatch
from fimserver.host.jobs import run_job
from fimserver.host.routing.router import Router
from fimserver.reasons import Reason
from fimserver.settings import Settings
from fimserver.types import ROUTES
from tests.host.asks import Ask
from tests.host.test_batch import REQUESTS, run, stop
from tests.over_graphs import run_over_graphs


@pytest.fixture(scope="module", params=[0, 64], ids=["products as they come", "products of 64 rows"])
def models(request):
    """nano for both routes over static buffers, as on a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        run_over_graphs(patch, request.param)
        settings = Settings(
            device="cpu", threads=1, dllm_card="nano", ar_card="nano", batch=4, drafter="none"
        )
        found = ModelPool(settings)
        for route in ROUTES:
            found.engine(route)
        yield found


@pytest.fixture
def static(models):
    return models.runtime(models.card("ar")).network.static


@pytest.fixture
def alone(models):
    """The text of each request on each route."""
    texts = {}
    for route in ROUTES:
        models.clear()
        for number, request in enumerate(REQUESTS):
            pieces = run_job(models, Ask(request, route=route).job, Router())
            texts[route, number] = "".join(piece.text for piece in pieces)
    return texts  # prompts stay in the cache, so that requests decode at the same time


def started(models, asks):
    batch = JobBatch(models)
    for ask in asks.values():
        batch.start(ask.job, Router())
    return batch


def companies_of(batch):
    """Noted from now on: for each round the number of passes that each pass ran with."""
    found, chosen = [], batch._run

    def noted(running):
        passes = [each.waits_for for each in running]
        chosen(running)
        found.append([each.company for each in passes])

    batch._run = noted
    return found


@pytest.mark.parametrize("route", ROUTES)
def test_requests_join_with_the_bits_of_each_alone(route, models, static, alone):
    captured = set(static.graphs.keys)
    asks = {number: Ask(request, str(number), route) for number, request in enumerate(REQUESTS)}
    batch = started(models, asks)
    companies = companies_of(batch)
    run(batch)
    assert {(route, number): ask.text for number, ask in asks.items()} == {
        key: text for key, text in alone.items() if key[0] == route
    }
    assert max(company for round_ in companies for company in round_) > 1
    assert set(static.graphs.keys) == captured  # nothing was captured while a request waited


def test_requests_of_both_routes_join(models, alone):
    asks = {
        (route, number): Ask(request, f"{route} {number}", route)
        for number, request in enumerate(REQUESTS[:2])
        for route in ROUTES
    }
    batch = started(models, asks)
    run(batch)
    assert {key: ask.text for key, ask in asks.items()} == {key: alone[key] for key in asks}


@pytest.mark.parametrize("route", ROUTES)
def test_where_no_shape_has_the_bits_of_one_alone_passes_take_turns(
    route, models, static, alone, monkeypatch
):
    monkeypatch.setattr(static, "alike", frozenset())
    asks = {number: Ask(request, str(number), route) for number, request in enumerate(REQUESTS)}
    batch = started(models, asks)
    companies = companies_of(batch)
    begun = set()
    while len(batch):
        batch.step()
        begun |= {number for number, ask in asks.items() if ask.pieces}
        if len(begun) < len(asks):
            assert not any(ask.ended.is_set() for ask in asks.values())  # nobody waits for a whole answer
    assert {ask.text for ask in asks.values()} == {alone[route, number] for number in asks}
    assert {company for round_ in companies for company in round_} == {1}


@pytest.mark.parametrize("route", ROUTES)
def test_one_that_is_stopped_leaves_before_its_next_pass(route, models, alone):
    asks = {number: Ask(REQUESTS[number], str(number), route) for number in range(3)}
    batch = started(models, asks)
    not_run = stop(batch, asks[0])
    assert asks[0].usage.reason is Reason.CANCELLED
    assert not not_run.done
    run(batch)
    assert [asks[number].text for number in (1, 2)] == [alone[route, number] for number in (1, 2)]


def test_each_document_keeps_its_prompt(models):
    engine = models.engine("ar")
    for request in REQUESTS:
        for _ in run_job(models, Ask(request).job, Router()):
            pass
    uncached = [engine.num_uncached_tokens(request) for request in REQUESTS]
    assert max(uncached) <= engine.cache.chunk


def test_a_host_runs_so_many_side_by_side(models, static, monkeypatch):
    assert models.width == 4
    monkeypatch.setattr(static, "alike", frozenset())
    assert models.width == 1  # turns of one engine make nobody's answer sooner


def test_one_at_a_time_has_one_buffer_and_products_as_they_come(monkeypatch):
    run_over_graphs(monkeypatch)
    single = ModelPool(Settings(device="cpu", threads=1, ar_card="nano", batch=1))
    engine = single.engine("ar")
    assert engine.cache.kv.pool.entries == engine.cache.kv.branches
    assert engine.cache.network.static.alike == frozenset()
    assert single.width == 1
