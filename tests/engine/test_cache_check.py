"""The cached canvas against the exact one, and the rows that it reports as prefill."""

import dataclasses
import math

import pytest

from fimserver.engine.cache_check import CacheCheck, DecodedCanvas, check_cache, check_prompt_cache
from fimserver.engine.engines import ModelPool
from fimserver.errors import InputError
from fimserver.settings import Settings
from fimserver.types import Deadline, Prefill
from tests.engine.denoising.test_dual_cache import FAMILIES, ONCE, engine_of, folders  # noqa: F401 - fixtures
from tests.engine.test_autoregressive import REQUEST

SHORT = REQUEST.with_sampling(max_tokens=16, stop="none")


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_with_a_refresh_at_every_step_both_are_one(family, engine_of):  # noqa: F811
    check = check_cache(engine_of(family, "checked:1"), SHORT)
    assert check.equal == check.tokens > 0
    assert check.cached.tokens == check.exact.tokens
    assert check.cached.rows >= check.exact.rows > 0
    assert check.drift == 0


def test_what_a_stale_cache_does_is_found(engine_of):  # noqa: F811
    check = check_cache(engine_of("dream", ONCE), SHORT)
    assert check.equal < check.tokens == 8
    assert check.cached.rows < check.exact.rows
    assert check.drift != 0
    again = check_cache(engine_of("dream", ONCE), SHORT)
    assert again.drift == check.drift
    assert again.cached.tokens == check.cached.tokens


def test_a_check_leaves_the_rules_as_they_were(engine_of):  # noqa: F811
    engine = engine_of("dream", "dual:4")
    rules = engine.rules
    check_cache(engine, SHORT)
    assert engine.rules is rules


def test_tokens_are_compared_place_by_place():
    def decoded(text):
        return DecodedCanvas(tuple(text), rows=10, ms=2.0)

    check = CacheCheck(decoded("abcd"), decoded("abxde"), drift=0.3)
    assert (check.equal, check.tokens) == (3, 5)
    assert check.spent(math.inf) == (10, 2.0)
    assert check.spent(0.3) == (10, 2.0)
    assert check.spent(0.29) == (20, 4.0)


def test_a_canvas_has_one_kind_of_cache_or_the_other(engine_of):  # noqa: F811
    nano = ModelPool(Settings()).engine("dllm")
    check = check_prompt_cache(nano, SHORT)
    assert check.equal == check.tokens > 0
    assert check.cached.rows < check.exact.rows
    with pytest.raises(InputError, match="no approximate cache"):
        check_cache(nano, SHORT)
    with pytest.raises(InputError, match="no exact cache"):
        check_prompt_cache(engine_of("dream", "dual"), SHORT)
    with pytest.raises(InputError, match="no approximate cache"):
        check_cache(engine_of("dream", "none"), SHORT)


def test_the_pass_that_reads_the_prompt_is_the_prefill(engine_of):  # noqa: F811
    engine = engine_of("dream", "dual:1000,share=1000")
    left, right = engine._sides(SHORT)
    rows = len(left) + 8 + len(right)
    assert engine.num_uncached_tokens(SHORT) == rows
    cold = list(engine.complete(SHORT, Deadline()))[-1]
    assert cold.prefill[:2] == (rows, 1)
    assert cold.prefill.ms > 0
    assert cold.forwards == 8  # a step each: the first has read the prompt
    typed = dataclasses.replace(SHORT, prefix=SHORT.prefix + "x")
    assert engine.num_uncached_tokens(typed) == 0
    warm = list(engine.complete(typed, Deadline()))[-1]
    assert warm.prefill == Prefill()


def test_after_a_warm_up_nothing_is_left_to_read(engine_of):  # noqa: F811
    engine = engine_of("dream", "dual")
    engine.warm(SHORT, Deadline())
    assert engine.num_uncached_tokens(SHORT) == 0
    assert list(engine.complete(SHORT, Deadline()))[-1].prefill == Prefill()


def test_without_a_cache_there_is_no_prefill(engine_of):  # noqa: F811
    engine = engine_of("dream", "none")
    assert engine.num_uncached_tokens(SHORT) == 0
    assert list(engine.complete(SHORT, Deadline()))[-1].prefill.rows == 0
