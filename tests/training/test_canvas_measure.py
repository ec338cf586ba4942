"""The measurement of a canvas adapter in the engine: plain decoding equals itself, and drafts change no text."""

from dataclasses import replace

import pytest

from fimserver.types import Sampling
from models.training.canvas_measure import engines, plain, requests, run
from tests.engine.forward.test_adapter import folder, runtime_of  # noqa: F401 - the fixture
from tests.engine.test_autoregressive import CODE

TWELVE = Sampling(max_tokens=12, stop="none")


@pytest.fixture(scope="module")
def runtime(folder):  # noqa: F811
    return runtime_of(folder)


def test_the_arms_of_the_ar_route_write_what_plain_decoding_writes(runtime, tmp_path):
    arms = dict(engines(runtime, {"models_dir": tmp_path}))
    spans = plain(arms["ar none"], list(requests([CODE * 3], 6, TWELVE, seed=1)))
    assert spans
    outcomes = {name: run(name, engine, spans) for name, engine in arms.items()}
    plain_outcome = outcomes["ar none"]
    assert plain_outcome.tokens == sum(span.tokens for span in spans)
    for name in arms:
        if name.startswith("ar "):
            assert outcomes[name].equal == len(spans), name
            assert outcomes[name].tokens == plain_outcome.tokens
    assert outcomes["dllm leftmost:1.0"].equal > 0
    for name in ("dllm checked", "dllm checked:0.005"):
        assert outcomes[name].equal == len(spans)
    assert "a pass" in plain_outcome.line()


def test_what_was_written_is_counted(runtime, tmp_path):
    arms = dict(engines(runtime, {"models_dir": tmp_path}))
    (span, *_) = plain(arms["ar none"], list(requests([CODE * 3], 4, TWELVE, seed=1)))
    wrong = run("ar none", arms["ar none"], [replace(span, middle=span.text + "x")])
    right = run("ar none", arms["ar none"], [replace(span, middle=span.text)])
    assert (wrong.exact, right.exact) == (0, 1)


def test_requests_follow_from_the_seed():
    one, two, other = (list(requests([CODE], 4, TWELVE, seed)) for seed in (1, 1, 2))
    assert one == two != other
