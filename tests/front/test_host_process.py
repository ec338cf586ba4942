"""The host is started when needed, with back-off, and no more after repeated crashes."""

import os
import socket
from pathlib import Path

import pytest

from fimserver.front.host_process import HostProcess, is_serving
from fimserver.reasons import Reason


class World:
    """A fake clock, a fake socket and fake processes."""

    def __init__(self):
        self.now, self.listens, self.code, self.started = 100.0, False, None, []
        self.hosting = HostProcess(Path("unused"), self._spawn, lambda _: self.listens, lambda: self.now)

    def _spawn(self):
        self.started.append(self.now)
        self.code = None
        return self

    def poll(self):
        return self.code

    def dies(self, after_s=0.0):
        self.now += after_s
        self.listens, self.code = False, -9

    def comes_up(self):
        self.listens = True
        return self.hosting.state()


def test_it_is_started_once_and_then_used():
    world = World()
    assert world.hosting.state() is Reason.LOADING
    assert world.hosting.state() is Reason.LOADING
    assert world.comes_up() is None
    assert world.started == [100.0]


def test_a_host_that_another_window_started_is_used():
    world = World()
    world.listens = True
    assert world.hosting.state() is None
    assert world.started == []


def test_deaths_back_off_then_it_rests_until_asked():
    world = World()
    for expected_wait in (0.0, 1.0):
        world.hosting.state()
        world.comes_up()
        world.dies()
        if expected_wait:
            assert world.hosting.state() is Reason.NO_HOST
            world.now += expected_wait
        assert world.hosting.state() is Reason.LOADING
    world.comes_up()
    world.dies()
    assert world.hosting.state() is Reason.HOST_FAILED
    world.now += 60
    assert world.hosting.state() is Reason.HOST_FAILED
    assert len(world.started) == 3
    assert world.hosting.state(asked=True) is Reason.LOADING
    assert len(world.started) == 4


def test_deaths_long_ago_are_forgotten():
    world = World()
    for _ in range(3):
        world.hosting.state()
        world.comes_up()
        world.dies(after_s=100)
        world.hosting.state()
        world.now += 5
    assert world.hosting.state() is Reason.LOADING


def test_a_child_that_found_another_host_is_no_death():
    world = World()
    world.hosting.state()
    world.code = 0  # the lock was taken
    assert world.hosting.state() is Reason.NO_HOST  # whoever has it will listen soon
    world.now += 1
    assert world.hosting.state() is Reason.LOADING
    assert not world.hosting._deaths


@pytest.mark.parametrize("what", ["nothing", "file", "stale", "live"])
def test_is_serving(what, tmp_path):
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        if what == "file":
            path.touch()
        elif what != "nothing":
            listener.bind(os.fspath(path))
        if what == "live":
            listener.listen()
        assert is_serving(path) is (what == "live")


def test_a_host_that_cannot_be_started_is_a_reason_and_no_error():
    def spawn():
        raise OSError(28, "No space left on device")

    hosting = HostProcess(Path("unused"), spawn, lambda _: False, lambda: 100.0)
    assert hosting.state() is Reason.NO_HOST
    assert hosting.problem == "the model host cannot be started: No space left on device"


@pytest.mark.parametrize("code", [1, 2, -9])
def test_the_exit_code_of_a_host_that_fails_is_said_until_one_listens(code):
    world = World()
    world.hosting.state()
    world.code = code
    world.hosting.state()
    assert f"exit code {code}" in world.hosting.problem
    world.comes_up()
    assert world.hosting.problem == ""
