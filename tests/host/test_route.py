"""Which route serves a request, and why."""

import pytest

from fimserver.host.route import choose_route, other
from fimserver.types import Request


@pytest.mark.parametrize(
    ("suffix", "pin", "route"),
    [
        ("", "auto", "dllm"),
        ("\nreturn x", "auto", "dllm"),
        ("  \t\nreturn x", "auto", "dllm"),
        ("\r\nreturn x", "auto", "dllm"),
        (")\n", "auto", "ar"),
        (")", "auto", "ar"),
        ("  ) -> int:\n", "auto", "ar"),
        (")\n", "dllm", "dllm"),
        ("", "ar", "ar"),
    ],
)
def test_code_right_of_the_cursor_decides_unless_a_route_is_asked_for(suffix, pin, route):
    choice = choose_route(Request("f(", suffix), pin)
    assert choice.route == route
    assert (choice.why == "asked for") is (pin != "auto")


def test_the_reason_quotes_nothing():
    assert "canary" not in choose_route(Request("canary", "canary"), "auto").why


def test_there_are_two_routes():
    assert (other("ar"), other("dllm")) == ("dllm", "ar")
