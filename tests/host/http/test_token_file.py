"""A token for each user: access, changes of the file, and fair scheduling."""

import httpx2
import pytest
from click.testing import CliRunner

from fimserver import cli
from fimserver.errors import InputError
from fimserver.host import listen
from fimserver.host.http.token_file import TokenFile, read_tokens
from tests.hosts import ScriptedHost

LINES = "# the team\nann  one-token\n\nben\ttwo-token\n"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "tokens"
    path.write_text(LINES)
    return path


@pytest.fixture
def host(file):
    with ScriptedHost(allowed_hosts=frozenset({"box"})) as host:
        host.host.token_file = TokenFile(file)
        host.says("one")
        yield host


def asks(host, token, **hints):
    headers = {"Host": "box", "Authorization": f"Bearer {token}"}
    with httpx2.Client(base_url=host.url, trust_env=False, headers=headers) as client:
        return client.post("/v1/completions", json={"prompt": "x", "fimserver": hints})


@pytest.mark.parametrize("token", ["one-token", "two-token"])
def test_each_user_is_let_in(host, token):
    assert asks(host, token).json()["choices"][0]["text"] == "one"


@pytest.mark.parametrize("token", ["x", "ann", "one-toke", "one-token2", "# the team", "é"])
def test_nobody_else_is(host, token):
    headers = {"Host": "box", "Authorization": f"Bearer {token}".encode()}
    with httpx2.Client(base_url=host.url, trust_env=False) as client:
        response = client.post("/v1/completions", json={"prompt": "x"}, headers=headers)
    assert response.status_code == 401
    assert "one-token" not in response.text


def test_a_line_that_goes_shuts_its_user_out_and_one_that_comes_lets_in(host, file):
    file.write_text("ann one-token\ncid three-token\n")
    assert [asks(host, f"{word}-token").status_code for word in ("one", "two", "three")] == [200, 401, 200]


@pytest.mark.parametrize(
    "content", ["", "ann\n", "ann one two\n", "ann x\nben x\n", "ann x\nann y\n", "ä x\n"]
)
def test_a_file_that_becomes_unusable_changes_nothing_and_is_logged(host, file, content, caplog):
    file.write_text(content)
    assert [asks(host, f"{word}-token").status_code for word in ("one", "three")] == [200, 401]
    assert "the tokens read before are kept" in caplog.text
    file.write_text("cid three-token\n")
    assert [asks(host, f"{word}-token").status_code for word in ("one", "three")] == [401, 200]


def test_a_file_that_is_gone_changes_nothing(host, file):
    file.unlink()
    assert asks(host, "one-token").status_code == 200


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "has no line"),
        (b"# ann x\n", "has no line"),
        (b"ann one\nben\n", "line 2"),
        (b"ann one\nben one\n", "line 2"),
        (b"\xff", "not text"),
    ],
)
def test_at_the_start_it_is_refused(tmp_path, content, said):
    path = tmp_path / "tokens"
    path.write_bytes(content)
    with pytest.raises(InputError, match=said):
        read_tokens(path)
    with pytest.raises(InputError, match="No such file"):
        read_tokens(tmp_path / "none")


def test_windows_of_one_name_share_its_turn(host):
    users = []
    submit = host.scheduler.submit

    def watched(job):
        users.append(job.user)
        return submit(job)

    host.scheduler.submit = watched
    for token, session in (("one-token", "a"), ("one-token", "b"), ("two-token", "")):
        asks(host, token, session=session)
    assert users == ["ann", "ann", "ben"]


def test_the_command_line_takes_it(file, monkeypatch):
    seen = []

    def run_tcp(_settings, *how, token_file):
        seen.append(token_file.user("two-token"))
        how[-1](("http://127.0.0.1:1",))
        return 0

    monkeypatch.setattr(listen, "run_tcp", run_tcp)
    result = CliRunner().invoke(cli.main, ["serve", "--token-file", str(file)])
    assert (result.exit_code, result.stdout, seen) == (0, "", ["ben"])
    refused = CliRunner().invoke(cli.main, ["serve", "--ray", "--token-file", str(file)])
    assert refused.exit_code == 2
    assert "--token-file" in refused.stderr
