"""The sockets of a host: private, unique, taken over from dead hosts, and removed at its end."""

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from functools import partial
from pathlib import Path

import httpx2
import pytest
from click.testing import CliRunner

from fimserver import cli, paths
from fimserver.errors import InputError, ModelMissingError
from fimserver.host import listen
from fimserver.host.fake import FakeEngines
from fimserver.host.http.auth import header_name
from fimserver.host.http.state import Host
from fimserver.host.listen import run_host, run_tcp
from fimserver.host.sockets import UnixSocket, bind_tcp, own_names, urls
from fimserver.paths import socket_path
from fimserver.settings import Settings
from tests.hosts import until

PATIENCE_S = 60.0
ROOT = Path(__file__).parent.parent.parent
HOUR_S = 3600.0


def connects(path):
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def client(path):
    transport = httpx2.HTTPTransport(uds=str(path))
    return httpx2.Client(base_url="http://localhost", transport=transport, timeout=PATIENCE_S)


@pytest.fixture
def runtime(monkeypatch):
    """A runtime directory with a short name: with a long one the socket would be made elsewhere."""
    with tempfile.TemporaryDirectory(prefix="fim") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield Path(folder)


class Clock:
    """Seconds that pass only where a test says so; ``looks`` counts who asked for them."""

    def __init__(self):
        self.now_s = 1000.0
        self.looks = 0

    def __call__(self):
        self.looks += 1
        return self.now_s

    def passes(self, seconds):
        """Let time pass, and the host look at it twice."""
        self.now_s += seconds
        seen = self.looks
        until(lambda: self.looks >= seen + 4)


class Hosted:
    """``run_host`` on scripted engines, in a thread. It ends after an hour of its own clock without a request."""

    def __init__(self, monkeypatch, *steps, script=None, load=None):
        engines = FakeEngines(script or (lambda _request, _route: iter(steps)))
        self.clock = Clock()
        monkeypatch.setattr(listen, "Host", partial(Host, clock=self.clock))
        monkeypatch.setattr(listen, "load_models", load or (lambda _: engines))
        self.settings = Settings(idle_exit_minutes=60)
        self.path, self.code = socket_path(self.settings), None
        self._servers, make = [], listen.HttpServer
        monkeypatch.setattr(
            listen, "HttpServer", lambda config: self._servers.append(make(config)) or self._servers[-1]
        )
        self._thread = threading.Thread(target=self._run)

    def _run(self):
        self.code = run_host(self.settings)

    def __enter__(self):
        self._thread.start()
        until(lambda: connects(self.path))
        return self

    def __exit__(self, *_):
        self._servers[0].should_exit = True
        self.ends()

    def ends(self):
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        return self.code


def test_only_this_user_can_reach_it(runtime, monkeypatch):
    mask = os.umask(0)
    try:
        with Hosted(monkeypatch) as hosted, client(hosted.path) as http:
            assert http.get("/v1/models").status_code == 200
            assert stat.S_IMODE(hosted.path.stat().st_mode) == 0o600
            assert stat.S_IMODE(hosted.path.parent.stat().st_mode) == 0o700
            assert hosted.path.parent.parent == runtime
            assert os.umask(0) == 0  # as it was
    finally:
        os.umask(mask)
    assert not hosted.path.exists()


def test_a_folder_that_others_may_enter_is_closed_to_them(runtime, monkeypatch):
    (runtime / "fimserver").mkdir(mode=0o777)
    (runtime / "fimserver").chmod(0o777)
    with Hosted(monkeypatch) as hosted:
        assert stat.S_IMODE(hosted.path.parent.stat().st_mode) == 0o700


def test_a_folder_of_another_user_is_refused(runtime, monkeypatch):
    monkeypatch.setattr(paths.os, "getuid", lambda: os.geteuid() + 1)
    with pytest.raises(InputError, match="XDG_RUNTIME_DIR"):
        run_host(Settings())


def test_a_second_host_leaves_at_once(runtime, monkeypatch):
    with Hosted(monkeypatch) as hosted:
        assert run_host(hosted.settings) == 0
        assert connects(hosted.path)


def test_other_models_mean_another_host(runtime):
    assert (
        socket_path(Settings(ar_card="nano"))
        != socket_path(Settings())
        == socket_path(Settings(max_tokens=7))
    )


def test_a_path_that_no_socket_can_have_is_said(runtime):
    with pytest.raises(InputError, match="XDG_RUNTIME_DIR"):
        run_host(Settings(), runtime / ("s" * 200))


def test_models_came_so_an_idle_host_makes_way(runtime, monkeypatch):
    with Hosted(monkeypatch) as hosted:
        with client(hosted.path) as http:
            assert http.get("/v1/models").status_code == 200
        hosted.clock.passes(listen.CHANGED_EXIT_S + 1)
        assert connects(hosted.path)
        paths.models_changed()
        assert hosted.ends() == 0
    assert not hosted.path.exists()


def test_nobody_uses_it_so_it_goes(runtime, monkeypatch):
    with Hosted(monkeypatch) as hosted:
        hosted.clock.passes(HOUR_S - 1)
        assert connects(hosted.path)
        hosted.clock.now_s += 1
        assert hosted.ends() == 0
    assert not hosted.path.exists()


def test_it_stays_while_it_is_used(runtime, monkeypatch):
    begun, free = threading.Event(), threading.Event()

    def script(_request, _route):
        yield "x"
        begun.set()
        assert free.wait(PATIENCE_S)
        yield "y"

    with Hosted(monkeypatch, script=script) as hosted, client(hosted.path) as http:
        texts = []

        def asks():
            answer = http.post("/v1/completions", json={"prompt": "a"}).json()
            texts.append(answer["choices"][0]["text"])

        thread = threading.Thread(target=asks)
        thread.start()
        assert begun.wait(PATIENCE_S)
        hosted.clock.passes(3 * HOUR_S)
        free.set()
        thread.join(PATIENCE_S)
        assert texts == ["xy"]
        assert hosted.ends() == 0


def test_a_lost_device_ends_the_process_with_a_code_of_its_own(runtime, monkeypatch):
    with (
        Hosted(monkeypatch, RuntimeError("CUDA error: unspecified launch failure")) as hosted,
        client(hosted.path) as http,
    ):
        answer = http.post("/v1/completions", json={"prompt": "a"}).json()
        assert answer["fimserver"][0]["reason"] == "failed"
        assert hosted.ends() == listen.DEVICE_LOST == 3


def test_going_answers_who_still_waits(runtime, monkeypatch):
    with (
        Hosted(monkeypatch, *[part for _ in range(2000) for part in ("x", 0.005)]) as hosted,
        client(hosted.path) as http,
    ):
        reasons = []

        def asks():
            reasons.append(
                http.post("/v1/completions", json={"prompt": "a"}).json()["fimserver"][0]["reason"]
            )

        thread = threading.Thread(target=asks)
        thread.start()
        with client(hosted.path) as other:
            until(lambda: "fimserver_running 1.0" in other.get("/metrics").text)
        hosted._servers[0].should_exit = True
        assert hosted.ends() == 0
        thread.join(PATIENCE_S)
        assert reasons == ["cancelled"]


@pytest.mark.parametrize(
    "address", ["8765x", "x", "127.0.0.1:", "127.0.0.1:99999", "127.0.0.1:-1", "a..b:80", "192.0.2.1:0"]
)
def test_an_address_that_cannot_be_listened_on_is_said(address):
    with pytest.raises(InputError, match="--listen"):
        run_tcp(Settings(), address, "t", frozenset())


@pytest.mark.parametrize(
    ("address", "extra", "names"),
    [
        ("127.0.0.1:0", [], set()),
        (":0", [], set()),
        ("localhost:0", ["Box.Local"], {"box.local"}),
    ],
)
def test_names_by_which_it_may_be_called(address, extra, names, monkeypatch):
    seen = {}

    def serve(_settings, listener, **how):
        listener.close()
        seen.update(how)
        return 0

    monkeypatch.setattr(listen, "_serve", serve)
    assert run_tcp(Settings(), address, "t", frozenset(extra)) == 0
    allowed = {"localhost", "127.0.0.1", "::1"} | names
    assert seen == {"token": "t", "allowed_hosts": allowed, "token_file": None}


@pytest.mark.parametrize("given", ["", "of mine"])
def test_serve_never_runs_without_a_token(given, monkeypatch):
    seen = []

    def run_tcp(_settings, *how, token_file):
        assert token_file is None
        seen.append(how[:-1])
        how[-1](("http://127.0.0.1:1",))  # the address is ours
        return 0

    monkeypatch.setattr(listen, "run_tcp", run_tcp)
    monkeypatch.setenv("FIMSERVER_TOKEN", given)
    result = CliRunner().invoke(cli.main, ["serve", "--listen", "127.0.0.1:1", "--allow-host", "box"])
    assert result.exit_code == 0
    ((address, token, hosts),) = seen
    assert (address, hosts) == ("127.0.0.1:1", {"box"})
    assert token == given or (not given and len(token) >= 32)
    assert (token in result.stdout) is not given


@pytest.mark.parametrize("lost", ["socket", "socket and lock", "folder", "replaced by a file"])
def test_a_host_whose_socket_is_gone_binds_again(runtime, monkeypatch, lost):
    monkeypatch.setattr(listen, "SOCKET_CHECK_S", 0.05)
    with Hosted(monkeypatch, "x") as hosted:
        if lost == "folder":
            shutil.rmtree(hosted.path.parent)
        else:
            hosted.path.unlink()
        if lost == "socket and lock":
            hosted.path.with_suffix(".lock").unlink()
        if lost == "replaced by a file":
            hosted.path.touch()
        until(lambda: connects(hosted.path))
        with client(hosted.path) as http:
            assert http.post("/v1/completions", json={"prompt": "a"}).json()["choices"][0]["text"] == "x"
        assert stat.S_IMODE(hosted.path.stat().st_mode) == 0o600
        assert run_host(hosted.settings) == 0  # it has the lock still, or again
    assert not hosted.path.exists()


@pytest.mark.parametrize("ends", ["by itself", "by a signal"])
def test_a_host_never_removes_the_socket_of_another(runtime, monkeypatch, ends):
    monkeypatch.setattr(listen, "SOCKET_CHECK_S", 0.05 if ends == "by itself" else HOUR_S)
    with Hosted(monkeypatch) as old:
        shutil.rmtree(old.path.parent)
        heir = UnixSocket(old.path)
        assert heir.acquire()
        with heir.bind() as listener:
            listener.listen()
            if ends == "by a signal":
                old._servers[0].should_exit = True
            assert old.ends() == 0
            assert connects(old.path)
            heir.close()


def test_a_host_without_a_model_says_why_for_a_while_and_goes(runtime, monkeypatch):
    def load(_):
        raise ModelMissingError("get it")

    with Hosted(monkeypatch, load=load) as hosted:
        with client(hosted.path) as http:
            until(lambda: http.get("/health").json()["status"] == "no_model")
        hosted.clock.passes(listen.USELESS_EXIT_S - 1)
        assert connects(hosted.path)
        hosted.clock.now_s += 1
        assert hosted.ends() == 0


def test_a_card_that_does_not_exist_is_told_before_torch_is_loaded():
    code = (
        "from fimserver.host.listen import load_models\nfrom fimserver.settings import Settings\nimport sys\n"
    )
    code += "try:\n    load_models(Settings(ar_card='nope'))\nexcept Exception as error:\n    print(error, 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert "nope" in done.stdout
    assert done.stdout.strip().endswith("False")


@pytest.mark.parametrize(
    ("address", "name", "shown"),
    [
        ("127.0.0.1:0", "127.0.0.1", ["http://127.0.0.1:{}"]),
        (":0", "127.0.0.1", ["http://127.0.0.1:{}"]),
        ("0", "127.0.0.1", ["http://127.0.0.1:{}"]),
        ("localhost:0", "localhost", ["http://localhost:{}"]),
        ("[::1]:0", "::1", ["http://[::1]:{}"]),
        ("::1:0", "::1", ["http://[::1]:{}"]),
        ("0.0.0.0:0", "0.0.0.0", ["http://127.0.0.1:{}", f"http://{socket.gethostname().lower()}:{{}}"]),  # noqa: S104
        ("[::]:0", "::", ["http://[::1]:{}", f"http://{socket.gethostname().lower()}:{{}}"]),
    ],
)
def test_the_addresses_that_are_shown_can_be_used(address, name, shown):
    try:
        listener, got = bind_tcp(address)
    except InputError:
        pytest.skip("no IPv6 here")
    with listener:
        assert got == name
        port = listener.getsockname()[1]
        assert port > 0
        assert list(urls(listener, name)) == [url.format(port) for url in shown]
        for url in urls(listener, name):
            assert header_name(url.removeprefix("http://")) in own_names(name)


# Real processes, with the real nano model where there is one.


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-P", *arguments], cwd="/", env=os.environ | {"PYTHONPATH": str(ROOT)}
    )


def kill(process):
    process.kill()
    process.wait()


def test_a_host_that_was_killed_is_taken_over(runtime):
    path, verb = socket_path(Settings(threads=1)), ["-m", "fimserver.cli", "host"]
    dead = start(*verb)
    until(lambda: connects(path))
    kill(dead)
    assert path.exists()
    assert not connects(path)
    heir = start(*verb)
    try:
        until(lambda: connects(path))
        assert start(*verb).wait(PATIENCE_S) == 0
        assert connects(path)
    finally:
        kill(heir)


NEVER_ENDS = """
import itertools, sys
from fimserver.host import listen
from fimserver.host.fake import FakeEngines
from fimserver.settings import Settings
from tests.hosts import until

def words(request, route):
    for _ in itertools.count():
        yield 0.005
        yield "x"

listen.load_models = lambda settings: FakeEngines(words)
sys.exit(listen.run_host(Settings()))
"""


def test_a_signal_ends_it_while_it_generates(runtime):
    path = socket_path(Settings())
    process = start("-c", NEVER_ENDS)
    try:
        until(lambda: connects(path))
        with client(path) as http:
            until(lambda: http.get("/health").status_code == 200)
            with http.stream("POST", "/v1/completions", json={"prompt": "", "stream": True}) as response:
                lines = response.iter_lines()
                assert next(lines)
                process.send_signal(signal.SIGTERM)
                assert '"reason":"cancelled"' in [line for line in lines if line][-2]
        assert process.wait(PATIENCE_S) == 0
    finally:
        kill(process)
    assert not path.exists()


LISTENS_FIRST = """
import socket, sys
from fimserver.host import listen
from fimserver.host.fake import FakeEngines
from fimserver.settings import Settings
from tests.hosts import until

def load_models(settings):
    with socket.socket(socket.AF_UNIX) as probe:
        print("connects", probe.connect_ex(str(listen.socket_path(settings))) == 0)
    print("torch", "torch" in sys.modules, "transformers" in sys.modules)
    return FakeEngines()

listen.load_models = load_models
sys.exit(listen.run_host(Settings(idle_exit_minutes=0.001)))
"""


def test_it_listens_before_torch_is_imported(runtime):
    done = subprocess.run(
        [sys.executable, "-P", "-c", LISTENS_FIRST],
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["connects True", "torch False False"]
