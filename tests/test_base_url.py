"""Base URLs: which texts are the address of a server."""

import pytest

from fimserver.base_url import base_url


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("http://box:8765/", "http://box:8765"),
        ("http://box/v1", "http://box"),
        ("https://box/fim/v1/", "https://box/fim"),
        (" http://[::1]:80 ", "http://[::1]:80"),
    ],
)
def test_a_final_slash_and_v1_are_left_out(given, url):
    assert base_url(given) == url


@pytest.mark.parametrize(
    "given",
    [
        "",
        "x",
        "box:8765",
        "ftp://box",
        "http://",
        "http://[::1",
        "http://box:abc",
        "http://box:0",
        "http://box?a=1",
    ],
)
def test_what_is_no_address_is_refused(given):
    with pytest.raises(ValueError, match=r".+"):
        base_url(given)
