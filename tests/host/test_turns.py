"""Jobs whose passes cannot join those of others: they take turns, pass by pass."""

import dataclasses

import pytest

from fimserver.engine.engines import ModelPool
from fimserver.host.batch import JobBatch
from fimserver.host.jobs import run_job
from fimserver.host.routing.router import Router
from fimserver.reasons import Reason
from fimserver.settings import Settings
from fimserver.types import ROUTES, Sampling
from tests.host.asks import Ask
from tests.host.test_batch import REQUESTS, run, stop


@pytest.fixture(scope="module")
def native():
    """nano in the class of transformers, whose passes run by themselves."""
    return ModelPool(
        Settings(device="cpu", threads=1, dllm_card="nano", ar_card="nano", network="native", batch=3)
    )


SHORT = dataclasses.replace(REQUESTS[2], sampling=Sampling(2, stop="none"))


class Mixed:
    """The ar route of one pool, and the dllm route of another."""

    def __init__(self, ar, dllm):
        self._pools = {"ar": ar, "dllm": dllm}

    def engine(self, route):
        return self._pools[route].engine(route)

    def served(self):
        return dict.fromkeys(ROUTES, "nano")


def alone(engines, route, requests):
    found = []
    for request in requests:
        found.append(
            "".join(piece.text for piece in run_job(engines, Ask(request, route=route).job, Router()))
        )
        engines.clear()
    return found


@pytest.mark.parametrize("route", ROUTES)
def test_side_by_side_they_write_what_they_write_alone(route, native):
    wanted = alone(native, route, REQUESTS[:3])
    asks = [Ask(request, str(n), route) for n, request in enumerate(REQUESTS[:3])]
    batch = JobBatch(native)
    for ask in asks:
        batch.start(ask.job, Router())
    run(batch)
    assert [ask.text for ask in asks] == wanted


def test_one_pass_of_them_runs_in_a_round(native):
    asks = [Ask(REQUESTS[0], str(n), "dllm") for n in range(3)]
    batch = JobBatch(native)
    for ask in asks:
        batch.start(ask.job, Router())
    while any(each.waits_for.reads_prompt for each in batch._running):
        batch.step()
    ran = []
    for _ in range(6):
        waited = {each.job.user: each.waits_for for each in batch._running}
        batch.step()
        ran += [user for user, pass_ in waited.items() if pass_.done]
    assert sorted(ran[:3]) == sorted(ran[3:]) == ["0", "1", "2"]
    run(batch)


def test_a_short_one_that_joins_others_does_not_wait_for_their_answer(nano, native):
    if nano.engine("ar") and nano.width == 1:
        pytest.skip("the products of this machine depend on the number of rows")
    engines = Mixed(nano, native)
    slow, quick = Ask(REQUESTS[0], "a", "dllm"), Ask(SHORT, "b")
    batch = JobBatch(engines)
    for ask in (slow, quick):
        batch.start(ask.job, Router())
    while not quick.ended.is_set():
        assert not slow.ended.is_set()
        batch.step()
    run(batch)
    assert slow.text == alone(native, "dllm", REQUESTS[:1])[0]


def test_one_that_is_stopped_leaves_without_its_turn(native):
    asks = [Ask(REQUESTS[n], str(n), "dllm") for n in (0, 2)]
    batch = JobBatch(native)
    for ask in asks:
        batch.start(ask.job, Router())
    not_run = stop(batch, asks[0])
    assert asks[0].usage.reason is Reason.CANCELLED
    assert not not_run.done
    run(batch)
    assert asks[1].text == alone(native, "dllm", REQUESTS[2:3])[0]


def test_those_of_one_engine_alone_run_one_after_another(native):
    """Turns make nobody's answer sooner there, so the host starts no second one."""
    assert [native.engine(route) for route in ROUTES]
    assert native.width == 1
