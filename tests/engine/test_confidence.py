"""A model's confidence in its middle."""

import math

import pytest
import torch

from fimserver.engine.engines import make_ar
from fimserver.engine.forward.pass_cost import PassCosts, shapes
from fimserver.engine.runtime import DraftContext
from fimserver.engine.speculation.drafts import RandomDrafter
from fimserver.engine.speculation.speculate import Speculation
from fimserver.settings import Settings
from fimserver.types import ROUTES, Deadline, Request, Sampling

PREFIX = "import os\n\n\ndef read(path):\n    with open(path) as file:\n        "
SUFFIX = "\n\n\ndef write(path, text):\n    pass\n"


def request(**sampling):
    return Request(PREFIX, SUFFIX, sampling=Sampling(**{"max_tokens": 16, "stop": "none"} | sampling))


def last(engine, asked):
    return list(engine.complete(asked, Deadline()))[-1]


@pytest.fixture
def engine(nano):
    return make_ar(DraftContext(nano.runtime(nano.card("ar")), Settings(drafter="none")))


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_it_is_the_geometric_mean_of_the_probabilities_of_the_tokens(engine, temperature, monkeypatch):
    states = []
    make = engine.decode_state
    monkeypatch.setattr(engine, "decode_state", lambda *args: states.append(make(*args)) or states[-1])
    found = last(engine, request(temperature=temperature)).confidence
    (state,) = states
    engine.cache.clear()
    log_prob = 0.0
    for place, token in enumerate(state.ids):
        logits = engine.cache.prefill(state.prompt + state.ids[:place], Deadline(), want_logits=True)
        log_prob += torch.log_softmax(logits.float(), -1)[token].item()
    assert found == pytest.approx(math.exp(log_prob / len(state.ids)), rel=1e-4)


def test_drafts_do_not_change_it(engine):
    plain = last(engine, request())
    old = engine.speculation
    drafter = RandomDrafter(3, engine.cache.network.vocab_size)
    engine.speculation = Speculation(
        engine.cache, (drafter,), old.verifier, PassCosts(dict.fromkeys(shapes(3), 1.0))
    )
    drafted = last(engine, request())
    assert drafted.drafting.drafted
    assert drafted.confidence == pytest.approx(plain.confidence, rel=1e-5)


@pytest.mark.parametrize("route", ROUTES)
def test_both_routes_have_one(nano, route):
    chunk = last(nano.engine(route), request())
    assert chunk.tokens
    assert 0 < chunk.confidence <= 1


@pytest.mark.parametrize("route", ROUTES)
def test_it_comes_with_the_last_chunk_alone(nano, route):
    *earlier, chunk = nano.engine(route).complete(request(), Deadline())
    assert all(each.confidence is None for each in earlier)
    assert chunk.confidence is not None
