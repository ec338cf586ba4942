"""A model on another server, in the commands: completions, doctor, comparisons."""

import json

import pytest
from click.testing import CliRunner

from fimserver.ab.arms.open import open_arms
from fimserver.ab.items.spans import Span
from fimserver.cli import main
from fimserver.reasons import Reason
from tests.servers_elsewhere import PlayedServer, sse

CODER = "Qwen/Qwen2.5-Coder-7B"
MODELS = (200, {"object": "list", "data": [{"id": CODER, "object": "model", "owned_by": "vllm"}]})
SPAN = Span("1", "box.py", "line", "python", "self.width = width\nself.height = ", "height", "\n")


def playing(text):
    """vLLM with a coder that always writes one text."""
    words = [{"choices": [{"index": 0, "text": text, "finish_reason": None}]}]
    last = {"choices": [{"index": 0, "text": "", "finish_reason": "stop"}]}
    return PlayedServer({"/v1/models": MODELS, "/v1/completions": [sse(*words, last, "[DONE]")]})


def doctor(url):
    options = ["--ar-card", url, "--dllm-card", "nano", "--device", "cpu", "--json"]
    result = CliRunner().invoke(main, ["doctor", *options], catch_exceptions=False)
    return result.exit_code, {line["name"]: line for line in json.loads(result.stdout)}


@pytest.mark.parametrize(("text", "code", "verdict"), [("height", 0, "right answer"), ("depth", 1, "WRONG")])
def test_doctor_asks_for_a_known_middle_and_says_what_the_server_is(text, code, verdict):
    with playing(text) as server:
        exit_code, found = doctor(server.url)
    assert exit_code == code
    assert found["ar"]["ok"] is (code == 0)
    assert server.url in found["ar"]["value"]
    assert CODER in found["ar"]["value"]
    assert verdict in found["ar"]["value"]
    assert "that server makes its own drafts" in found["drafters"]["value"]


def test_doctor_says_that_nobody_is_there():
    with playing("height") as server:
        url = server.url
    exit_code, found = doctor(url)
    assert exit_code == 1
    assert url in found["ar"]["value"]


def test_a_comparison_takes_a_foreign_server_by_its_url():
    with playing("height") as server:
        here, there = open_arms(("dllm", server.url), {"dllm_card": "nano", "device": "cpu", "max_tokens": 8})
        filled = there.fill(SPAN, warm=False)
        assert filled.text == "height"
        assert filled.usage.route == "ar"
        assert filled.usage.reason in {Reason.END, Reason.LINE}
        assert there.arm.models["ar"].startswith("qwen2.5-coder-7b") or CODER in there.arm.models["ar"]
        assert here.fill(SPAN, warm=False).usage.model == "nano"
        for arm in (here, there):
            arm.close()


def test_a_choice_between_here_and_there_sends_no_sample_prompts():
    """The policy of a comparison learns a server's speed from the spans alone."""
    with playing("height") as server:
        flags = {"ar_card": server.url, "dllm_card": "nano", "device": "cpu", "max_tokens": 8}
        arm, other = open_arms(("auto", "dllm"), flags)
        assert not [asked for asked in server.asked if asked[0] == "/v1/completions"]
        arm.close()
        other.close()
