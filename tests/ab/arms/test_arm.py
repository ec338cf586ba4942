"""Specifications of arms, and their requests."""

import pytest

from fimserver.ab.arms.arm import body_of, read_spec, settings_of_arm, without_token
from fimserver.ab.arms.open import open_arms
from fimserver.ab.arms.remote import RemoteArm
from fimserver.ab.items.spans import Span
from fimserver.errors import InputError
from fimserver.host.request import request_of
from fimserver.reasons import Reason
from fimserver.settings import Settings
from tests.hosts import ScriptedHost

SPAN = Span("x.py:line:1", "x.py", "line", "python", "def f(a):\n    ", "return a", "\n\nf(1)\n")
SHORT = {"max_tokens": 8, "device": "cpu"}


@pytest.mark.parametrize(
    ("text", "url", "changes"),
    [
        ("dllm", "", {"model": "dllm"}),
        ("ar,drafter=none", "", {"model": "ar", "drafter": "none"}),
        (" auto , policy=bandit ", "", {"model": "auto", "policy": "bandit"}),
        ("ar,draft-tokens=4", "", {"model": "ar", "draft_tokens": "4"}),
        ("card=dreamon-7b", "", {"dllm_card": "dreamon-7b", "model": "dllm"}),
        ("card=nano", "", {"dllm_card": "nano", "ar_card": "nano"}),
        ("http://box:8765,model=ar,token=t", "http://box:8765", {"model": "ar", "token": "t"}),
        ("https://box", "https://box", {}),
        ("", "", {}),
    ],
)
def test_a_specification(text, url, changes):
    assert read_spec(text) == (text.replace("token=t", "token=…"), url, changes)


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("http://box,token=s3cret,model=ar", "http://box,token=…,model=ar"),
        ("fimserver ab --a 'http://box,token=s3cret' --b ar", "fimserver ab --a 'http://box,token=…' --b ar"),
        ("fimserver ab --token s3cret --b ar", "fimserver ab --token … --b ar"),
        ("fimserver ab --token=s3cret --max-tokens 9", "fimserver ab --token=… --max-tokens 9"),
    ],
)
def test_a_report_never_holds_a_token(line, shown):
    assert without_token(line) == shown


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("diffusion", "'diffusion' is not a route, URL or setting=value"),
        ("ar,drafters=none", "'drafters=none' is not a route"),
        ("ar,drafter", "'drafter' is not a route"),
        ("card=nope", "nope"),
        ("http://box,drafter=none", "set it where the host is started"),
    ],
)
def test_what_is_none(text, said):
    with pytest.raises(InputError, match=said):
        read_spec(text)


def test_an_arm_changes_the_settings_of_the_command():
    settings = settings_of_arm("ar,temperature=0.5", {"max_tokens": 9, "temperature": 0.1})
    assert (settings.model, settings.max_tokens, settings.temperature) == ("ar", 9, 0.5)
    with pytest.raises(InputError, match="temperature"):
        settings_of_arm("ar,temperature=hot", {})
    far = settings_of_arm("http://box,token=t", {})
    assert (far.connect, far.token) == ("http://box", "t")


def test_a_request_is_made_as_an_editor_would():
    settings = Settings(max_tokens=9)
    request = request_of(body_of(SPAN, settings), settings)
    assert (request.prefix, request.suffix, request.sampling.max_tokens, request.path) == (
        SPAN.prefix,
        SPAN.suffix,
        9,
        "x.py",
    )
    assert request.features.language == "python"
    assert request.features.blank_line


class TestHere:
    @pytest.fixture(scope="class")
    def arms(self):
        return open_arms(("dllm", "ar,drafter=none"), SHORT | {"dllm_card": "nano", "ar_card": "nano"})

    def test_both_arms_fill_a_span_and_say_what_it_took(self, arms):
        for arm, route in zip(arms, ("dllm", "ar"), strict=True):
            filled = arm.fill(SPAN, warm=False)
            assert (filled.usage.route, filled.usage.model) == (route, "nano")
            assert arm.arm.models == {route: "nano"}
            assert 0 < filled.first_ms <= filled.answer_ms
            assert filled.usage.prefill.rows > 0

    def test_every_span_starts_from_an_empty_cache_unless_it_is_to_be_warm(self, arms):
        for arm in arms:
            cold = [arm.fill(SPAN, warm=False) for _ in range(2)]
            warm = arm.fill(SPAN, warm=True)
            assert cold[0].usage.prefill.rows == cold[1].usage.prefill.rows >= warm.usage.prefill.rows
            assert cold[0].text == cold[1].text == warm.text

    def test_arms_share_the_weights_and_not_the_engines(self, arms):
        first, second = (arm._models for arm in arms)
        assert first is not second
        assert first._runtimes is second._runtimes

    def test_what_is_called_off_ends(self, arms):
        times = [arm.cancel_ms(SPAN, 1.0) for arm in arms]
        assert all(ms is None or ms >= 0 for ms in times)

    def test_auto_is_calibrated_before_it_chooses(self):
        arm, _ = open_arms(("auto", "dllm"), SHORT)
        filled = arm.fill(SPAN, warm=False)
        assert set(filled.usage.decision.predicted_ms) == {"dllm", "ar"}
        assert "not measured" not in filled.usage.decision.why


class TestElsewhere:
    @pytest.fixture(scope="class")
    def host(self):
        with ScriptedHost(token="secret", allowed_hosts=frozenset({"127.0.0.1"})) as host:
            host.says("x", "y")
            yield host

    @pytest.fixture
    def arm(self, host):
        arm = RemoteArm("", host.url, Settings(model="ar", token="secret"))
        yield arm
        arm.close()

    def opened(self, host, spec):
        return open_arms((f"{host.url},{spec}", "ar"), SHORT)[0]

    def test_a_host_fills_a_span(self, arm, host):
        filled = arm.fill(SPAN, warm=False)
        assert (filled.text, filled.usage.route, filled.usage.reason) == ("xy", "ar", Reason.END)
        assert host.engines.asked[-1].features.blank_line
        assert arm.arm.version

    def test_a_host_is_warmed_by_a_request_of_no_tokens(self, arm, host):
        before = len(host.engines.warmed)
        arm.fill(SPAN, warm=True)
        assert len(host.engines.warmed) == before + 1

    def test_what_a_host_does_when_called_off_cannot_be_seen(self, arm):
        assert arm.cancel_ms(SPAN, 1.0) is None

    def test_a_wrong_token_is_said(self, host):
        with pytest.raises(InputError, match="token is missing or wrong"):
            self.opened(host, "token=wrong")

    def test_a_model_that_is_not_served_is_said(self, host):
        with pytest.raises(InputError, match="temperature"):
            self.opened(host, "token=secret,temperature=9")

    def test_nobody_there_is_said(self):
        with pytest.raises(InputError, match="cannot be reached"):
            open_arms(("http://127.0.0.1:9", "ar"), SHORT)
