"""Sharing of the CPUs with other processes, which changes no bit."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from fimserver.engine.engines import ModelPool
from fimserver.engine.forward import competition
from fimserver.engine.forward.competition import (
    BUSY,
    BUSY_S,
    CALM,
    CALM_S,
    LOOK_S,
    MOST_CALM_S,
    PAUSE_S,
    TRIAL_S,
    Competition,
    Sharing,
    Threads,
    ThreadTimes,
    read_times,
    watch,
)
from fimserver.engine.forward.openmp import BlocktimeSpin, find_spin
from fimserver.host.calibrate import samples
from fimserver.settings import Settings
from fimserver.threads import BLOCKTIME_MS, LONG_SPINS, SPINS
from fimserver.types import Deadline

OURS = {"GOMP_SPINCOUNT": str(LONG_SPINS), "KMP_BLOCKTIME": str(BLOCKTIME_MS)}
BETWEEN = (BUSY + CALM) / 2
STEP_S = 1.1 * LOOK_S
ALONE, SHARED, TRIAL = Sharing.ALONE, Sharing.SHARED, Sharing.TRIAL


class Spins:
    """Records what is set."""

    def __init__(self):
        self.brief = []

    def set_brief(self, brief):
        self.brief.append(brief)


class Machine:
    """A clock, and threads that wait for a processor in some of their time."""

    def __init__(self):
        self.now_s = 0.0
        self.times = ThreadTimes(0.0, 0.0)
        self.readings = 0
        self.uses = []
        self.competition = Competition(self.uses.append, self.read, lambda: self.now_s)

    def read(self):
        self.readings += 1
        return self.times

    def pass_(self, share, seconds=STEP_S):
        self.now_s += max(seconds, STEP_S)
        self.computes(share, seconds)
        self.competition.look()

    def computes(self, share, seconds):
        ran, waited = self.times
        self.times = ThreadTimes(ran + (1 - share) * seconds, waited + share * seconds)


def shared():
    machine = Machine()
    machine.pass_(0.5)
    assert machine.uses == [ALONE, SHARED]
    return machine


def test_the_first_reading_that_shows_competition_makes_the_threads_few():
    machine = Machine()
    machine.pass_(0.0)
    machine.pass_(BETWEEN)
    assert machine.uses == [ALONE]
    machine.pass_(BUSY + 0.01)
    for _ in range(50):
        machine.pass_(0.9)
    assert machine.uses == [ALONE, SHARED]


def test_after_some_calm_time_all_threads_are_tried_and_stay():
    machine = shared()
    for _ in range(4):
        machine.pass_(0.0, 0.2 * CALM_S)
    assert machine.competition.sharing is SHARED
    machine.pass_(0.0, 0.25 * CALM_S)
    assert machine.competition.sharing is TRIAL
    machine.pass_(0.0, 1.01 * TRIAL_S)
    assert machine.uses == [ALONE, SHARED, TRIAL, ALONE]


def test_one_burst_in_calm_time_is_no_end_of_calm():
    machine = shared()
    for share in (0.0, 0.0, 2 * CALM, 0.0, 0.0):
        machine.pass_(share, 0.22 * CALM_S)
    assert machine.competition.sharing is TRIAL


def trials(machine):
    """Seconds of calm before each of several trials that fail."""
    while True:
        calm_s = 0.0
        while machine.competition.sharing is SHARED:
            machine.pass_(0.0)
            calm_s += STEP_S
        yield calm_s
        machine.pass_(0.5, 1.01 * TRIAL_S)


def test_the_next_trial_after_one_that_failed_comes_later_up_to_a_limit():
    found = list(itertools.islice(trials(shared()), 5))
    assert found == sorted(found)
    assert found[0] == pytest.approx(CALM_S, abs=2 * STEP_S)
    assert found[1] == pytest.approx(2 * CALM_S, abs=2 * STEP_S)
    assert found[-1] == pytest.approx(MOST_CALM_S, abs=2 * STEP_S)


def test_a_trial_that_went_well_forgets_those_that_failed():
    machine = shared()
    tries = trials(machine)
    for _ in range(4):
        next(tries)
    machine.pass_(0.0, 1.01 * TRIAL_S)
    assert machine.competition.sharing is ALONE
    machine.pass_(0.5)
    assert next(trials(machine)) == pytest.approx(CALM_S, abs=2 * STEP_S)


def test_a_share_between_the_bounds_changes_nothing():
    for sharing in (ALONE, TRIAL):
        machine = Machine()
        machine.competition.sharing = sharing
        for _ in range(100):
            machine.pass_(BETWEEN)
        assert machine.uses == [ALONE]


def test_after_a_pause_all_threads_are_tried_at_once():
    machine = shared()
    machine.now_s += 1.1 * PAUSE_S
    machine.pass_(0.5, BUSY_S)
    assert machine.uses == [ALONE, SHARED, TRIAL]
    machine.pass_(0.5, 1.01 * TRIAL_S)
    assert machine.uses == [ALONE, SHARED, TRIAL, SHARED]


def test_it_is_read_no_more_often_than_said():
    machine = Machine()
    for _ in range(1000):
        machine.now_s += LOOK_S / 100
        machine.computes(0.0, LOOK_S / 100)
        machine.competition.look()
    assert machine.readings <= 1 + 1000 / 100 + 1


def test_a_thread_that_ends_takes_its_time_with_it_and_nothing_else_happens():
    machine = shared()
    machine.times = ThreadTimes(0.01, 0.0)
    machine.pass_(0.0)
    assert machine.uses == [ALONE, SHARED]
    machine.pass_(0.0, 1.1 * CALM_S)
    assert machine.competition.sharing is TRIAL


def test_passes_too_short_to_tell_are_counted_with_the_next_ones():
    machine = Machine()
    for share in (1.0, 0.0, 0.0, 0.0):
        machine.pass_(share, 0.26 * BUSY_S)
    assert machine.uses == [ALONE, SHARED]


@pytest.fixture
def threads():
    count = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(count)


@pytest.mark.parametrize(("number", "few"), [(1, 1), (2, 1), (3, 3), (8, 8)])
def test_of_two_threads_one_is_left_and_the_spin_is_long_alone_only(threads, number, few):
    threads(number)
    spins = Spins()
    used = Threads(spins)
    counts = []
    for sharing in (ALONE, SHARED, TRIAL, SHARED, SHARED, ALONE):
        used.use(sharing)
        counts.append(torch.get_num_threads())
    assert counts == [number, few, number, few, few, number]
    assert spins.brief == [False, True, True, True, True, False]


def test_the_times_of_all_threads_are_added(tmp_path):
    for name, text in {"7": "1500000000 250000000 3", "8": "500000000 750000000 9"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "schedstat").write_text(text)
    (tmp_path / "9").mkdir()  # a thread that has just ended
    assert read_times(tmp_path) == ThreadTimes(2.0, 1.0)
    with pytest.raises(OSError, match="missing"):
        read_times(tmp_path / "missing")


@pytest.mark.parametrize("environ", [{}, {"OMP_WAIT_POLICY": "active"}, OURS | {"GOMP_SPINCOUNT": "7"}])
def test_what_the_user_says_is_not_switched(monkeypatch, environ):
    monkeypatch.setattr(competition, "find_spin", lambda: pytest.fail("not looked for"))
    watch(environ)()


def kmp_set_blocktime(_ms):
    """Of a library that is not loaded."""


@pytest.mark.parametrize(
    ("spin", "spins", "watched"),
    [
        (Spins(), LONG_SPINS, True),
        (Spins(), SPINS, False),  # a container with a limit
        (BlocktimeSpin(SimpleNamespace(kmp_set_blocktime=kmp_set_blocktime)), SPINS, True),
        (None, LONG_SPINS, False),
        (None, SPINS, False),
    ],
)
def test_a_spin_of_ours_is_switched_where_it_can_be(monkeypatch, spin, spins, watched):
    monkeypatch.setattr(competition, "find_spin", lambda: spin)
    monkeypatch.setattr(competition, "read_times", lambda: ThreadTimes(0.0, 0.0))
    look = watch(OURS | {"GOMP_SPINCOUNT": str(spins)})
    look()
    assert (getattr(look, "__func__", None) is Competition.look) == watched


def test_a_system_without_statistics_of_threads_is_not_watched(monkeypatch):
    def none():
        raise FileNotFoundError

    monkeypatch.setattr(competition, "find_spin", Spins)
    monkeypatch.setattr(competition, "read_times", none)
    watch(OURS)()


@pytest.mark.parametrize("route", ["ar", "dllm"])
@pytest.mark.usefixtures("threads")
def test_changes_between_layers_change_no_token(monkeypatch, route):
    spin = find_spin()
    if spin is None:
        pytest.skip("an OpenMP that cannot be switched")
    used = Threads(spin)
    ways = itertools.cycle([TRIAL, SHARED, ALONE, SHARED])
    counts = set()
    models = ModelPool(Settings(ar_card="nano", dllm_card="nano", device="cpu", threads=2))
    request = samples()[0]

    def text():
        models.clear()
        return "".join(chunk.text for chunk in models.engine(route).complete(request, Deadline()))

    def look():
        used.use(next(ways))
        counts.add(torch.get_num_threads())

    steady = text()
    monkeypatch.setattr("fimserver.engine.forward.layers.adapt_threads", look)
    try:
        assert text() == steady
        assert counts == {1, 2}
    finally:
        used.use(ALONE)
