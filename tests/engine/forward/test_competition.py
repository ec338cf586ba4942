"""When the spin of OpenMP's threads is switched, and that it changes no bit."""

import itertools
from types import SimpleNamespace

import pytest

from fimserver.engine.engines import ModelPool
from fimserver.engine.forward import competition
from fimserver.engine.forward.competition import (
    BUSY,
    BUSY_S,
    CALM,
    CALM_S,
    LOOK_S,
    Competition,
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
        self.spins = Spins()
        self.competition = Competition(self.spins, self.read, lambda: self.now_s)

    def read(self):
        self.readings += 1
        return self.times

    def pass_(self, share, seconds=LOOK_S):
        self.now_s += seconds
        ran, waited = self.times
        self.times = ThreadTimes(ran + (1 - share) * seconds, waited + share * seconds)
        self.competition.look()


def test_the_first_reading_that_shows_competition_makes_the_spin_brief():
    machine = Machine()
    machine.pass_(0.0)
    machine.pass_(BETWEEN)
    assert machine.spins.brief == [False]
    machine.pass_(BUSY + 0.01)
    machine.pass_(0.9)
    assert machine.spins.brief == [False, True]


def test_the_spin_is_long_again_after_some_calm_time():
    machine = Machine()
    machine.pass_(0.5)
    for _ in range(4):
        machine.pass_(0.0, 0.2 * CALM_S)
    assert machine.competition.brief
    machine.pass_(0.0, 0.25 * CALM_S)
    assert machine.spins.brief == [False, True, False]


def test_one_burst_in_calm_time_is_no_end_of_calm():
    machine = Machine()
    machine.pass_(0.5)
    for share in (0.0, 0.0, 2 * CALM, 0.0, 0.0):
        machine.pass_(share, 0.22 * CALM_S)
    assert machine.spins.brief == [False, True, False]


def test_a_share_between_the_bounds_changes_nothing():
    for first in (0.0, 0.5):
        machine = Machine()
        machine.pass_(first)
        before = list(machine.spins.brief)
        for _ in range(100):
            machine.pass_(BETWEEN)
        assert machine.spins.brief == before


def test_time_between_requests_counts_for_neither():
    machine = Machine()
    machine.pass_(0.5)
    for _ in range(2):
        machine.now_s += 3600.0
        machine.pass_(0.5)
    assert machine.competition.brief


def test_it_is_read_no_more_often_than_said():
    machine = Machine()
    for _ in range(1000):
        machine.pass_(0.0, LOOK_S / 100)
    assert machine.readings <= 1 + 1000 / 100 + 1


def test_a_thread_that_ends_takes_its_time_with_it_and_nothing_else_happens():
    machine = Machine()
    machine.pass_(0.5)
    machine.times = ThreadTimes(0.01, 0.0)
    machine.pass_(0.0)
    assert machine.spins.brief == [False, True]
    machine.pass_(0.0, 1.1 * CALM_S)
    assert machine.spins.brief == [False, True, False]


def test_passes_too_short_to_tell_are_counted_with_the_next_ones():
    machine = Machine()
    for share in (1.0, 0.0, 0.0, 0.0):
        machine.now_s += LOOK_S
        machine.pass_(share, 0.3 * BUSY_S)
    assert machine.spins.brief == [False, True]
    machine.now_s += 3600.0
    machine.pass_(0.0, 0.3 * BUSY_S)
    assert machine.competition.brief


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
def test_switching_between_layers_changes_no_token(monkeypatch, route):
    spin = find_spin()
    if spin is None:
        pytest.skip("an OpenMP that cannot be switched")
    layers = itertools.count()
    models = ModelPool(Settings(ar_card="nano", dllm_card="nano", device="cpu"))
    request = samples()[0]

    def text():
        models.clear()
        return "".join(chunk.text for chunk in models.engine(route).complete(request, Deadline()))

    steady = text()
    monkeypatch.setattr("fimserver.engine.forward.layers.look", lambda: spin.set_brief(next(layers) % 2 == 0))
    try:
        assert text() == steady
        assert next(layers) > 2
    finally:
        spin.set_brief(False)
