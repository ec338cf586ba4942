"""``serve deploy`` to a running cluster with Ray's own token, as docs/deploy.md describes it."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx2
import pytest

pytest.importorskip("ray", reason="`make ray` installs it into an environment of its own")

from click.testing import CliRunner

from fimserver.cli import main
from tests.deploy.clusters import PATIENCE_S, TOKEN, Load, client_of, until
from tests.hosts import free_port

PROGRAMS = Path(sys.executable).parent
NANO = ("--ar-card", "nano", "--dllm-card", "nano", "--model", "ar")
EMPTY = "proxy_location: EveryNode\nhttp_options: {{host: 127.0.0.1, port: {port}}}\napplications: []\n"


def answers(url):
    try:
        with client_of(url) as client:
            return client.get("/health").status_code == 200
    except httpx2.HTTPError:
        return False


@pytest.fixture
def ray_folder():
    """Short, as sockets are in it; Ray notes there which cluster runs, and other tests are not to find it."""
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        yield folder


@pytest.fixture
def cluster(folders, tmp_path, ray_folder):
    """``ray start`` with a token in the home of its user: the URL of its dashboard, and the environment."""
    (tmp_path / "home").mkdir()
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env |= {"HOME": str(tmp_path / "home"), "RAY_AUTH_MODE": "token", "FIMSERVER_TOKEN": TOKEN}
    env["RAY_TMPDIR"] = ray_folder
    subprocess.run(
        [PROGRAMS / "ray", "get-auth-token", "--generate"], env=env, check=True, capture_output=True
    )
    port, dashboard = free_port(), free_port()
    options = [
        "--head",
        "--port",
        str(port),
        "--dashboard-port",
        str(dashboard),
        "--num-cpus",
        "4",
        "--block",
    ]
    with (tmp_path / "ray.log").open("w") as log:
        program = subprocess.Popen(
            [PROGRAMS / "ray", "start", *options, "--disable-usage-stats"],
            env=env, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        try:
            url = f"http://127.0.0.1:{dashboard}"
            until(lambda: asks_for_a_token(url))
            yield url, env
        finally:
            program.send_signal(signal.SIGTERM)
            program.wait(PATIENCE_S)


def asks_for_a_token(url):
    try:
        return httpx2.get(f"{url}/api/serve/applications/", trust_env=False).status_code == 401
    except httpx2.HTTPError:
        return False


def deployed(file, cluster):
    url, env = cluster
    words = [PROGRAMS / "serve", "deploy", str(file), "-a", url]
    return subprocess.run(words, env=env, capture_output=True, text=True, check=False)


def test_a_file_is_deployed_with_rays_token_and_taken_away_without_an_answer_lost(cluster, tmp_path):
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    file = tmp_path / "fimserver.yaml"
    options = ("--listen", f"127.0.0.1:{port}", "--gpus", "0", "--max-replicas", "1", *NANO)
    assert CliRunner().invoke(main, ["deploy", "init", str(file), *options]).exit_code == 0
    without = {name: value for name, value in cluster[1].items() if name != "RAY_AUTH_MODE"}
    assert "Unauthorized" in deployed(file, (cluster[0], without)).stderr
    done = deployed(file, cluster)
    assert done.returncode == 0, done.stderr
    until(lambda: answers(url))
    assert httpx2.get(f"{url}/health", trust_env=False).status_code == 401  # fimserver's own token
    empty = tmp_path / "empty.yaml"
    empty.write_text(EMPTY.format(port=port))
    with Load(url, 4) as load:
        load.until_more()
        assert deployed(empty, cluster).returncode == 0
        load.until(lambda found: any(answer.status == 404 for answer in found))
    print(f"\nanswers while the application was taken away: {load.counts()}")
    assert set(load.counts()) == {200, 404}
    assert len({answer.text for answer in load.answers if answer.status == 200}) == 1
