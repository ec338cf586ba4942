"""``fimserver serve --ray``, and ``serve run`` of a written file, as separate processes."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx2
import psutil
import pytest

pytest.importorskip("ray", reason="`make ray` installs it into an environment of its own")

from fimserver.cli import main
from fimserver.host.http.second_try import RAY_VARIABLE
from tests.deploy.clusters import LONG, PATIENCE_S, TOKEN, ask, client_of, read, until
from tests.hosts import free_port

NANO = ("--ar-card", "nano", "--dllm-card", "nano", "--model", "ar")


@pytest.fixture
def begun(folders):
    """Start a program; what still runs at the end is stopped."""
    programs = []

    def begin(*command):
        env = os.environ | {"FIMSERVER_TOKEN": TOKEN}
        env.pop(RAY_VARIABLE, None)  # `serve --ray` sets it itself
        programs.append(subprocess.Popen(command, env=env, start_new_session=True))
        return programs[-1]

    yield begin
    for program in programs:
        if program.poll() is None:
            program.send_signal(signal.SIGTERM)
            program.wait(PATIENCE_S)


def answers(url, program):
    assert program.poll() is None, "it ended"
    try:
        with client_of(url) as client:
            return client.get("/health").status_code == 200
    except httpx2.HTTPError:
        return False


def ready(url, program):
    end = time.monotonic() + PATIENCE_S
    while not answers(url, program):
        assert time.monotonic() < end
        time.sleep(0.2)


def accepted(client):
    """Requests that the one replica has had so far."""
    lines = client.get("/metrics").text.splitlines()
    names = ("fimserver_choices_total", "fimserver_running", "fimserver_waiting")
    return sum(float(line.split()[-1]) for line in lines if line.startswith(names))


def test_serve_that_is_told_to_end_while_it_starts_ends(begun):
    port = free_port()
    program = begun(
        *(sys.executable, "-m", "fimserver.cli", "serve", "--ray", "--listen", f"127.0.0.1:{port}", *NANO)
    )
    until(lambda: takes_connections(port))  # Serve has begun, and Ray's handlers are replaced
    program.send_signal(signal.SIGTERM)
    assert program.wait(PATIENCE_S) == 0


def takes_connections(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@pytest.fixture
def one(begun):
    """``serve --ray`` with one replica, and its URL."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    options = ("--ray", "--listen", f"127.0.0.1:{port}", "--max-replicas", "1", *NANO)
    program = begun(sys.executable, "-m", "fimserver.cli", "serve", *options)
    ready(url, program)
    return program, url


@contextlib.contextmanager
def four_asked(url):
    """The answers to four requests, which the replica has accepted in the block; all have come after it."""
    got = []

    def asks(number):
        with client_of(url) as client:
            got.append(read(ask(client, f"document {number}", **LONG), time.monotonic()))

    with client_of(url) as client:
        before = accepted(client)
        threads = [threading.Thread(target=asks, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        until(lambda: accepted(client) >= before + 4)
    yield got
    for thread in threads:
        thread.join(PATIENCE_S)


def test_the_only_replica_dies_and_the_next_one_writes_its_answers(one):
    program, url = one
    with four_asked(url) as got:
        finished = len(got)
        found = psutil.Process(program.pid).children(recursive=True)
        next(each for each in found if "ServeReplica" in " ".join(each.cmdline())).kill()
    print(f"\n{finished} of 4 answers were finished when the replica was killed; {len(got)} came")
    assert [answer.status for answer in got] == [200] * 4
    assert len({answer.text for answer in got}) == 1


def test_serve_ends_after_the_answers_that_are_being_written(one):
    program, url = one
    with four_asked(url) as got:
        finished = len(got)
        program.send_signal(signal.SIGTERM)
    assert program.wait(PATIENCE_S) == 0
    print(f"\n{finished} of 4 answers were finished when it was told to end; {len(got)} came")
    assert [answer.status for answer in got] == [200] * 4
    assert len({answer.text for answer in got}) == 1


def test_a_written_file_is_what_serve_run_takes(begun, tmp_path):
    from click.testing import CliRunner

    port = free_port()
    url = f"http://127.0.0.1:{port}"
    file = tmp_path / "fimserver.yaml"
    secret = tmp_path / "token"
    secret.write_text(TOKEN)
    options = ("--listen", f"127.0.0.1:{port}", "--gpus", "0", "--allow-host", "gpu-box")
    written = CliRunner().invoke(
        main, ["deploy", "init", str(file), *options, "--token-file", str(secret), *NANO]
    )
    assert written.exit_code == 0, written.stderr
    program = begun(str(Path(sys.executable).with_name("serve")), "run", str(file))
    ready(url, program)
    with client_of(url) as client:
        assert read(ask(client, "document"), time.monotonic()).route == "ar"
        assert client.get("/health", headers={"Host": "gpu-box"}).status_code == 200
        assert client.get("/health", headers={"Host": "elsewhere"}).status_code == 403
    assert httpx2.get(f"{url}/health", trust_env=False).status_code == 401
    program.send_signal(signal.SIGTERM)
    program.wait(PATIENCE_S)


def test_ray_takes_the_service_of_kubernetes():
    import yaml
    from ray.serve.schema import ServeDeploySchema

    service = Path(__file__).parents[2] / "examples" / "deploy" / "rayservice.yaml"
    text = yaml.safe_load(service.read_text("utf-8"))["spec"]["serveConfigV2"]
    (application,) = ServeDeploySchema.model_validate(yaml.safe_load(text)).applications
    assert application.import_path == "fimserver.deploy:app"
