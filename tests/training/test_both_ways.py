"""Training rows for a network with full attention: what is masked, the attention mask, and that it learns."""

import pytest
import torch
from tokenizers import Tokenizer

from models.training.both_ways import LONGEST, MaskedRows
from models.training.rows import CANVAS, CONTEXT, IGNORE, MIDDLE_PART
from models.training.train import NANO, Run, Trainer
from tests.training.test_rows import CODE
from tests.training.test_train import RECIPE, SHAPE

TOKENIZER = Tokenizer.from_file(str(NANO / "tokenizer.json"))


def make_rows(seed=1):
    return MaskedRows([CODE], TOKENIZER, seed, tokens=96)


def test_targets_are_what_the_masks_hide_and_the_rest_is_text():
    maker = make_rows().stream.maker
    batch = make_rows().batch(0, 8)
    masked = batch.ids == maker.mask
    assert torch.equal(masked, batch.targets != IGNORE)
    whole = torch.where(masked, batch.targets, batch.ids)
    for ids in whole.tolist():
        assert ids[0] == maker.suffix
        before, middle = ids.index(maker.prefix), ids.index(maker.middle)
        parts = (ids[before + 1 : middle], ids[middle + 1 :], ids[1:before])
        assert "".join(TOKENIZER.decode(part) for part in parts) in CODE


def test_even_rows_hide_the_whole_middle_and_odd_ones_some_of_it():
    batch = make_rows().batch(3, 16)
    for i, part in enumerate(batch.part):
        hidden = part[batch.targets[i] != IGNORE].tolist()
        assert set(hidden) - {CONTEXT} == {MIDDLE_PART if i % 2 == 0 else CANVAS}
        assert 1 <= len([p for p in hidden if p != CONTEXT]) <= LONGEST


def test_every_place_sees_all_text_and_no_padding():
    rows = make_rows()
    batch = rows.batch(0, 8)
    filled = batch.ids != rows.stream.maker.pad
    assert torch.equal(batch.mask, filled[:, None, None, :].expand_as(batch.mask))


def test_batches_follow_from_seed_and_step_alone():
    first, again = make_rows().batch(5, 4), make_rows().batch(5, 4)
    assert torch.equal(first.ids, again.ids)
    assert not torch.equal(make_rows(seed=2).batch(5, 4).ids, first.ids)


@pytest.mark.parametrize("tokens", [64, 192])
def test_rows_have_the_length_that_was_asked_for(tokens):
    batch = MaskedRows([CODE], TOKENIZER, 1, tokens).batch(0, 4)
    assert batch.ids.shape == batch.targets.shape == batch.part.shape == batch.positions.shape == (4, tokens)


def test_it_learns(tmp_path):
    rows = make_rows()
    run = Run(Trainer(SHAPE, RECIPE, "cpu", eager=True), rows, [rows.batch(0, 2)], tmp_path)
    before = run.trainer.validate(run.valid)
    for _ in range(12):
        run.one_step(1.0)
    after = run.trainer.validate(run.valid)
    assert all(after[name] < before[name] for name in before)
