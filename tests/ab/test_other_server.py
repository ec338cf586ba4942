"""An arm by the URL of another program's server: an engine here asks it in its own dialect."""

import pytest

from fimserver.ab.arms.open import open_arms
from fimserver.errors import OtherServerError
from tests.engine.remote.test_dialects import EXCHANGES
from tests.servers_elsewhere import PlayedServer


def test_a_servers_url_is_an_arm():
    with PlayedServer(EXCHANGES[0].values[0]) as server:
        first, second = open_arms(("ar,card=nano", server.url), {"dllm_card": "nano"})
        assert second.arm.models["ar"].startswith("qwen2.5-coder-7b.at.")
        first.close()
        second.close()


def test_a_server_that_cannot_be_asked_is_told_in_one_line():
    with (
        PlayedServer({"/": (200, {})}) as server,
        pytest.raises(OtherServerError, match="not a fimserver host"),
    ):
        open_arms(("ar,card=nano", server.url), {"dllm_card": "nano"})
