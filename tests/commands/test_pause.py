"""A pause over HTTP and from the command line, of hosts on scripted engines."""

import httpx2
import pytest
from click.testing import CliRunner

from fimserver import cli
from tests.host.test_listen import Hosted, client, runtime, until
from tests.hosts import ScriptedHost

assert runtime  # a fixture


def state(http):
    return http.get("/health").json()["status"]


@pytest.fixture
def http():
    with ScriptedHost() as host:
        host.says("x")
        with httpx2.Client(base_url=host.url, trust_env=False, timeout=30) as http:
            until(lambda: state(http) == "ok")
            yield http


@pytest.mark.parametrize("content", [b"", b"{}", b'{"minutes": 5}', b'{"minutes": null}'])
def test_a_pause_and_its_end_over_http(http, content):
    answer = http.post("/v1/pause", content=content).json()
    assert (answer["status"], answer["minutes"]) == ("paused", 5 if b"5" in content else 10)
    until(lambda: state(http) == "paused")
    assert "ask explicitly" in http.get("/health").json()["error"]["message"]
    told = http.post("/v1/completions", json={"prompt": "a"}).json()
    assert (told["choices"][0]["text"], told["fimserver"][0]["reason"]) == ("", "paused")
    assert told["error"]["message"]
    assert http.post("/v1/resume").json()["status"] in {"paused", "loading", "ok"}
    until(lambda: state(http) == "ok")
    assert http.post("/v1/completions", json={"prompt": "a"}).json()["choices"][0]["text"] == "x"


def test_an_explicit_request_ends_a_pause(http):
    http.post("/v1/pause")
    until(lambda: state(http) == "paused")
    answer = http.post("/v1/completions", json={"prompt": "a", "fimserver": {"explicit": True}}).json()
    assert answer["choices"][0]["text"] == "x"


@pytest.mark.parametrize(
    "content", [b'{"minutes": 0}', b'{"minutes": 1e9}', b'{"minutes": "x"}', b"[]", b"{"]
)
def test_a_limit_that_makes_no_sense_is_refused(http, content):
    assert http.post("/v1/pause", content=content).status_code == 400
    assert state(http) == "ok"


def test_the_commands_reach_every_host_of_this_user(runtime, monkeypatch):
    def run(*arguments):
        result = CliRunner().invoke(cli.main, arguments)
        assert result.exit_code == 0, result.output
        return result.output

    assert run("pause") == run("resume") == "no host is running\n"
    with Hosted(monkeypatch, "x") as hosted, client(hosted.path) as http:
        (hosted.path.parent / "host-dead.sock").touch()
        until(lambda: state(http) == "ok")
        assert run("pause", "--minutes", "3") == f"{hosted.path.stem}: paused for 3 minutes at most\n"
        until(lambda: state(http) == "paused")
        assert run("resume") == f"{hosted.path.stem}: loading its models again\n"
        until(lambda: state(http) == "ok")
    assert CliRunner().invoke(cli.main, ["pause", "--minutes", "0"]).exit_code == 2
