"""The ar route against transformers' own generate, and against itself with every kind of reuse."""

import dataclasses
import random
import time

import pytest
import torch

from fimserver.engine.engines import make_ar
from fimserver.engine.load import load
from fimserver.engine.runtime import DraftContext, make_runtime
from fimserver.engine.speculation.drafts import ScriptedDrafter
from fimserver.errors import NonFiniteError
from fimserver.reasons import Reason
from fimserver.settings import Settings
from fimserver.types import Deadline, Request, Sampling
from tests.tiny import CONFIGS, make_card, make_checkpoint

CODE = '''import os


def read(path):
    """Read a file."""
    with open(path) as file:
        return file.read()


def write(path, text):
    with open(path, "w") as file:
        file.write(text)
'''
REQUEST = Request(CODE[:90], CODE[110:], sampling=Sampling(max_tokens=24, stop="none"))


def tokens_of(engine, request):
    """Ids that the engine chose, in order, and its chunks."""
    watcher = ScriptedDrafter()
    drafters, engine.speculation.drafters = engine.speculation.drafters, (watcher,)
    chunks = list(engine.complete(request, Deadline()))
    engine.speculation.drafters = drafters
    return watcher.seen, chunks


def text_of(engine, request, deadline=None):
    return "".join(chunk.text for chunk in engine.complete(request, deadline or Deadline()))


def generated(model, engine, request):
    """What transformers makes of the same prompt."""
    prompt = torch.tensor([engine.prompt(request)])
    output = model.generate(
        prompt,
        do_sample=False,
        max_new_tokens=request.sampling.max_tokens,
        eos_token_id=sorted(engine.stops),
        pad_token_id=0,
    )
    return output[0, prompt.shape[1] :].tolist()


def assert_equals_generate(model, engine, request):
    ours, chunks = tokens_of(engine, request)
    theirs = generated(model, engine, request)
    theirs = theirs[:-1] if theirs[-1] in engine.stops else theirs
    assert engine.vocabulary.decode(theirs).rstrip("\ufffd") == "".join(c.text for c in chunks)
    assert theirs == ours
    assert len(theirs) == chunks[-1].tokens


@pytest.mark.parametrize("architecture", sorted(CONFIGS))
@pytest.mark.parametrize("network", ["native", "auto"])
def test_greedy_equals_generate_on_random_checkpoints(architecture, network, tmp_path):
    loaded = load(
        make_card(architecture), make_checkpoint(tmp_path / "tiny", architecture), torch.device("cpu")
    )
    settings = Settings(network=network)
    engine = make_ar(DraftContext(make_runtime(loaded, settings), settings))
    for cut in (0, 40, 90):
        request = dataclasses.replace(REQUEST, prefix=CODE[:cut], suffix=CODE[cut + 20 :])
        assert_equals_generate(loaded.model, engine, request)


@pytest.mark.parametrize("cut", [0, 5, 60, 90, 150, len(CODE)])
def test_greedy_equals_generate_on_nano(cut, nano):
    model = nano.runtime(nano.card("ar")).loaded.model
    request = Request(CODE[:cut], CODE[cut:], sampling=Sampling(max_tokens=32, stop="none"))
    assert_equals_generate(model, nano.engine("ar"), request)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_reuse_after_edits_anywhere_changes_nothing(temperature, nano):
    """Warm cache, any edit: the same text as from an empty cache."""
    rng = random.Random(7)
    engine, cache = nano.engine("ar"), nano.engine("ar").cache
    text = CODE * 3
    for _ in range(12):
        at = rng.randrange(len(text))
        text = text[:at] + rng.choice(["x", "\n", "    return", "", "é"]) + text[at + rng.randrange(4) :]
        cursor = rng.randrange(len(text))
        request = Request(
            text[:cursor],
            text[cursor:],
            sampling=Sampling(max_tokens=6, temperature=temperature, seed=3, stop="none"),
        )
        warm = text_of(engine, request)
        cache.clear()
        assert text_of(engine, request) == warm


def test_logits_are_the_same_bits_warm_and_cold(nano):
    cache = nano.engine("ar").cache
    prompt = nano.engine("ar").prompt(REQUEST)
    for shared in (0, 1, 63, 64, 65, len(prompt) - 1, len(prompt)):
        cache.clear()
        cold = cache.prefill(prompt, Deadline(), want_logits=True)
        cache.clear()
        cache.prefill([*prompt[:shared], 99, 98, 97], Deadline(), want_logits=False)
        warm = cache.prefill(prompt, Deadline(), want_logits=True)
        assert torch.equal(cold, warm)


def test_a_row_does_not_depend_on_its_place_or_its_neighbours(nano):
    """What speculation will rest on: row 0 and row 5 of a pass give the same bits for the same token and position."""
    engine, cache = nano.engine("ar"), nano.engine("ar").cache
    prompt = engine.prompt(REQUEST)
    chain = [300 + i for i in range(13)]

    def logits(start, ids):
        rows = torch.arange(8)
        return cache.rows(ids, len(prompt) + start, cache.causal(len(prompt) + start, 8), rows)

    cache.prefill(prompt, Deadline(), want_logits=False)
    together = logits(0, chain[:8])
    one_by_one = [logits(i, [chain[i]] + [0] * 7)[0] for i in range(8)]
    assert torch.equal(together, torch.stack(one_by_one))


def test_typing_at_the_end_of_the_prefix_costs_one_prefill_pass(nano):
    engine = nano.engine("ar")
    list(engine.complete(REQUEST, Deadline()))
    before = engine.cache.forwards
    typed = dataclasses.replace(REQUEST.with_sampling(max_tokens=1), prefix=REQUEST.prefix + "x")
    list(engine.complete(typed, Deadline()))
    assert engine.cache.forwards - before <= 2


def test_seed_decides_the_sample(nano):
    engine = nano.engine("ar")
    samples = {
        text_of(
            engine,
            REQUEST.with_sampling(temperature=1.0, seed=s),
        )
        for s in range(5)
    }
    again = {
        text_of(
            engine,
            REQUEST.with_sampling(temperature=1.0, seed=s),
        )
        for s in range(5)
    }
    assert samples == again
    assert len(samples) > 1


def test_cancel_and_deadline_stop_at_the_next_pass(nano, monkeypatch):
    engine = nano.engine("ar")
    monkeypatch.setattr(engine, "stops", frozenset())  # whatever the weights think, it goes on
    deadline = Deadline()
    chunks = []
    for chunk in engine.complete(REQUEST, deadline):
        chunks.append(chunk)
        if len(chunks) == 3:
            deadline.cancelled.set()
    assert chunks[-1].reason is Reason.CANCELLED
    assert chunks[-1].forwards == chunks[2].forwards
    late = list(engine.complete(REQUEST, Deadline(expires_s=time.monotonic())))
    assert [c.reason for c in late] == [Reason.DEADLINE]
    assert late[0].forwards == 0


def test_an_interrupted_prefill_leaves_a_good_cache(nano):
    engine, cache = nano.engine("ar"), nano.engine("ar").cache
    want = text_of(engine, REQUEST)
    cache.clear()

    class Twice:
        left = 2

        def spent(self):
            self.left -= 1
            return Reason.CANCELLED if self.left < 0 else None

    list(engine.complete(REQUEST, Twice()))
    assert text_of(engine, REQUEST) == want


def test_a_pass_that_fails_leaves_no_lie_in_the_cache(nano, monkeypatch):
    """Out of memory half way through the layers: the next request computes what was torn."""
    engine, cache = nano.engine("ar"), nano.engine("ar").cache
    want = text_of(engine, REQUEST)
    other = dataclasses.replace(REQUEST, prefix="import sys\n" + REQUEST.prefix)
    text_of(engine, other)
    original = cache.kv.update

    def torn(keys, values, layer, *rest):
        if layer == 3:
            raise RuntimeError("out of memory")
        return original(keys, values, layer, *rest)

    monkeypatch.setattr(cache.kv, "update", torn)
    with pytest.raises(RuntimeError):
        text_of(engine, REQUEST)
    monkeypatch.undo()
    assert text_of(engine, other) != ""
    assert text_of(engine, REQUEST) == want


def test_nan_is_an_error_and_never_text(nano, monkeypatch):
    engine = nano.engine("ar")

    def prefilling(*_, **__):
        return torch.full((8192,), torch.nan)
        yield

    monkeypatch.setattr(engine.cache, "prefilling", prefilling)
    with pytest.raises(NonFiniteError):
        list(engine.complete(REQUEST, Deadline()))
