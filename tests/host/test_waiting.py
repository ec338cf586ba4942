"""The order of waiting jobs: fair between users by engine time, and no request that would come too late."""

import pytest

from fimserver.host import waiting
from fimserver.host.job import Job
from fimserver.host.waiting import ServiceTimes, Waiting
from fimserver.types import Deadline, Request


class Clock:
    """Monotonic seconds that the test turns."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr("time.monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def job(name, user="u", *, deadline_s=None, warm=False, idle=False):
    deadline = Deadline.of_ms(None if deadline_s is None else 1000 * deadline_s)
    return Job(
        (user, name), Request(name, ""), "ar", deadline, lambda _piece: None, user=user, warm=warm, idle=idle
    )


class Queue:
    """A queue whose engine takes given times."""

    def __init__(self, clock):
        self.clock, self.times = clock, ServiceTimes()
        self.waiting = Waiting(self.times)

    def asks(self, *jobs):
        for each in jobs:
            each.admitted = True
            self.waiting.put(each)

    def runs(self, each, seconds):
        self.times.start(each)
        self.clock.now += seconds
        self.times.end(each)

    def serves(self, seconds=1.0):
        each = self.waiting.order()[0]
        self.waiting.remove(each)
        self.runs(each, seconds)
        return each.key

    def names(self):
        return [each.request.prefix for each in self.waiting.order()]


@pytest.fixture
def queue(clock):
    return Queue(clock)


def test_requests_come_before_warm_ups_and_those_before_idle_work(queue):
    queue.asks(job("idle", idle=True), job("warm", warm=True), job("request"))
    assert queue.names() == ["request", "warm", "idle"]


def test_a_user_with_many_documents_does_not_keep_others_waiting(queue):
    queue.runs(job("x", "busy"), 1.0)
    queue.asks(*(job(f"busy {i}", "busy") for i in range(5)), job("quiet", "quiet"))
    assert [queue.serves()[1] for _ in range(3)] == ["quiet", "busy 0", "busy 1"]


def test_users_take_turns_before_anything_was_measured(queue):
    """So do those whose requests run side by side: none of them has ended yet."""
    queue.asks(*(job(name, "many") for name in "abc"), job("d", "one"))
    started = []
    while len(queue.waiting):
        each = queue.waiting.order()[0]
        queue.waiting.remove(each)
        queue.times.start(each)
        started.append(each.request.prefix)
    assert started == ["a", "d", "b", "c"]


def test_time_counts_not_the_number_of_requests(queue):
    queue.runs(job("x", "long"), 1.0)
    queue.asks(*(job(f"long {i}", "long") for i in range(3)), *(job(f"short {i}", "short") for i in range(9)))
    served = [queue.serves(1.0 if queue.names()[0].startswith("long") else 0.25)[0] for _ in range(10)]
    assert served.count("short") >= 3 * (served.count("long") - 1)
    assert "long" in served[1:]  # and nobody starves


def test_a_user_who_was_away_gets_no_advance_for_it(queue):
    for _ in range(20):
        queue.runs(job("x", "worker"), 1.0)
    queue.runs(job("x", "guest"), 1.0)
    queue.asks(*(job(f"{i}", user) for i in range(4) for user in ("guest", "worker")))
    served = [queue.serves()[0] for _ in range(6)]
    assert sorted(served[:4]) == ["guest", "guest", "worker", "worker"]


def test_when_nobody_waits_everyone_starts_anew(queue):
    queue.runs(job("x", "old"), 9.0)
    queue.times.settle()
    queue.asks(job("old", "old"), job("new", "new"))
    assert queue.names() == ["old", "new"]


class TestAdmission:
    def test_nothing_is_refused_before_anything_was_measured(self, queue):
        running = job("a")
        queue.times.start(running)
        queue.waiting.put(job("b", deadline_s=0.001))
        assert queue.waiting.late(queue.waiting.order(), running) == []

    def test_a_request_is_never_refused_while_the_engine_is_free(self, queue):
        queue.runs(job("a"), 10.0)
        queue.waiting.put(job("b", deadline_s=1.0))
        assert queue.waiting.late(queue.waiting.order(), None) == []

    @pytest.mark.parametrize(("deadline_s", "is_late"), [(2.9, True), (3.1, False)])
    def test_a_request_needs_the_time_of_those_before_it_and_its_own(self, queue, deadline_s, is_late):
        queue.runs(job("x"), 1.0)
        running = job("running", "r")
        queue.times.start(running)
        queue.asks(job("before", "b"))
        new = job("new", "n", deadline_s=deadline_s)
        queue.waiting.put(new)
        assert queue.waiting.late(queue.waiting.order(), running) == ([new] if is_late else [])

    def test_what_runs_counts_by_what_is_left_of_it(self, queue, clock):
        queue.runs(job("x"), 1.0)
        running = job("running", "r")
        queue.times.start(running)
        clock.now += 0.8
        queue.waiting.put(job("new", "n", deadline_s=1.3))
        assert queue.waiting.late(queue.waiting.order(), running) == []

    def test_what_was_stopped_is_not_waited_for(self, queue):
        queue.runs(job("x"), 1.0)
        running = job("running", "r")
        queue.times.start(running)
        running.cancel(superseded=True)
        queue.waiting.put(job("new", "n", deadline_s=0.5))
        assert queue.waiting.late(queue.waiting.order(), running) == []

    def test_a_request_that_was_taken_is_kept_while_it_can_start_in_time(self, queue):
        queue.runs(job("x", "other"), 1.0)
        running = job("running", "r")
        queue.times.start(running)
        taken = job("taken", "t", deadline_s=1.5)
        queue.asks(taken)
        assert queue.waiting.late(queue.waiting.order(), running) == []
        taken.admitted = False
        assert queue.waiting.late(queue.waiting.order(), running) == [taken]

    def test_what_is_refused_keeps_no_other_waiting(self, queue):
        queue.runs(job("x"), 1.0)
        running = job("running", "r")
        queue.times.start(running)
        hopeless, good = job("hopeless", "h", deadline_s=0.1), job("good", "g", deadline_s=2.1)
        queue.waiting.put(hopeless)
        queue.waiting.put(good)
        assert queue.waiting.late(queue.waiting.order(), running) == [hopeless]

    def test_warm_ups_and_idle_work_are_never_refused_and_count_for_nothing(self, queue):
        queue.runs(job("x"), 1.0)
        running = job("running", "r")
        queue.times.start(running)
        queue.waiting.put(job("warm", warm=True, deadline_s=0.1))
        queue.waiting.put(job("idle", idle=True, deadline_s=0.1))
        queue.waiting.put(job("new", "n", deadline_s=2.1))
        assert queue.waiting.late(queue.waiting.order(), running) == []

    def test_one_hiccup_is_forgotten(self, queue):
        queue.runs(job("cold"), 5.0)
        for _ in range(40):
            queue.runs(job("x"), 0.1)
        assert queue.times.mean_s < 0.15


def test_a_full_queue_drops_the_oldest_of_the_user_with_the_most(queue, monkeypatch):
    monkeypatch.setattr(waiting, "MAX_WAITING", 4)
    queue.asks(job("lone", "lone"), *(job(f"many {i}", "many") for i in range(3)))
    gone = queue.waiting.pointless(job("new", "new"))
    assert [old.request.prefix for old in gone] == ["many 0"]
