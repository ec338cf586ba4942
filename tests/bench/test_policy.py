"""The policy benchmark on simulated machines, seeded and without a clock."""

import pytest

from bench.policy import H200, WORKSTATION, confusion_counts, settles, simulate
from fimserver.host.routing.policies import POLICIES
from fimserver.types import ROUTES

COUNT, SEEDS = 1500, range(3)


def speed(machine, policy):
    sums = [simulate(machine, policy, confusion_counts(), COUNT, seed) for seed in SEEDS]
    return sum(each.kept for each in sums) / sum(each.ms for each in sums)


@pytest.mark.parametrize("machine", [WORKSTATION, H200], ids=lambda machine: machine.name)
def test_the_default_keeps_more_characters_a_second_than_either_route_alone(machine):
    assert speed(machine, "expected_value") > max(speed(machine, route) for route in ROUTES)


@pytest.mark.parametrize("policy", [name for name in POLICIES if name != "bandit"])
@pytest.mark.parametrize("machine", [WORKSTATION, H200], ids=lambda machine: machine.name)
def test_a_device_that_becomes_twice_as_slow_is_known_within_thirty_requests(machine, policy):
    assert max(settles(machine, policy, confusion_counts(), seed) for seed in SEEDS) <= 30


def test_a_pinned_route_is_all_that_is_used():
    assert simulate(H200, "dllm", confusion_counts(), 50, 0).routes == {"dllm": 50, "ar": 0}
