"""Access over TCP: forms of the token, and allowed host names."""

import httpx2
import pytest

from fimserver.errors import InputError
from fimserver.host.http.auth import allowed_name, header_name
from tests.hosts import ScriptedHost

TOKEN = "secret-token"  # noqa: S105 - of a host that lives as long as a test


@pytest.fixture(scope="module")
def host():
    with ScriptedHost(token=TOKEN, allowed_hosts=frozenset({"box"})) as host:
        yield host


def status(host, headers, path="/health"):
    with httpx2.Client(base_url=host.url, trust_env=False) as client:
        return client.get(path, headers={"Host": "box"} | headers)


@pytest.mark.parametrize("written", ["Bearer {}", "bearer {}", "BEARER {}", "Bearer  {}", "bearer\t{}", "{}"])
def test_a_token_is_the_same_however_bearer_is_written(host, written):
    assert status(host, {"Authorization": written.format(TOKEN)}).status_code == 200


@pytest.mark.parametrize(
    "written", ["Bearer", "Basic {}", "Bearer {} x", "Bearer x{}", "Bearer Bearer {}", "Bearer {}é", ""]
)
def test_another_token_is_none(host, written):
    response = status(host, {"Authorization": written.format(TOKEN).encode()})
    assert response.status_code == 401
    assert "FIMSERVER_TOKEN" in response.json()["error"]["message"]
    assert response.headers["www-authenticate"] == "Bearer"
    assert TOKEN not in response.text


@pytest.mark.parametrize("path", ["/x", "/v1/models/x", "/v1/completions"])
def test_without_the_token_nobody_learns_which_addresses_there_are(host, path):
    assert status(host, {}, path).status_code == 401


def test_the_address_that_a_client_reached_us_at_is_a_name_of_ours(host):
    right = {"Authorization": f"Bearer {TOKEN}"}
    port = host.url.rsplit(":", 1)[1]
    assert status(host, right | {"Host": f"127.0.0.1:{port}"}).status_code == 200
    for other in ("192.0.2.1", f"127.0.0.2:{port}", "[::1]", "127.0.0.1.example", "evil"):
        response = status(host, right | {"Host": other})
        assert response.status_code == 403
        assert header_name(other) in response.json()["error"]["message"]
        assert "--allow-host" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("gpu-box", "gpu-box"),
        ("GPU-Box:8765", "gpu-box"),
        ("http://gpu-box", "gpu-box"),
        ("https://gpu-box:8765/", "gpu-box"),
        ("http://[fe80::1]:8765", "fe80::1"),
        ("[fe80::1]", "fe80::1"),
        ("fe80::1", "fe80::1"),
        ("[fe80::1]:80", "fe80::1"),
        ("192.168.1.7:80", "192.168.1.7"),
        (" box.local ", "box.local"),
        ("my_box", "my_box"),
    ],
)
def test_a_name_to_allow_in_every_form(given, name):
    assert allowed_name(given) == name
    bracketed = f"[{name}]:1" if ":" in name else f"{name}:1"
    assert header_name(bracketed) == name


@pytest.mark.parametrize("given", ["", "http://", "a b", "*", "box/path/x", "-", "[", "http://[::1", "ä"])
def test_what_can_be_no_name_is_refused(given):
    with pytest.raises(InputError, match="--allow-host"):
        allowed_name(given)
