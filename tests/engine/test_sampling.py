"""The choice of a token, and of the slots that a step commits."""

import pytest
import torch

from fimserver.engine.denoising.schedules import SCHEDULES, Commit, DenoisingStep
from fimserver.engine.sampling import SlotProposals, choose, draw, keep_top_p, keyed_gumbel, read
from fimserver.errors import NonFiniteError

CPU = torch.device("cpu")


def test_keyed_noise_samples_the_softmax():
    """20 000 positions against the exact law: chi-square below its 1e-6 quantile (5 degrees of freedom: 35.9)."""
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 0.5, -torch.inf, 1.5])
    draws = 20_000
    counts = torch.zeros(7)
    for position in range(draws):
        counts[choose(logits, 0.8, 11, position)] += 1
    expected = (logits / 0.8).softmax(-1) * draws
    assert counts[5] == 0
    seen = expected > 0
    chi_square = ((counts - expected)[seen] ** 2 / expected[seen]).sum()
    assert chi_square < 35.9


def test_noise_depends_on_seed_and_position_alone():
    assert torch.equal(keyed_gumbel(1, 2, 50, CPU), keyed_gumbel(1, 2, 50, CPU))
    assert not torch.equal(keyed_gumbel(1, 2, 50, CPU), keyed_gumbel(1, 3, 50, CPU))
    assert not torch.equal(keyed_gumbel(1, 2, 50, CPU), keyed_gumbel(2, 2, 50, CPU))


def test_temperature_zero_is_the_limit():
    logits = torch.randn(100, generator=torch.Generator().manual_seed(0))
    assert choose(logits, 1e-6, 5, 0) == choose(logits, 0.0, 5, 0) == int(logits.argmax())


@pytest.mark.parametrize("place", [0, 2, 517, 1030])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_bad_numbers_raise(bad, place):
    """Also those of -infinity's neighbours, and of the values after the last whole vector of a kernel."""
    logits = torch.full((1031,), -torch.inf)
    logits[1] = 0.0
    assert choose(logits, 0.0, 0, 0) == 1
    logits[place] = bad
    with pytest.raises(NonFiniteError):
        choose(logits, 0.0, 0, 0)
    with pytest.raises(NonFiniteError):
        read(draw(logits[None], 0.5))


def test_top_p_keeps_the_token_that_crosses_it():
    probabilities = torch.tensor([[0.5, 0.3, 0.15, 0.05]])
    kept = keep_top_p(probabilities.log(), 0.7).softmax(-1)
    torch.testing.assert_close(kept, torch.tensor([[0.625, 0.375, 0.0, 0.0]]))


def candidates(probability, entropy=None, margin=None):
    return SlotProposals(
        range(len(probability)),
        probability,
        margin or probability,
        entropy or [1 - p for p in probability],
    )


@pytest.mark.parametrize(
    ("name", "options", "given", "committed"),
    [
        ("threshold", {"level": 0.9}, candidates([0.95, 0.5, 0.99]), [2, 0]),
        ("threshold", {"level": 0.9}, candidates([0.2, 0.5, 0.4]), [1]),
        ("threshold", {"level": 0.9, "limit": 1}, candidates([0.95, 0.99]), [1]),
        ("leftmost", {"level": 0.9}, candidates([0.2, 0.95, 0.5, 0.99]), [0, 3, 1]),
        ("factor", {}, candidates([0.95, 0.7, 0.99, 0.6]), [2, 0]),
        ("factor", {}, candidates([0.1, 0.2]), [1]),
        ("entropy", {}, candidates([0.9, 0.8], entropy=[0.5, 0.4]), [1]),
        ("entropy", {"count": 2}, candidates([0.9, 0.8, 0.7], entropy=[0.5, 0.4, 0.1]), [2, 1]),
        ("entropy_bound", {"gamma": 0.1}, candidates([0.9] * 4, entropy=[0.05, 0.04, 0.3, 0.4]), [1, 0, 2]),
        ("entropy_bound", {"gamma": 0.1}, candidates([0.9] * 2, entropy=[0.5, 0.6]), [0]),
        ("margin", {}, candidates([0.9, 0.8], margin=[0.1, 0.2]), [1]),
        ("fixed", {"count": 2}, candidates([0.3, 0.8, 0.5]), [1, 2]),
        ("fixed", {"count": 9}, candidates([0.3, 0.8]), [1, 0]),
    ],
)
def test_schedules(name, options, given, committed):
    assert SCHEDULES[name](**options)(DenoisingStep.of(given)) == Commit(committed)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_commits_at_least_one_and_never_twice(name):
    generator = torch.Generator().manual_seed(3)
    for n in (1, 2, 7, 33):
        p = torch.rand(n, 50, generator=generator).softmax(-1)
        chosen = SCHEDULES[name]()(DenoisingStep.of(*read(draw(p.log())))).fill
        assert int(name != "random") <= len(chosen) == len(set(chosen)) <= n
