"""Jobs in a batch on the real engine: the texts equal those of single jobs, whichever jobs join, leave or fail."""

import threading
import time
from contextlib import contextmanager

import pytest

from fimserver.host.batch import JobBatch
from fimserver.host.jobs import run_job
from fimserver.host.routing.router import Router
from fimserver.host.scheduler import Scheduler
from fimserver.reasons import Reason
from fimserver.types import ROUTES, Deadline, Request, Sampling
from tests.host.asks import PATIENCE_S, Ask

SAMPLING = Sampling(24, stop="none")
LONG = "\n".join(f"value_{i} = {i * i}" for i in range(90))
REQUESTS = [
    Request("def add(a, b):\n    return ", "\n\n\ndef sub(a, b):\n    return a - b\n", sampling=SAMPLING),
    Request(f"{LONG}\nfirst = ", "\n", sampling=SAMPLING),
    Request("import os\n\n\ndef read(path):\n    with open(", "\n    return text\n", sampling=SAMPLING),
    Request(f"{LONG}\ntotal = ", "\nprint(total)\n", sampling=Sampling(24, 0.8, seed=3, stop="none")),
]


@pytest.fixture
def engines(nano):
    if nano.engine("ar") and nano.width == 1:
        pytest.skip("the products of this machine depend on the number of rows")
    return nano


def texts_alone(engines, route):
    found = []
    for request in REQUESTS:
        ask = Ask(request, route=route)
        found.append("".join(piece.text for piece in run_job(engines, ask.job, Router())))
    engines.clear()
    return found


@pytest.fixture
def alone(engines):
    return texts_alone(engines, "ar")


def run(batch):
    while len(batch):
        batch.leave()
        batch.step()


def answered(engines):
    """All requests, side by side to their ends."""
    batch = JobBatch(engines)
    asks = [Ask(request) for request in REQUESTS]
    for ask in asks:
        batch.start(ask.job, Router())
    run(batch)
    return asks


def test_jobs_side_by_side_give_what_they_give_alone(engines, alone):
    batch = JobBatch(engines)
    asks = [Ask(request, str(number)) for number, request in enumerate(REQUESTS)]
    for ask in asks:
        batch.start(ask.job, Router())
        batch.step()
    run(batch)
    assert [ask.text for ask in asks] == alone
    assert sorted(job.user for job in batch.ended()) == ["0", "1", "2", "3"]
    assert all(ask.ended.is_set() for ask in asks)


def test_one_chunk_of_a_prompt_runs_in_a_round(engines):
    batch = JobBatch(engines)
    short, *long = (Ask(REQUESTS[number]) for number in (0, 1, 3))
    for ask in (short, *long):
        batch.start(ask.job, Router())
    rounds = 0
    while not long[1].pieces:
        reading = [each for each in batch._running if each.waits_for.reads_prompt]
        assert len([each for each in batch._round() if each in reading]) <= 1
        batch.step()
        rounds += 1
    assert long[0].pieces  # who came first was read first
    assert short.pieces
    run(batch)


def test_a_warm_up_is_read_after_what_is_asked_for(engines):
    batch = JobBatch(engines)
    warm, ask = Ask(REQUESTS[1], warm=True), Ask(REQUESTS[3])
    for each in (warm, ask):
        batch.start(each.job, Router())
    while not ask.pieces:
        assert not warm.ended.is_set()
        batch.step()
    run(batch)
    assert warm.usage.reason is Reason.END


def stop(batch, ask):
    """Cancel a job once it has written something, and let it leave; the pass that it was waiting for."""
    while not ask.pieces:
        batch.step()
    (running,) = [each for each in batch._running if each.job is ask.job]
    not_run = running.waits_for
    ask.job.cancel()
    batch.leave()
    return not_run


@pytest.mark.parametrize("route", ROUTES)
def test_one_that_is_stopped_leaves_without_another_pass(engines, route):
    alone = texts_alone(engines, route)
    batch = JobBatch(engines)
    asks = [Ask(request, route=route) for request in REQUESTS[:3]]
    for ask in asks:
        batch.start(ask.job, Router())
    not_run = stop(batch, asks[0])
    assert asks[0].usage.reason is Reason.CANCELLED
    assert not not_run.done
    assert len(batch) == 2
    run(batch)
    assert [ask.text for ask in asks[1:]] == alone[1:3]


def test_what_fails_together_runs_alone(engines, alone, monkeypatch):
    network = engines.runtime(engines.card("ar")).network

    def forward_parts(_parts):
        raise RuntimeError("not enough memory")

    monkeypatch.setattr(network, "forward_parts", forward_parts)
    asks = answered(engines)
    assert [ask.text for ask in asks] == alone


def test_a_failure_of_one_is_its_own(engines, alone, monkeypatch):
    engine = engines.engine("ar")
    original = engine._take

    def take(state, output, made):
        if state.request.prefix.endswith("total = "):
            raise ValueError("no")
        return original(state, output, made)

    monkeypatch.setattr(engine, "_take", take)
    asks = answered(engines)
    assert asks[3].usage.reason is Reason.FAILED
    assert [ask.text for ask in asks[:3]] == alone[:3]


def test_canvases_and_texts_of_several_users_are_one_pass(engines, alone):
    """Rounds of one route and denoising steps of the other, each middle as it is alone."""
    canvases = texts_alone(engines, "dllm")
    batch = JobBatch(engines)
    rounds, chosen = [], batch._round

    def noted():
        running = chosen()
        rounds.append([(each.job.pin, each.waits_for) for each in running])
        return running

    batch._round = noted
    asks = [Ask(request, str(i), route) for i, request in enumerate(REQUESTS) for route in ("ar", "dllm")]
    for ask in asks:
        batch.start(ask.job, Router())
    run(batch)
    assert [ask.text for ask in asks[::2]] == alone
    assert [ask.text for ask in asks[1::2]] == canvases
    mixed = [passes for passes in rounds if len({pin for pin, _ in passes}) > 1]
    assert mixed
    assert all(each.company == len(passes) for passes in mixed for _, each in passes)


def test_time_is_charged_in_equal_parts(engines):
    batch = JobBatch(engines)
    asks = [Ask(request) for request in REQUESTS[:2]]
    for ask in asks:
        batch.start(ask.job, Router())
    before = [ask.job.others_s for ask in asks]
    batch._share(2.0, [ask.job for ask in asks])
    batch._share(1.0, [asks[0].job])
    assert [ask.job.others_s - was for ask, was in zip(asks, before, strict=True)] == pytest.approx(
        [1.0, 2.0]
    )
    run(batch)


@contextmanager
def a_scheduler(engines):
    """A scheduler, and what lets its models be loaded: jobs of before start in one go."""
    loaded = threading.Event()

    def load():
        assert loaded.wait(PATIENCE_S)
        return engines

    scheduler = Scheduler(load)
    scheduler.start()
    try:
        yield scheduler, loaded
    finally:
        loaded.set()
        scheduler.close(PATIENCE_S)


@pytest.mark.parametrize("route", ROUTES)
def test_the_host_runs_requests_of_users_side_by_side(route, engines):
    alone = texts_alone(engines, route)
    with a_scheduler(engines) as (scheduler, loaded):
        asks = [Ask(request, str(number), route) for number, request in enumerate(REQUESTS)]
        for ask in asks:
            scheduler.submit(ask.job)
        loaded.set()
        for ask in asks:
            assert ask.ended.wait(PATIENCE_S)
        assert scheduler.depth == (0, 0)
    assert [ask.text for ask in asks] == alone


@pytest.mark.parametrize("route", ROUTES)
def test_the_newest_request_of_a_document_replaces_the_one_in_the_batch(route, engines):
    """It ends where it is, the other one of the batch goes on, and the new one has its own text."""
    alone = texts_alone(engines, route)
    with a_scheduler(engines) as (scheduler, loaded):
        newest = Ask(REQUESTS[2], "one", route)

        class Old(Ask):
            def _sink(self, piece):
                if piece and piece.text and not newest.job.admitted:
                    scheduler.submit(newest.job)  # while the old one is being answered
                super()._sink(piece)

        old, other = Old(REQUESTS[1], "one", route), Ask(REQUESTS[3], "two", route)
        for ask in (old, other):
            scheduler.submit(ask.job)
        loaded.set()
        for ask in (old, other, newest):
            assert ask.ended.wait(PATIENCE_S)
    assert old.usage.reason is Reason.SUPERSEDED
    assert alone[1].startswith(old.text)
    assert [other.text, newest.text] == [alone[3], alone[2]]


@pytest.mark.parametrize("route", ROUTES)
def test_a_user_with_many_documents_leaves_places_to_others(route, engines):
    """Where twelve requests of one user wait for eight places, the one of another user is not the last."""
    with a_scheduler(engines) as (scheduler, loaded):
        asks = [Ask(REQUESTS[number % 3], "many", route) for number in range(12)]
        for number, ask in enumerate(asks):
            ask.job.key = ("many", str(number))
        last = Ask(REQUESTS[0], "one", route)
        for ask in (*asks, last):
            scheduler.submit(ask.job)
        loaded.set()
        for ask in (*asks, last):
            assert ask.ended.wait(PATIENCE_S)
    assert sum(ask.job.started < last.job.started for ask in asks) < engines.width
    assert last.text == texts_alone(engines, route)[0]


@pytest.mark.parametrize("route", ROUTES)
def test_of_fifty_users_those_beyond_the_deadline_are_told_at_once(route, engines):
    """While the engine is busy, the call that submits a request answers what would come too late."""
    asked, submitted = threading.Event(), threading.Event()

    class First(Ask):
        def _sink(self, piece):
            asked.set()
            assert submitted.wait(PATIENCE_S)  # the engine goes on when all have asked
            super()._sink(piece)

    with a_scheduler(engines) as (scheduler, loaded):
        loaded.set()
        for number, request in enumerate(REQUESTS):  # what a request takes is measured
            measured = Ask(request, str(number), route)
            scheduler.submit(measured.job)
            assert measured.ended.wait(PATIENCE_S)
        until_idle(scheduler)
        first = First(REQUESTS[0], "first", route)
        scheduler.submit(first.job)
        assert asked.wait(PATIENCE_S)
        users = [Ask(REQUESTS[number % 3], f"user {number}", route) for number in range(50)]
        for ask in users:
            ask.job.deadline = Deadline.of_ms(1000 * 10 * scheduler._times.mean_s)
            scheduler.submit(ask.job)
        told = [ask for ask in users if ask.ended.is_set()]
        submitted.set()
        for ask in (first, *users):
            assert ask.ended.wait(PATIENCE_S)
    assert {ask.usage.reason for ask in told} == {Reason.OVERLOADED}
    assert all(ask.usage.forwards == 0 and not ask.text for ask in told)
    assert len(told) >= 50 - engines.width - 20  # ten fit into the deadline, by what was measured
    in_time = [ask.usage.reason for ask in users if ask not in told]
    assert in_time
    assert set(in_time) <= {Reason.LENGTH, Reason.END, Reason.DEADLINE}


def until_idle(scheduler):
    end = time.monotonic() + PATIENCE_S
    while any(scheduler.depth):
        assert time.monotonic() < end
        time.sleep(0.01)
