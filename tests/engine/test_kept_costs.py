"""Pass costs stored between starts."""

import json
from dataclasses import replace

import pytest

from fimserver.engine.forward.pass_cost import PassCosts, is_outdated
from fimserver.engine.kept_costs import kept_costs


@pytest.fixture
def runtime(nano):
    """nano, as if it were large."""
    small = nano.runtime(nano.card("ar"))
    card = small.loaded.card.model_copy(update={"parameters_m": 500.0})
    return replace(small, loaded=replace(small.loaded, card=card))


class Measure:
    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return PassCosts({(1, 8): 10.0, (1, 16): 12.0, (2, 8): 15.0})


def test_a_second_start_does_not_measure(runtime, tmp_path):
    measure = Measure()
    first = kept_costs(runtime, measure, tmp_path / "costs.json")
    second = kept_costs(runtime, measure, tmp_path / "costs.json")
    assert measure.calls == 1
    assert (second.ms, second.plain, second.longest) == (first.ms, first.plain, first.longest)


@pytest.mark.parametrize(
    "damage",
    ["", "{", "[]", "null", '{"KEY": 3}', '{"KEY": {"1x": 1}}', '{"KEY": {"1x8": "slow"}}', '{"KEY": {}}'],
)
def test_what_cannot_be_read_is_measured_again(runtime, tmp_path, damage):
    path = tmp_path / "costs.json"
    kept_costs(runtime, Measure(), path)
    key = next(iter(json.loads(path.read_text())))
    path.write_text(damage.replace("KEY", key))
    measure = Measure()
    assert kept_costs(runtime, measure, path).longest == 16
    assert measure.calls == 1


def test_another_buffer_or_number_of_threads_is_measured_for_itself(runtime, tmp_path, monkeypatch):
    measure = Measure()
    kept_costs(runtime, measure, tmp_path / "costs.json")
    kept_costs(replace(runtime, rows=runtime.rows + 1), measure, tmp_path / "costs.json")
    monkeypatch.setattr("torch.get_num_threads", lambda: 77)
    kept_costs(runtime, measure, tmp_path / "costs.json")
    assert measure.calls == 3


def test_a_folder_that_cannot_be_written_does_no_harm(runtime, tmp_path):
    (tmp_path / "file").write_text("")
    assert kept_costs(runtime, Measure(), tmp_path / "file" / "costs.json").longest == 16


def test_a_small_model_is_measured_at_every_start(nano, tmp_path):
    measure = Measure()
    runtime = nano.runtime(nano.card("ar"))
    kept_costs(runtime, measure, tmp_path / "costs.json")
    assert not (tmp_path / "costs.json").exists()


def test_what_was_measured_on_a_busy_machine_is_measured_again(runtime, tmp_path):
    path = tmp_path / "costs.json"
    kept_costs(runtime, lambda: PassCosts({(1, 8): 40.0, (1, 16): 41.0, (2, 8): 42.0}), path)
    calm = Measure()
    first = kept_costs(runtime, calm, path, lambda costs: costs.ms[1, 8] > 20)
    second = kept_costs(runtime, calm, path, lambda costs: costs.ms[1, 8] > 20)
    assert first.ms == second.ms == calm().ms
    assert calm.calls == 2  # one of them is this test's


def test_of_two_measurements_the_less_is_kept_of_each_shape(runtime, tmp_path):
    path = tmp_path / "costs.json"
    kept_costs(runtime, lambda: PassCosts({(1, 8): 40.0, (1, 16): 41.0, (2, 8): 41.0}), path)
    again = kept_costs(runtime, lambda: PassCosts({(1, 8): 10.0, (1, 16): 50.0}), path, lambda _: True)
    assert again.ms == {(1, 8): 10.0, (1, 16): 41.0}


@pytest.mark.parametrize(("ms", "busy"), [(1e9, True), (1e-9, False)])
def test_costs_of_a_busy_machine_are_those_that_plain_passes_undercut(runtime, ms, busy):
    cache = runtime.cache
    cache.prompts.current.ids = [1, 2, 3]
    assert is_outdated(PassCosts({(1, runtime.rows): ms}), cache, cache.chunk) == busy
    assert cache.num_uncached_tokens([1, 2, 3]) == cache.chunk  # its rows were overwritten
