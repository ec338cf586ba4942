"""Paths of user files: private, short enough for sockets, the same for every process, never a traceback."""

import os
import stat
from pathlib import Path

import pytest

from fimserver import paths
from fimserver.commands import doctor
from fimserver.errors import InputError
from fimserver.front.host_process import spawn_host
from fimserver.paths import (
    MAX_SOCKET_BYTES,
    log_path,
    log_problem,
    private_folder,
    runtime_folder,
    socket_path,
)
from fimserver.settings import Settings


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """A folder of temporary files of our own, where the runtime folder may be moved to."""
    folder = Path("/tmp") / f"fim-{os.getpid()}"  # noqa: S108 - short
    folder.mkdir()
    monkeypatch.setattr(paths.tempfile, "gettempdir", lambda: str(folder))
    yield folder
    for each in sorted(folder.rglob("*"), reverse=True):
        each.rmdir()
    folder.rmdir()


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("parts", [(), ("user",), ("user", "1000")])
def test_a_runtime_folder_that_does_not_exist_is_made_private_with_its_parents(temporary, monkeypatch, parts):
    given = temporary.joinpath("new", *parts)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(given))
    mask = os.umask(0)
    try:
        folder = runtime_folder()
    finally:
        os.umask(mask)
    assert folder == given / "fimserver" == runtime_folder()
    assert {mode(each) for each in (folder, given, temporary / "new")} == {0o700}


@pytest.mark.parametrize(
    "given", ["/proc/nope", "/dev/null", "/dev/null/x", "/" + "long/" * 25, "/nope" if os.getuid() else ""]
)
def test_where_the_runtime_folder_cannot_be_used_another_private_one_is(temporary, monkeypatch, given):
    if not given:
        pytest.skip("root may write everywhere")
    monkeypatch.setenv("XDG_RUNTIME_DIR", given)
    folder = runtime_folder()
    assert folder == temporary / f"fimserver-{os.getuid()}"
    assert mode(folder) == 0o700
    assert len(os.fsencode(socket_path(Settings()))) <= MAX_SOCKET_BYTES


def test_a_file_or_a_link_in_the_place_of_the_folder_is_not_used(tmp_path, temporary, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "fimserver").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    assert runtime_folder().parent == temporary
    (tmp_path / "fimserver").unlink()
    (tmp_path / "fimserver").touch()
    assert runtime_folder().parent == temporary


def test_where_no_folder_can_be_used_one_line_says_why(monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/proc/nope")
    monkeypatch.setattr(
        paths, "_runtime_folders", lambda: [Path("/proc/nope/fimserver"), Path("/proc/" + "x" * 200)]
    )
    with pytest.raises(InputError, match=r"/proc/nope/fimserver: .*XDG_RUNTIME_DIR"):
        runtime_folder()


def test_a_folder_of_another_user_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(paths.os, "getuid", lambda: os.geteuid() + 1)
    with pytest.raises(InputError, match="another user"):
        private_folder(tmp_path / "x")


@pytest.mark.parametrize("state", ["/dev/null/x", "/proc/nope", "/dev/null"])
def test_without_a_log_folder_there_is_a_host_and_the_problem_has_a_name(tmp_path, monkeypatch, state):
    monkeypatch.setenv("XDG_STATE_HOME", state)
    monkeypatch.setattr("fimserver.front.host_process.sys.executable", "/bin/true")
    assert spawn_host(Settings(), tmp_path / "s").wait(30) == 0
    assert str(log_path("host.log")).startswith(state)
    assert state in log_problem("host.log")
    assert "XDG_STATE_HOME" in log_problem("host.log")


def test_a_log_folder_that_can_be_written_has_no_problem(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert log_problem("host.log") == ""
    assert mode(log_path("host.log").parent) == 0o700


def test_the_host_is_told_where_to_listen(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr(
        "fimserver.front.host_process.subprocess.Popen", lambda command, **_: seen.append(command)
    )
    spawn_host(Settings(ar_card="nano"), tmp_path / "its.sock")
    (command,) = seen
    assert command[command.index("--socket") + 1] == str(tmp_path / "its.sock")
    assert command[command.index("--ar-card") + 1] == "nano"


@pytest.mark.parametrize("given", ["/proc/nope", "/dev/null/x", "/" + "long/" * 25])
def test_the_doctor_says_where_no_host_could_listen(monkeypatch, given):
    monkeypatch.setattr(paths, "_runtime_folders", lambda: [Path(given) / "fimserver"])
    finding = doctor._socket(Settings())
    assert not finding.ok
    assert given.rstrip("/") in finding.value
    assert "XDG_RUNTIME_DIR" in finding.value


def test_the_doctor_tries_a_socket_and_leaves_nothing(tmp_path, temporary, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(temporary))
    finding = doctor._socket(Settings())
    assert (finding.ok, finding.value) == (True, str(socket_path(Settings())))
    assert list((temporary / "fimserver").iterdir()) == []


NO_FOLDERS = ["/dev/null/x", "/proc/nope", "a file"]


@pytest.mark.parametrize("given", NO_FOLDERS)
@pytest.mark.parametrize(
    ("look", "variable"), [(doctor._log, "XDG_STATE_HOME"), (doctor._data, "XDG_DATA_HOME")]
)
def test_the_doctor_calls_a_folder_ok_only_where_it_can_be_written(
    look, variable, given, tmp_path, monkeypatch
):
    (tmp_path / "a file").touch()
    assert look().ok
    place = str(tmp_path / given) if given == "a file" else given
    monkeypatch.setenv(variable, place)
    finding = look()
    assert not finding.ok
    assert place in finding.value
    assert variable in finding.value
