"""The prefix cache by its passes: which rows are computed again."""

import contextlib

import pytest
import torch

from fimserver.engine.forward.network import FakeNetwork
from fimserver.engine.forward.prefix_cache import PrefixCache
from fimserver.errors import NonFiniteError
from fimserver.types import Deadline, Request, Sampling


@pytest.fixture
def cache():
    return PrefixCache(FakeNetwork(50, lambda token, position: torch.eye(50)[(token + position) % 50]), 64, 8)


@pytest.mark.parametrize(
    ("first", "second", "passes"),
    [
        (0, 20, 3),  # nothing there
        (20, 20, 1),  # the same prompt: its last chunk, for the logits
        (20, 21, 1),  # one key typed
        (20, 24, 1),
        (20, 25, 2),  # it crosses into the next chunk
        (24, 25, 1),
        (20, 12, 1),  # deleted back
    ],
)
def test_only_chunks_from_the_first_difference_run(first, second, passes, cache):
    cache.prefill(list(range(first)), Deadline(), want_logits=bool(first))
    before = cache.forwards
    logits = cache.prefill(list(range(second)), Deadline(), want_logits=True)
    assert cache.forwards - before == passes
    assert int(logits.argmax()) == (second - 1) + (second - 1)


def test_an_edit_in_the_middle_runs_from_its_chunk(cache):
    cache.prefill(list(range(32)), Deadline(), want_logits=True)
    before = cache.forwards
    cache.prefill([*range(17), 40, *range(18, 32)], Deadline(), want_logits=True)
    assert cache.forwards - before == 2


def test_a_prompt_that_is_there_costs_nothing_without_logits(cache):
    cache.prefill(list(range(20)), Deadline(), want_logits=True)
    before = cache.forwards
    cache.prefill(list(range(20)), Deadline(), want_logits=False)
    assert cache.forwards == before


def test_rows_after_a_shorter_prompt_do_not_count_as_the_longer_one(cache):
    """A canvas after the shorter prompt was written over them."""
    cache.prefill(list(range(24)), Deadline(), want_logits=False)
    cache.prefill(list(range(16)), Deadline(), want_logits=False)
    before = cache.forwards
    cache.prefill(list(range(24)), Deadline(), want_logits=False)
    assert cache.forwards - before == 1


def test_a_block_sees_all_before_it_and_itself(cache):
    assert cache.block(10, 3).shape == (3, 13)
    assert bool(cache.block(10, 3).all())
    assert torch.equal(cache.causal(10, 3).sum(1), torch.tensor([11, 12, 13]))


@pytest.mark.parametrize("route", ["ar", "dllm"])
@pytest.mark.parametrize("row", [3, 500], ids=["of the prompt", "behind it"])
def test_a_row_of_nan_ends_one_answer_and_no_other(route, row, nano):
    """Masked attention multiplies what it may not see by zero, and NaN times zero is NaN."""
    engine = nano.engine(route)
    prefix = "".join(f"WIDTH_{i} = {i}\n" for i in range(20)) + "\n\ndef area(height):\n    return "
    request = Request(prefix, "\n", sampling=Sampling(max_tokens=6))

    def answer():
        return "".join(chunk.text for chunk in engine.complete(request, Deadline()))

    wanted = answer()
    keys, values = engine.cache.kv.layer(0)
    with torch.inference_mode():
        keys[:, row] = values[:, row] = torch.nan
    with contextlib.suppress(NonFiniteError):  # a pass that reads as far as the row
        answer()
    assert answer() == wanted
    engine.cache.wipe()  # other tests use it, too


def test_an_answer_that_is_no_number_leaves_none_behind(nano):
    engine = nano.engine("ar")
    request = Request("def area(height):\n" * 40, "\n", sampling=Sampling(max_tokens=6))
    list(engine.complete(request, Deadline()))
    keys, values = engine.cache.kv.layer(0)
    with torch.inference_mode():
        values[:, 3] = torch.nan
    with pytest.raises(NonFiniteError):
        list(engine.complete(request, Deadline()))
    assert bool(torch.isfinite(keys).all())
    assert bool(torch.isfinite(values).all())
    assert engine.num_uncached_tokens(request) > 200
