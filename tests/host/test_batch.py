"""Jobs side by side on the real engine: the texts are those alone, whoever comes, leaves or fails meanwhile."""

import threading

import pytest

from fimserver.host.batch import JobBatch
from fimserver.host.job import Job
from fimserver.host.jobs import run_job
from fimserver.host.routing.router import Router
from fimserver.host.scheduler import Scheduler
from fimserver.reasons import Reason
from fimserver.types import Deadline, Request, Sampling

PATIENCE_S = 60.0
SAMPLING = Sampling(24, stop="none")
LONG = "\n".join(f"value_{i} = {i * i}" for i in range(90))
REQUESTS = [
    Request("def add(a, b):\n    return ", "\n\n\ndef sub(a, b):\n    return a - b\n", sampling=SAMPLING),
    Request(f"{LONG}\nfirst = ", "\n", sampling=SAMPLING),
    Request("import os\n\n\ndef read(path):\n    with open(", "\n    return text\n", sampling=SAMPLING),
    Request(f"{LONG}\ntotal = ", "\nprint(total)\n", sampling=Sampling(24, 0.8, seed=3, stop="none")),
]


class Ask:
    """A job and what came out of it."""

    def __init__(self, request, name="", **how):
        self.pieces, self.ended = [], threading.Event()
        self.job = Job((name, "d"), request, "ar", Deadline(), self._sink, user=name, **how)

    def _sink(self, piece):
        if piece is None:
            self.ended.set()
        else:
            self.pieces.append(piece)

    @property
    def text(self):
        return "".join(piece.text for piece in self.pieces)

    @property
    def usage(self):
        (usage,) = [piece.usage for piece in self.pieces if piece.usage]
        return usage


@pytest.fixture
def engines(nano):
    if nano.engine("ar") and nano.width == 1:
        pytest.skip("the products of this machine depend on the number of rows")
    return nano


@pytest.fixture
def alone(engines):
    found = []
    for request in REQUESTS:
        ask = Ask(request)
        found.append("".join(piece.text for piece in run_job(engines, ask.job, Router())))
    engines.clear()
    return found


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


def test_one_that_is_stopped_leaves_without_another_pass(engines, alone):
    batch = JobBatch(engines)
    asks = [Ask(request) for request in REQUESTS[:3]]
    for ask in asks:
        batch.start(ask.job, Router())
    while not asks[0].pieces:
        batch.step()
    (running,) = [each for each in batch._running if each.job is asks[0].job]
    not_run = running.waits_for
    asks[0].job.cancel()
    batch.leave()
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


def test_the_host_runs_requests_of_users_side_by_side(engines, alone):
    """All are submitted while the models load, so that they start in one go."""
    loaded = threading.Event()

    def load():
        assert loaded.wait(PATIENCE_S)
        return engines

    scheduler = Scheduler(load)
    scheduler.start()
    try:
        asks = [Ask(request, str(number)) for number, request in enumerate(REQUESTS)]
        for ask in asks:
            scheduler.submit(ask.job)
        loaded.set()
        for ask in asks:
            assert ask.ended.wait(PATIENCE_S)
    finally:
        loaded.set()
        scheduler.close(PATIENCE_S)
    assert [ask.text for ask in asks] == alone
    assert scheduler.depth == (0, 0)
