"""Schedules: the step that they see, the commits that they may return, and their names with options."""

from __future__ import annotations

import pytest
import torch

from fimserver.engine.denoising.denoiser import Denoiser
from fimserver.engine.denoising.schedules import SCHEDULES, Commit, DenoisingStep, read_schedule
from fimserver.engine.denoising.tokens import Tokens
from fimserver.engine.engines import ModelPool, make_dllm, make_schedule
from fimserver.engine.runtime import DraftContext
from fimserver.engine.sampling import draw, read
from fimserver.errors import CardError, InputError
from fimserver.settings import Settings
from fimserver.types import Deadline, Request, Sampling

TOKENS = Tokens(mask=0, end=1, expand=None, delete=None, forbidden=(0,))
REQUEST = Request("def f(a):\n    return ", "\n\n\nf(1)\n", sampling=Sampling(max_tokens=16, stop="none"))


def flat(slots):
    """The same logits for every slot: token 5 is likely, 6 and 7 less so."""
    return torch.tensor([0.0, -9, -9, -9, -9, 2, 1, 1]).repeat(len(slots), 1)


def states(schedule, slots=6, predict=flat, tokens=TOKENS, **options):
    run = Denoiser(tokens, schedule, slots, **options).run(predict, slots, Request("", ""), Deadline())
    return [list(state.slots) for state in run]


@pytest.mark.parametrize(
    ("spec", "steps"), [("fixed", 6), ("fixed:2", 3), ("fixed:count=3", 2), ("entropy:6", 1), ("margin:4", 2)]
)
def test_how_many_slots_a_step_commits_can_be_asked_for(spec, steps):
    assert len(states(read_schedule(spec))) == steps


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("sideways", "no schedule named 'sideways'"),
        ("fixed:many", "count must be of type int"),
        ("fixed:0", "count must be above 0"),
        ("fixed:1,level=2", "does not understand 'level=2': it takes count=1"),
        ("threshold:0.9,0.8", "does not understand '0.8'"),
    ],
)
def test_a_schedule_that_cannot_be_is_named_with_what_could(spec, complaint):
    with pytest.raises(InputError, match=complaint):
        read_schedule(spec)
    with pytest.raises(InputError, match=complaint):
        ModelPool(Settings(schedule=spec))


def test_a_card_with_an_unknown_schedule_says_so(nano):
    card = nano.card("dllm")
    wrong = card.model_copy(update={"canvas": card.canvas.model_copy(update={"schedule": "sideways"})})
    with pytest.raises(CardError, match=r"nano: canvas\.schedule: no schedule named 'sideways'"):
        make_schedule(wrong, Settings())


def test_the_setting_threshold_is_the_level_unless_the_schedule_says_another(nano):
    card = nano.card("dllm")
    (proposals,) = read(draw(torch.tensor([[0.0, 1.0], [0.0, 3.0], [0.0, 2.0]])))  # 0.73, 0.95, 0.88
    for schedule, level, slots in [
        ("threshold", 0.9, [1]),
        ("threshold", 0.8, [1, 2]),
        ("threshold:0.7", 0.9, [1, 2, 0]),
    ]:
        made = make_schedule(card, Settings(schedule=schedule, threshold=level))
        assert made(DenoisingStep.of(proposals)).fill == slots


def test_a_toy_from_outside_sees_the_step_and_fills_a_middle(nano, monkeypatch):
    """Registered under a name with an option of its own; no loop knows it."""
    seen = []

    def right_to_left(count: int = 1):
        def commit(step):
            seen.append(
                (step.index, step.masked, dict(step.committed), step.slots, len(step.proposals.tokens))
            )
            return Commit(step.slots[-count:])

        return commit

    monkeypatch.setitem(SCHEDULES, "right_to_left", right_to_left)
    engine = make_dllm(DraftContext(nano.runtime(nano.card("dllm")), Settings(schedule="right_to_left:3")))
    text = "".join(chunk.text for chunk in engine.complete(REQUEST, Deadline()))
    assert text
    assert [index for index, *_ in seen[:3]] == [0, 1, 2]
    _, masked, committed, slots, count = seen[1]
    assert sorted([*masked, *committed]) == list(range(len(masked) + len(committed)))
    assert all(0 < probability <= 1 for probability in committed.values())
    assert set(slots) <= set(masked)
    assert len(slots) == count


def test_a_schedule_may_mask_again_what_it_filled():
    """As in ReMDM (arXiv 2503.00307): the least sure of the filled slots is tried once more."""
    masked_again = []

    def commit(step):
        weakest = [min(step.committed, key=step.committed.__getitem__)] if step.index == 1 else []
        masked_again.extend(weakest)
        return Commit(step.slots[-2:], weakest)

    every = states(commit)
    assert masked_again
    assert every[0][masked_again[0]] != 0
    assert every[1][masked_again[0]] == 0
    assert 0 not in every[-1]


def test_what_is_left_of_the_first_mask_stays():
    """It has been shown."""
    every = states(lambda step: Commit(step.slots[:1], list(step.committed)))
    assert every == [[5] * n + [0] * (6 - n) for n in range(1, 7)]


def test_a_random_schedule_draws_slots_before_tokens():
    """Tokens of slots that it did not choose are not drawn: the original draws in this order, so that seeds agree with it."""
    drawn = []

    def propose(rows):
        drawn.append(list(rows))
        return read(draw(flat(rows), 1.0, 1.0, generator))[0]

    generator = torch.Generator().manual_seed(4)
    step = DenoisingStep(0, range(8), {}, propose, generator=generator)
    fill = read_schedule("random:2")(step).fill
    assert not drawn
    chosen = step.chosen(fill)
    assert drawn == [list(fill)]

    again = torch.Generator().manual_seed(4)
    rows = [i for i, number in enumerate(torch.rand(8, generator=again).tolist()) if number < 1 - 0.5005]
    assert list(fill) == rows
    assert [token for token, _ in chosen.values()] == read(draw(flat(rows), 1.0, 1.0, again))[0].tokens


def test_a_random_schedule_is_done_after_its_steps():
    assert 0 not in states(read_schedule("random:4"), slots=12)[3]


def test_without_broadcast_a_delete_takes_its_own_slot_alone():
    """As DreamOn with ``pad_eos_to_right`` false."""
    tokens = Tokens(mask=0, end=None, expand=7, delete=6, forbidden=(0,))

    def predict(slots):
        logits = torch.zeros(len(slots), 8)
        logits[:, 5] = 1.0
        logits[0, 6] = 9.0
        return logits

    once = states(read_schedule("fixed"), 4, predict, tokens)[0]
    alone = states(read_schedule("fixed"), 4, predict, tokens, broadcast=False)[0]
    assert once == []
    assert alone == [0, 0, 0]
