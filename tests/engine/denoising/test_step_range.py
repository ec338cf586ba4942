"""A canvas is filled in no fewer and no more steps than its model was trained for."""

import pytest
import torch

from fimserver.canvas_card import Canvas
from fimserver.engine.denoising.schedules import SCHEDULES, read_schedule
from fimserver.engine.denoising.step_range import within_steps
from fimserver.engine.engines import ModelPool, make_schedule
from fimserver.settings import Settings
from fimserver.types import Deadline, Request, Sampling
from tests.engine.denoising.test_schedules import TOKENS, states
from tests.tiny import DREAM_CANVAS, make_card

ALL_AT_ONCE = read_schedule("threshold:0.01")
ONE_BY_ONE = read_schedule("fixed:1")


def filled(schedule, slots, **options):
    """How many slots each step fills."""
    left = [sum(token == TOKENS.mask for token in state) for state in states(schedule, slots, **options)]
    return [before - after for before, after in zip([slots, *left], left, strict=False)]


def test_without_a_range_the_schedule_is_as_it_was():
    assert within_steps(ALL_AT_ONCE) is ALL_AT_ONCE
    assert filled(ALL_AT_ONCE, 8) == [8]


@pytest.mark.parametrize(
    ("least", "slots", "expected"),
    [(4, 8, [2, 2, 2, 2]), (3, 8, [3, 3, 2]), (8, 3, [1, 1, 1]), (1, 6, [6])],
)
def test_parallel_commits_make_no_fewer_steps(least, slots, expected):
    assert filled(within_steps(ALL_AT_ONCE, least=least), slots) == expected


@pytest.mark.parametrize(
    ("most", "slots", "expected"), [(2, 8, [4, 4]), (3, 7, [3, 2, 2]), (9, 3, [1, 1, 1])]
)
def test_slow_schedules_make_no_more(most, slots, expected):
    assert filled(within_steps(ONE_BY_ONE, most=most), slots) == expected


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_every_schedule_keeps_to_a_range(name):
    counts = filled(within_steps(read_schedule(name), least=3, most=5), 12)
    assert 3 <= len(counts) <= 5
    assert sum(counts) == 12


def test_what_a_step_adds_is_the_likeliest():
    def rising(slots):
        logits = torch.full((len(slots), 8), -9.0)
        logits[:, 5] = torch.arange(len(slots)) / 2 - 8
        return logits

    first = states(within_steps(read_schedule("leftmost:0.9999"), most=2), 6, predict=rising)[0]
    assert [i for i, token in enumerate(first) if token == 5] == [0, 4, 5]


def test_an_end_on_the_left_still_ends_the_canvas():
    def over(slots):
        return torch.tensor([0.0, 9, 0, 0, 0, 0, 0, 0]).repeat(len(slots), 1)

    steps = states(within_steps(ALL_AT_ONCE, least=4), 8, predict=over)
    assert steps == [[TOKENS.end] * 8]


def test_a_card_sets_the_range():
    card = make_card(
        "Dream", fim=None, canvas=DREAM_CANVAS | {"schedule": "threshold:0.01", "least_steps": 4}
    )
    assert filled(make_schedule(card, Settings()), 8) == [2, 2, 2, 2]
    assert filled(make_schedule(card, Settings(schedule="fixed:8")), 8) == [2, 2, 2, 2]


def test_a_range_that_is_none_is_refused():
    fields = DREAM_CANVAS | {"least_steps": 8, "most_steps": 4}
    with pytest.raises(ValueError, match="least_steps"):
        Canvas.model_validate(fields)


def test_a_middle_of_nano_takes_the_steps_of_its_card(nano):
    card = nano.card("dllm")
    canvas = card.canvas.model_copy(update={"least_steps": 16, "schedule": "threshold:0.01"})
    pool = ModelPool(Settings(), (nano,))
    engine = pool.engine("dllm")
    engine.schedule = make_schedule(card.model_copy(update={"canvas": canvas}), Settings())
    request = Request("def f(a):\n    return ", "\n", sampling=Sampling(max_tokens=16, stop="none"))
    chunks = list(engine.complete(request, Deadline()))
    fresh = [sum(slot.fresh for slot in chunk.canvas) for chunk in chunks[:-1]]
    assert max(fresh) == 1
