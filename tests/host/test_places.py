"""Requests to remote servers: they wait side by side with others, at most as many as there are places."""

import time
from contextlib import contextmanager

import pytest

from fimserver.cards import ELSEWHERE, Card, Remote
from fimserver.engine.engines import ModelPool
from fimserver.engine.remote.engine import RemoteEngine
from fimserver.host.job import Job
from fimserver.host.places import Places
from fimserver.host.scheduler import Scheduler
from fimserver.host.waiting import ServiceTimes, Waiting
from fimserver.reasons import Reason
from fimserver.settings import Settings
from fimserver.types import Deadline, Request, Sampling
from tests.host.asks import PATIENCE_S, Ask
from tests.servers_elsewhere import PlayedServer, sse

MODELS = (200, {"data": [{"id": "qwen2.5-coder-7b", "owned_by": "vllm"}]})
WORD = sse({"choices": [{"index": 0, "text": "some(text)", "finish_reason": None}]})
END = sse({"choices": [{"index": 0, "text": "", "finish_reason": "stop"}]}, "[DONE]")
SILENT = [PATIENCE_S]
REQUEST = Request("x = ", "\n", Sampling(max_tokens=16, stop="none"))


class OneElsewhere:
    """Both routes by one server elsewhere."""

    elsewhere = frozenset({"ar", "dllm"})

    def __init__(self, url, places=16):
        self.width_elsewhere = places
        card = Card(name="elsewhere", remote=Remote(url=url), **ELSEWHERE)
        self._engine = RemoteEngine(card, "ar")

    def engine(self, _route):
        return self._engine

    def served(self):
        return {"ar": "elsewhere", "dllm": "elsewhere"}


class World:
    """A scheduler, and the server that it asks."""

    def __init__(self, scheduler, server):
        self.scheduler, self.server = scheduler, server

    def asks(self, *args, **how):
        ask = Ask(REQUEST, *args, **how)
        self.scheduler.submit(ask.job)
        return ask

    def until_asked(self, count):
        """Wait until the server has so many requests."""
        self.until(lambda: len(self.server.asked) >= count)

    def until(self, holds):
        end = time.monotonic() + PATIENCE_S
        while not holds():
            assert time.monotonic() < end
            time.sleep(0.005)


@contextmanager
def a_world(first=(), answers=(), engines=OneElsewhere, **how):
    paths = {"/v1/models": MODELS, "/v1/completions": [WORD, END]} | dict(answers)
    with PlayedServer(paths, first) as server:
        source = engines(server.url, **how)
        scheduler = Scheduler(lambda: source)
        scheduler.start()
        try:
            yield World(scheduler, server)
        finally:
            scheduler.close(PATIENCE_S)
            assert not scheduler._thread.is_alive()


@pytest.mark.parametrize("silent", [SILENT, [WORD, *SILENT]], ids=["silent", "silent after a word"])
def test_a_second_user_is_answered_while_the_first_waits(silent):
    with a_world([silent]) as world:
        first = world.asks("one")
        world.until_asked(1)
        second = world.asks("two")
        assert second.reason is Reason.END
        assert second.text == "some(text)"
        assert not first.ended.is_set()
        world.until(lambda: first.text == ("some(text)" if len(silent) > 1 else ""))
        world.scheduler.withdraw(first.job)
        assert first.reason is Reason.CANCELLED
        assert world.server.closed.wait(PATIENCE_S)  # the server sees that nobody listens


def test_many_users_wait_at_once():
    with a_world([SILENT] * 8) as world:
        asks = [world.asks(str(number)) for number in range(8)]
        world.until_asked(8)
        assert world.scheduler.depth == (8, 0)
        for ask in asks:
            world.scheduler.withdraw(ask.job)
        assert {ask.reason for ask in asks} == {Reason.CANCELLED}


def test_no_more_wait_than_there_are_places():
    with a_world([SILENT] * 2, places=2) as world:
        asks = [world.asks("one"), world.asks("two")]
        world.until_asked(2)
        third = world.asks("three")
        assert world.scheduler.depth == (2, 1)
        world.scheduler.withdraw(asks[0].job)
        assert third.reason is Reason.END
        assert not asks[1].ended.is_set()
        assert len(world.server.asked) == 3


def test_the_newest_of_a_document_replaces_the_one_that_waits():
    with a_world([SILENT]) as world:
        old = world.asks("one")
        world.until_asked(1)
        new = world.asks("one")
        assert old.reason is Reason.SUPERSEDED
        assert new.reason is Reason.END
        assert world.server.closed.wait(PATIENCE_S)


def test_a_deadline_ends_the_wait():
    with a_world([SILENT]) as world:
        ask = world.asks("one", deadline_ms=1000)
        assert ask.reason is Reason.DEADLINE
        world.until(lambda: world.scheduler.depth == (0, 0))


def test_a_host_that_closes_leaves_the_server():
    with a_world([SILENT]) as world:
        ask = world.asks("one")
        world.until_asked(1)
        world.scheduler.close(PATIENCE_S)
        assert ask.reason is Reason.CANCELLED


def test_a_server_that_does_not_say_what_it_is_holds_nobody():
    """One asks it, the other waits for that, and both have the reason."""
    with a_world(answers={"/v1/models": SILENT}) as world:
        asks = [world.asks("one"), world.asks("two")]
        assert {ask.reason for ask in asks} == {Reason.AWAY}


def test_what_the_server_is_is_asked_once_for_all_who_wait():
    with a_world() as world:
        asks = [world.asks(str(number)) for number in range(4)]
        assert [ask.reason for ask in asks] == [Reason.END] * 4
        probes = world.server.requests - len(world.server.asked)
    with a_world() as world:
        assert world.asks("one").reason is Reason.END
        assert world.server.requests - len(world.server.asked) == probes


def test_a_user_of_this_machines_model_is_answered_while_a_server_is_waited_for():
    def engines(url):
        return ModelPool(Settings(device="cpu", threads=1, ar_card=url, dllm_card="nano"))

    with a_world([SILENT], engines=engines) as world:
        far = world.asks("one", route="ar")
        world.until_asked(1)
        near = world.asks("two", route="dllm")
        assert near.reason not in {Reason.OVERLOADED, Reason.FAILED}
        assert not far.ended.is_set()


def test_a_warm_up_waits_beside_others_too():
    with a_world([SILENT]) as world:
        warm = world.asks("one", warm=True)
        world.until_asked(1)
        assert world.asks("two").reason is Reason.END
        assert not warm.ended.is_set()
        world.scheduler.withdraw(warm.job)
        assert warm.reason is Reason.CANCELLED


def a_job(name, *, pin="ar", away=False, left_s=None):
    deadline = Deadline() if left_s is None else Deadline.of_ms(1000 * left_s)
    return Job((name, "d"), REQUEST, pin, deadline, lambda _: None, user=name, away=away)


class TestPlaces:
    @pytest.mark.parametrize(
        ("pin", "routes", "leaves"),
        [
            ("ar", {"ar"}, True),
            ("dllm", {"ar"}, False),
            ("auto", {"ar"}, False),
            ("auto", {"ar", "dllm"}, True),
        ],
    )
    def test_a_job_leaves_where_servers_have_all_its_routes(self, pin, routes, leaves):
        assert Places(routes=frozenset(routes)).leaves(a_job("x", pin=pin)) is leaves

    def test_one_that_leaves_needs_no_place_here(self):
        places = Places(here=1, elsewhere=2, routes=frozenset({"ar"}))
        here, away = a_job("a", pin="dllm"), a_job("b", away=True)
        assert places.has_room(a_job("c"), [here, away])
        assert not places.has_room(a_job("c", pin="dllm"), [here, away])
        assert places.has_room(a_job("c", pin="dllm"), [away])

    def test_one_that_may_leave_needs_a_place_at_both(self):
        places = Places(here=1, elsewhere=1, routes=frozenset({"ar"}))
        assert places.has_room(a_job("c", pin="auto"), [])
        assert not places.has_room(a_job("c", pin="auto"), [a_job("a", pin="dllm")])
        assert not places.has_room(a_job("c", pin="auto"), [a_job("b", away=True)])
        assert places.has_room(a_job("c", pin="dllm"), [a_job("b", away=True)])

    def test_one_that_would_come_too_late_is_found(self):
        """Two wait for servers, and both places are taken for a second."""
        times = ServiceTimes()
        waiting = Waiting(times)
        places = Places(here=1, elsewhere=2, routes=frozenset({"ar"}))
        times.mean_s = 1.0
        running = [a_job("a", away=True), a_job("b", away=True)]
        for job in running:
            times.start(job)
        hopeless, patient, local = a_job("c", left_s=1.2), a_job("d"), a_job("e", pin="dllm", left_s=1.2)
        for job in (hopeless, patient, local):
            waiting.put(job)
        assert places.late(waiting, times, running) == [hopeless]
        assert places.late(waiting, times, running[:1]) == []
