"""Length of prompts by the measured speed of prefill and the time of a request, in coarse steps."""

from dataclasses import replace

import pytest

from fimserver.engine.forward.prefix_cache import PrefixCache
from fimserver.engine.kept_costs import MEASURED_STARTS, kept_speed
from fimserver.engine.prompts.prompt_budget import STEPS, PrefillSpeed, PromptBudget, measure_speed
from fimserver.engine.runtime import make_runtime
from fimserver.errors import LoadError
from fimserver.settings import Settings
from fimserver.types import Deadline, Request, Sampling


def flat(row_ms):
    return PrefillSpeed(row_ms, row_ms, 2000)


@pytest.mark.parametrize(
    ("row_ms", "tokens"), [(0.01, 8192), (0.2, 4096), (0.9, 1024), (1.0, 768), (3.0, 512), (50.0, 512)]
)
def test_a_slow_device_reads_less(row_ms, tokens):
    assert PromptBudget(8192, flat(row_ms), 1000.0).tokens() == tokens


def test_a_card_with_a_smaller_limit_is_kept_to_it():
    assert PromptBudget(1800, flat(0.01), 1000.0).tokens() == 1800
    assert PromptBudget(448, flat(50.0), 1000.0).tokens() == 448


def test_without_a_speed_the_limit_holds():
    assert PromptBudget(2048).tokens(10.0) == 2048


def test_a_request_with_little_time_reads_less_and_one_with_much_does_not_read_more():
    budget = PromptBudget(8192, flat(0.5), 1000.0)
    assert budget.tokens() == budget.tokens(5000.0) == budget.tokens(2000.0) == 1536
    assert budget.tokens(800.0) == 1024
    assert budget.tokens(1.0) == STEPS[0]


def test_what_a_debounce_takes_of_the_time_does_not_move_the_cuts():
    budget = PromptBudget(8192, flat(0.9), 1000.0)
    assert {budget.tokens(2000.0 - wait) for wait in range(0, 600, 7)} == {budget.tokens()}


def test_rows_at_the_end_of_a_long_prompt_cost_more():
    speed = PrefillSpeed(0.5, 1.5, 1000)
    assert speed.ms(1000) == pytest.approx(1000.0)
    assert speed.ms(2000) == pytest.approx(3000.0)
    assert PrefillSpeed(0.5, 0.4, 1000).ms(1000) == pytest.approx(500.0)  # noise, not a gain


def test_measuring_runs_chunks_and_leaves_an_empty_cache(nano):
    cache = nano.runtime(nano.card("ar")).cache
    before = cache.forwards
    speed = measure_speed(cache)
    assert 0 < cache.forwards - before <= 6
    assert min(speed.first_ms, speed.last_ms) > 0
    assert cache.num_uncached_tokens([1, 2, 3]) == cache.chunk


@pytest.mark.parametrize(("splits", "rows"), [(False, 64), (True, 128)])
def test_what_is_measured_are_passes_as_a_prompt_is_read_in(nano, splits, rows, monkeypatch):
    network = nano.runtime(nano.card("ar")).network
    cache = PrefixCache(network, 256, 64, splits=splits)
    read = []
    original = cache._read
    monkeypatch.setattr(
        cache, "_read", lambda ids, piece, **n: (read.append(piece), original(ids, piece, **n))[1]
    )
    assert measure_speed(cache).at == 256 - rows
    assert read == [range(rows)] * 2 + [range(256 - rows, 256)] * 2


@pytest.fixture
def large(nano):
    """nano, as if it were large."""
    small = nano.runtime(nano.card("ar"))
    card = small.loaded.card.model_copy(update={"parameters_m": 500.0})
    return replace(small, loaded=replace(small.loaded, card=card))


def test_the_fastest_of_all_starts_is_kept(large, tmp_path):
    """The first start may have been on a busy machine."""
    path = tmp_path / "speeds.json"
    measured = iter([4.0, 1.0, 9.0])
    seen = [kept_speed(large, lambda _: flat(next(measured)), path).first_ms for _ in range(3)]
    assert seen == [4.0, 1.0, 1.0]


def test_a_speed_that_several_starts_measured_is_measured_no_more(large, tmp_path):
    measured = iter(range(9, 0, -1))
    for _ in range(MEASURED_STARTS + 2):
        seen = kept_speed(large, lambda _: flat(next(measured)), tmp_path / "speeds.json")
    assert next(measured) == 9 - MEASURED_STARTS
    assert seen == flat(10 - MEASURED_STARTS)


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"KEY": 3}', '{"KEY": {"first_ms": 0}}', '{"KEY": {}}'])
def test_a_damaged_file_is_made_again(large, tmp_path, damage):
    path = tmp_path / "speeds.json"
    kept_speed(large, lambda _: flat(1.0), path)
    key = path.read_text("utf-8").split('"')[1]
    path.write_text(damage.replace("KEY", key), "utf-8")
    assert kept_speed(large, lambda _: flat(2.0), path) == flat(2.0)
    assert kept_speed(large, lambda _: flat(3.0), path) == flat(2.0)


def test_the_user_may_fix_the_length(nano):
    loaded = nano.runtime(nano.card("ar")).loaded
    runtime = make_runtime(loaded, Settings(prompt_tokens=128))
    assert runtime.budget.tokens(1.0) == 128
    with pytest.raises(LoadError, match=r"the prompt \(--prompt-tokens\) and the answer need"):
        make_runtime(loaded, Settings(prompt_tokens=100_000))


@pytest.mark.parametrize("route", ["ar", "dllm"])
def test_both_routes_keep_to_the_budget_and_say_what_they_left_out(route, nano):
    engine = nano.engine(route)
    text = "".join(f"value_{i} = compute({i})\n" for i in range(300))
    request = Request(text, text, Sampling(max_tokens=4))
    use = list(engine.complete(request, Deadline()))[-1].prompt
    assert use.tokens <= use.limit == engine.card.prompt_tokens
    assert 0 < use.lines_above < 300
    assert 0 < use.lines_below < 300
    short = list(engine.complete(Request("x = 1\n", "y = 2\n", Sampling(max_tokens=4)), Deadline()))[
        -1
    ].prompt
    assert (short.lines_above, short.lines_below, short.snippets) == (0, 0, 0)
