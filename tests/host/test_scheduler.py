"""Whose turn it is: the newest request of a document wins, idle work yields, and everyone is answered once."""

import threading
import time
import weakref

import pytest
import torch

from fimserver.engine import faults
from fimserver.errors import ModelMissingError, NonFiniteError
from fimserver.host import scheduler, waiting
from fimserver.host.fake import FakeEngines
from fimserver.host.scheduler import Scheduler
from fimserver.reasons import Reason
from fimserver.types import Request
from tests.host.asks import PATIENCE_S, Ask


def ask_of(name, *, session="s", idle=False, **how):
    """``a1`` and ``a2`` are of one document."""
    document = f"{name[0]}\0idle" if idle else name[0]
    return Ask(Request(name, ""), session, document=document, idle=idle, **how)


class World:
    """A scheduler whose engine takes a step only when the test lets it; ``lets_go``: as many as it likes."""

    def __init__(self, load=None, steps=3):
        self.steps, self.began, self.lost = steps, [], threading.Event()
        self.engines = FakeEngines(self._script)
        self.scheduler = Scheduler(load or (lambda: self.engines), self.lost.set)
        self._changed, self._allowed, self._free = threading.Condition(), 0, False

    def _script(self, request, _route):
        with self._changed:
            self.began.append(request.prefix)
            self._changed.notify_all()
        for _ in range(self.steps):
            with self._changed:
                assert self._changed.wait_for(lambda: self._free or self._allowed, PATIENCE_S)
                self._allowed -= not self._free
            yield "x"

    def asks(self, name, **how):
        ask = ask_of(name, **how)
        self.scheduler.submit(ask.job)
        return ask

    def runs(self, name, **how):
        """Ask, and wait until the engine has begun with it."""
        ask = self.asks(name, **how)
        with self._changed:
            assert self._changed.wait_for(lambda: name in self.began, PATIENCE_S)
        return ask

    def steps_once(self):
        with self._changed:
            self._allowed += 1
            self._changed.notify_all()

    def lets_go(self):
        with self._changed:
            self._free = True
            self._changed.notify_all()

    def __enter__(self):
        self.scheduler.start()
        return self

    def __exit__(self, *_):
        self.lets_go()
        self.scheduler.close(PATIENCE_S)
        assert not self.scheduler._thread.is_alive()


@pytest.fixture
def world():
    with World() as world:
        yield world


def test_the_newest_of_a_document_stops_the_running_one_within_one_step(world):
    old = world.runs("a1")
    new = world.asks("a2")
    assert not old.answered
    world.steps_once()
    assert old.reason is Reason.SUPERSEDED
    assert [piece.text for piece in old.pieces] == ["x", ""]
    world.lets_go()
    assert new.reason is Reason.END
    assert world.began == ["a1", "a2"]


def test_the_newest_of_a_document_answers_the_waiting_one_at_once(world):
    running, old = world.runs("b"), world.asks("a1")
    new = world.asks("a2")
    assert old.answered  # in the call itself, the engine being busy
    assert old.reason is Reason.SUPERSEDED
    world.lets_go()
    assert [running.reason, new.reason] == [Reason.END, Reason.END]
    assert world.began == ["b", "a2"]


def test_documents_of_a_window_take_turns_in_order_and_another_window_comes_first(world):
    asks = [world.runs("a"), *map(world.asks, "bcd"), world.asks("x", session="another window")]
    world.lets_go()
    assert [ask.reason for ask in asks] == [Reason.END] * 5
    assert world.began == ["a", "x", "b", "c", "d"]


def test_a_storm_leaves_one_running_and_one_waiting(world):
    first = world.runs("a")
    storm = []
    for _ in range(300):
        storm.append(world.asks("a"))
        assert world.scheduler.depth == (1, 1)
    world.lets_go()
    assert storm[-1].reason is Reason.END
    assert {ask.reason for ask in [first, *storm[:-1]]} == {Reason.SUPERSEDED}
    assert len(world.began) == 2


def test_idle_work_is_done_last(world):
    asks = [world.runs("a"), world.asks("b"), world.asks("i", idle=True)]
    world.lets_go()
    assert [ask.reason for ask in asks] == [Reason.END] * 3
    assert world.began == ["a", "b", "i"]


@pytest.mark.parametrize("idle", [True, False])
def test_idle_work_that_runs_yields_to_anything(world, idle):
    spare, other = world.runs("i", idle=True), world.asks("b", idle=idle)
    world.steps_once()
    assert spare.reason is Reason.SUPERSEDED
    world.lets_go()
    assert other.reason is Reason.END


@pytest.mark.parametrize("idle", [True, False])
def test_idle_work_that_waits_is_dropped_by_anything(world, idle):
    running, spare = world.runs("a"), world.asks("i", idle=True)
    other = world.asks("b", idle=idle)
    assert spare.answered
    assert spare.reason is Reason.SUPERSEDED
    world.lets_go()
    assert [running.reason, other.reason] == [Reason.END, Reason.END]
    assert world.began == ["a", "b"]


def test_idle_work_stops_nothing_not_even_of_its_document(world):
    running, waiting, spare = world.runs("a1"), world.asks("b1"), world.asks("b2", idle=True)
    world.lets_go()
    assert [running.reason, waiting.reason, spare.reason] == [Reason.END] * 3


@pytest.mark.parametrize("waits", [True, False])
def test_a_warm_up_does_not_stop_the_request_that_it_was_for(world, waits):
    asks = [world.runs("b"), world.asks("a")] if waits else [world.runs("a")]
    late = world.asks("a", warm=True)
    assert late.answered
    assert late.reason is Reason.SUPERSEDED
    world.lets_go()
    assert [ask.reason for ask in asks] == [Reason.END] * len(asks)
    assert not world.engines.warmed


def test_a_request_stops_the_warm_up_of_its_document(world):
    running, warm = world.runs("b"), world.asks("a", warm=True)
    ask = world.asks("a")
    assert warm.reason is Reason.SUPERSEDED
    world.lets_go()
    assert [running.reason, ask.reason] == [Reason.END] * 2


def test_a_full_queue_drops_the_oldest_and_never_for_idle_work(world, monkeypatch):
    monkeypatch.setattr(waiting, "MAX_WAITING", 2)
    running, *early = [world.runs("a"), *map(world.asks, "bc")]
    world.asks("i", idle=True)
    assert not any(ask.answered for ask in early)
    last = world.asks("d")
    assert [ask.answered for ask in early] == [True, False]
    assert early[0].reason is Reason.OVERLOADED
    assert early[0].pieces[-1].error
    world.lets_go()
    assert [ask.reason for ask in (running, early[1], last)] == [Reason.END] * 3


def test_a_request_that_would_come_too_late_is_answered_in_the_call_itself(world):
    world.scheduler._times.mean_s = 5.0
    running = world.runs("a")
    early = world.asks("b", session="t", deadline_ms=12_000)
    late = world.asks("c", session="u", deadline_ms=12_000)
    assert late.answered
    assert late.reason is Reason.OVERLOADED
    assert late.pieces[-1].error
    assert not early.answered
    assert world.scheduler.depth == (1, 1)
    world.lets_go()
    assert [running.reason, early.reason] == [Reason.END] * 2


def test_the_next_request_of_a_document_is_not_refused_for_the_one_that_it_replaces(world):
    world.scheduler._times.mean_s = 5.0
    old = world.runs("a1")
    new = world.asks("a2", deadline_ms=1000)
    world.lets_go()
    assert [old.reason, new.reason] == [Reason.SUPERSEDED, Reason.END]


def test_what_is_withdrawn_stops_at_its_next_step(world):
    ask = world.runs("a")
    world.scheduler.withdraw(ask.job)
    world.steps_once()
    assert ask.reason is Reason.CANCELLED
    assert [piece.text for piece in ask.pieces] == ["x", ""]


def test_what_is_withdrawn_while_it_waits_never_runs(world):
    running, ask = world.runs("a"), world.asks("b")
    world.scheduler.withdraw(ask.job)
    assert ask.answered
    assert ask.reason is Reason.CANCELLED
    world.lets_go()
    assert running.reason is Reason.END
    assert world.began == ["a"]


def test_withdrawing_an_old_request_leaves_the_new_one(world):
    world.runs("a")
    old, new = world.asks("b1"), world.asks("b2")
    world.scheduler.withdraw(old.job)
    world.lets_go()
    assert new.reason is Reason.END
    assert old.reason is Reason.SUPERSEDED


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no"),
        NonFiniteError("nan"),
        torch.OutOfMemoryError("no"),
        SystemExit(1),
        KeyboardInterrupt(),
    ],
    ids=repr,
)
def test_a_failure_leaves_the_next_request_in_peace(error):
    with World() as world:
        world.lets_go()
        good = world.engines.script
        world.engines.script = lambda _request, _route: iter([error])
        assert world.asks("a").reason in {Reason.FAILED, Reason.NON_FINITE, Reason.OUT_OF_MEMORY}
        world.engines.script = good
        assert world.asks("b").reason is Reason.END
        assert world.scheduler.state is None
        assert not world.lost.is_set()


def test_a_lost_device_is_told_and_nobody_waits_for_it():
    broken = threading.Event()

    def script(_request, _route):
        assert broken.wait(PATIENCE_S)
        yield RuntimeError("CUDA error: device-side assert triggered")

    with World() as world:
        world.engines.script = script
        asks = [*map(world.asks, "abc")]
        broken.set()
        assert world.lost.wait(PATIENCE_S)
        asks.append(world.asks("d"))
        assert [ask.reason for ask in asks] == [Reason.FAILED] * 4
        assert world.scheduler.state is Reason.FAILED
        assert "device" in world.scheduler.problem
        assert len(world.engines.asked) == 1


def test_an_error_while_memory_is_freed_means_a_lost_device(monkeypatch, caplog):
    def fails():
        raise RuntimeError("CUDA error: canary")

    monkeypatch.setattr(faults, "free_memory", fails)
    with World() as world:
        world.engines.script = lambda _request, _route: iter([torch.OutOfMemoryError("no")])
        assert world.asks("a").reason is Reason.FAILED
        assert world.lost.wait(PATIENCE_S)
    assert "canary" not in caplog.text


def test_requests_wait_for_the_models():
    loaded, engines = threading.Event(), FakeEngines(lambda _request, _route: iter(["x"]))

    def load():
        assert loaded.wait(PATIENCE_S)
        return engines

    with World(load) as world:
        ask = world.asks("a")
        assert world.scheduler.state is Reason.LOADING
        assert not ask.answered
        loaded.set()
        assert ask.reason is Reason.END
        assert world.scheduler.state is None


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (ModelMissingError("run fimserver models get x"), "run fimserver models get x"),
        (ImportError("canary"), "ImportError: see the log of the host"),
        (SystemExit("canary"), "SystemExit: see the log of the host"),
    ],
    ids=repr,
)
def test_without_models_everyone_is_told_why(error, problem, caplog):
    started = threading.Event()

    def load():
        assert started.wait(PATIENCE_S)
        raise error

    with World(load) as world:
        early = world.asks("a")
        started.set()
        assert early.reason is Reason.NO_MODEL
        late = world.asks("b")
        assert late.reason is Reason.NO_MODEL
        assert [piece.error for ask in (early, late) for piece in ask.pieces] == [problem] * 2
        assert (world.scheduler.state, world.scheduler.problem) == (Reason.NO_MODEL, problem)
    assert "canary" not in caplog.text


def test_closing_ends_everything_and_refuses_the_rest(world):
    running, waiting = world.runs("a"), world.asks("b")
    world.scheduler.close(0)
    assert waiting.answered
    late = world.asks("c")
    assert late.answered
    world.steps_once()
    assert {ask.reason for ask in (running, waiting, late)} == {Reason.CANCELLED}
    assert world.began == ["a"]


def test_a_job_that_runs_on_long_after_its_end_is_a_hang(world, monkeypatch):
    monkeypatch.setattr(scheduler, "HANG_S", 0.0)
    ask = world.runs("a1")
    assert not world.scheduler.hangs
    ask.job.cancel()
    assert not world.scheduler.hangs  # seen for the first time
    assert world.scheduler.hangs


class Paused(World):
    """A world that counts how often its models are loaded, and knows whether they are still in memory."""

    def __init__(self):
        super().__init__(self._load, steps=1)
        self.loads, self.alive = 0, lambda: None
        self.lets_go()

    def _load(self):
        self.loads += 1
        engines = FakeEngines(self._script)
        self.alive = weakref.ref(engines)
        return engines

    def until(self, true):
        end = time.monotonic() + PATIENCE_S
        while not true():
            assert time.monotonic() < end
            time.sleep(0.002)


@pytest.fixture
def paused():
    with Paused() as world:
        assert world.asks("a").reason is Reason.END
        world.scheduler.pause(60)
        world.until(lambda: world.scheduler.state is Reason.PAUSED)
        yield world


def test_a_pause_forgets_the_models_and_says_so(paused):
    paused.until(lambda: paused.alive() is None)
    for how in ({}, {"idle": True}, {"warm": True}):
        ask = paused.asks("b", **how)
        assert ask.answered
        assert ask.reason is Reason.PAUSED
        assert ask.pieces[-1].error
    assert paused.loads == 1


@pytest.mark.parametrize("ended", ["by an explicit request", "by resume", "by the limit"])
def test_a_pause_ends_and_the_models_are_loaded_again(paused, ended):
    if ended == "by an explicit request":
        ask = ask_of("b")
        ask.job.explicit = True
        paused.scheduler.submit(ask.job)
        assert ask.reason is Reason.END
    elif ended == "by resume":
        paused.scheduler.resume()
    else:
        paused.scheduler.pause(0.05)
    paused.until(lambda: paused.scheduler.state is None)
    assert paused.asks("c").reason is Reason.END
    assert paused.loads == 2


def test_a_pause_answers_what_waits_and_lets_the_running_one_end(world):
    running, waiting = world.runs("a"), world.asks("b")
    world.scheduler.pause(60)
    assert waiting.reason is Reason.PAUSED
    assert not running.answered
    world.lets_go()
    assert running.reason is Reason.END


def test_a_paused_host_can_be_closed(paused):
    paused.scheduler.close(PATIENCE_S)
    assert paused.asks("b").reason is Reason.CANCELLED
