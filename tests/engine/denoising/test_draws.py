"""A denoising step reads the device once, with every schedule, also if filled slots are edited."""

import math

import pytest
import torch

from fimserver.engine.denoising.canvas_length import masked_confidence
from fimserver.engine.denoising.denoiser import Denoiser
from fimserver.engine.denoising.draws import Draws, rows_of
from fimserver.engine.denoising.edits import Edits
from fimserver.engine.denoising.schedules import FOR_ADAPTERS, SCHEDULES
from fimserver.engine.denoising.step_range import within_steps
from fimserver.engine.denoising.tokens import Tokens
from fimserver.engine.forward.passes import finish
from fimserver.engine.sampling import draw, read
from fimserver.errors import NonFiniteError
from fimserver.types import Deadline, Request, Sampling

VOCABULARY = 24
TOKENS = Tokens(mask=0, end=1, expand=2, delete=3, forbidden=(0, 23))
CPU = torch.device("cpu")
NAMES = (
    "item tolist cpu numpy nonzero masked_select multinomial unique equal __bool__ __float__ __int__ __index__"
    " __iter__ __contains__"
)
READS = {getattr(torch.Tensor, name) for name in NAMES.split()} | {
    torch.nonzero,
    torch.masked_select,
    torch.multinomial,
    torch.unique,
    torch.equal,
}
INDEXING = {torch.Tensor.__getitem__, torch.Tensor.__setitem__}


class OnDevice(torch.Tensor):
    """Numbers of a device: counts whatever makes the host wait for them or for a copy to it."""

    waits = 0

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        places = args[1] if func in INDEXING else ()
        places = places if isinstance(places, tuple) else (places,)
        if func in READS or any(isinstance(place, list | torch.Tensor) for place in places):
            OnDevice.waits += 1
        return super().__torch_function__(func, types, args, kwargs or {})


def logits(slots, seed):
    made = torch.randn(len(slots), VOCABULARY, generator=torch.Generator().manual_seed(seed))
    return (2 * made).as_subclass(OnDevice)


def waits_of_steps(schedule, sampling, tokens=TOKENS, **options):
    """How often the host waited in each step of a block of 12 slots."""
    seeds = iter(range(1000))
    begin = torch.arange(VOCABULARY) > 3
    denoiser = Denoiser(tokens, schedule, 16, **options)

    def predicting(slots):
        yield from ()
        return logits(slots, next(seeds))

    steps = denoiser.steps(predicting, 12, Request("", "", sampling=sampling), Deadline(), begin=begin)
    OnDevice.waits = 0
    found = []
    for _ in steps:
        found.append(OnDevice.waits)
        OnDevice.waits = 0
    return found


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.7, top_p=0.9)], ids=["0", "0.7"])
@pytest.mark.parametrize("name", sorted(set(SCHEDULES) - FOR_ADAPTERS))
def test_a_step_reads_the_device_once(name, sampling):
    for schedule in (SCHEDULES[name](), within_steps(SCHEDULES[name](), 3, 9)):
        found = waits_of_steps(schedule, sampling)
        assert found
        assert set(found) == {1}


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("name", ["threshold", "random"])
def test_so_does_a_step_that_edits_and_one_that_does_nothing_else(name, temperature):
    tokens = Tokens(mask=0, end=1, expand=None, delete=None, forbidden=(0,))
    sampling = Sampling(temperature=temperature)
    found = waits_of_steps(
        SCHEDULES[name](), sampling, tokens, broadcast=False, end_anywhere=True, edits=Edits(0.3, 4)
    )
    assert set(found) == {1}
    assert len(found) > 1


def test_so_does_a_pass_of_the_length_search():
    class Canvas:
        def predict(self, slots):
            return logits(slots, 3)

    OnDevice.waits = 0
    assert 0 < finish(masked_confidence(Canvas(), 6, 0, (0, 23))) < 1
    assert OnDevice.waits == 1


def test_a_read_that_is_forgotten_would_be_counted():
    def careless(step):
        return SCHEDULES["fixed"]()(step) if float(logits([1], 0)[0, 0]) else None

    assert set(waits_of_steps(careless, Sampling())) == {2}
    OnDevice.waits = 0
    logits([1, 2], 0)[[0, 1]]
    assert OnDevice.waits == 1


def test_tokens_are_those_of_torch_multinomial():
    scores = torch.randn(40, 500, generator=torch.Generator().manual_seed(1))
    for seed in range(5):
        ours, theirs = (torch.Generator().manual_seed(seed) for _ in range(2))
        (found,) = read(draw(scores, 0.8, 0.95, ours), draw(scores[:0], 0.8, 0.95, ours))[:1]
        wanted = torch.multinomial((scores / 0.8).softmax(-1), 1, generator=theirs)
        free = read(draw(scores, 0.8, 1.0, torch.Generator().manual_seed(seed)))[0]
        assert free.tokens == wanted[:, 0].tolist()
        assert len(found.tokens) == 40


def test_what_is_queued_is_drawn_first_and_given_once():
    scores = torch.randn(4, 9, generator=torch.Generator().manual_seed(2))
    sampling = Sampling(temperature=1.0)
    draws, alone = Draws(CPU, sampling, 3), torch.Generator().manual_seed(3)
    draws.queue(scores[:2])
    mine = draws.propose(scores, [1, 3])
    first = read(draw(scores[:2], 1.0, sampling.top_p, alone))[0]
    second = read(draw(scores[[1, 3]], 1.0, sampling.top_p, alone))[0]
    assert (draws.queued(), mine) == (first, second)
    assert draws.queued().tokens == ()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_numbers_in_any_row_of_any_draw_raise_when_they_are_read(bad):
    scores = torch.zeros(3, 5)
    scores[2, 1] = bad
    for temperature in (0.0, 1.0):
        drawn = draw(scores, temperature)
        with pytest.raises(NonFiniteError):
            read(draw(torch.zeros(1, 5)), drawn)


def test_rows_are_copies():
    scores = torch.zeros(3, 5)
    rows_of(scores, [0, 2]).fill_(1.0)
    assert scores.sum() == 0
    assert rows_of(scores, []).shape == (0, 5)
