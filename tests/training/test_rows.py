"""Holes and training rows: attention masks, and targets."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from fimserver.cards import MODELS, get_card
from fimserver.engine.prompts.prompt import PromptTokens, fim_prompt
from models.training.holes import KINDS, Hole, cut
from models.training.rows import CANVAS, CONTEXT, IGNORE, MIDDLE_PART, Layout, RowMaker, RowStream, collate

CODE = (
    '''import os


class Reader:
    """Reads."""

    def read(self, path):
        with open(path) as file:
            for line in file:
                yield line.strip()

    def names(self, folder):
        return sorted(os.listdir(folder))
'''
    * 3
)
MAKER = RowMaker(Tokenizer.from_file(str(MODELS / "nano" / "tokenizer.json")), Layout())


@pytest.mark.parametrize("kind", KINDS)
def test_holes_lie_within_the_file_and_are_seldom_empty(kind):
    rng = random.Random(0)
    holes = [KINDS[kind][0](CODE, rng) for _ in range(200)]
    assert all(0 <= start <= end <= len(CODE) for start, end in holes)
    assert sum(start < end for start, end in holes) > 150


def test_kinds_are_what_their_names_say():
    rng = random.Random(1)
    for _ in range(200):
        hole = cut(CODE, rng)
        if hole.kind in {"line_tail", "in_line"}:
            assert "\n" not in hole.middle
        if hole.kind == "line_tail":
            assert CODE[hole.end] == "\n"


@settings(max_examples=100, deadline=None)
@given(text=st.text(min_size=1, max_size=200), seed=st.integers(0, 1000))
def test_any_text_can_be_cut(text, seed):
    if text.strip():
        hole = cut(text, random.Random(seed))
        assert hole.middle


def row_of(start=200, end=230, seed=0):
    return MAKER.row(Hole(CODE, start, end, "test"), random.Random(seed))


def test_a_row_has_the_length_of_its_layout_and_the_prompt_of_the_engine(nano):
    row = row_of()
    assert all(len(part) == MAKER.layout.row for part in row)
    context, middle = MAKER.tokens(Hole(CODE, 200, 230, "test"), random.Random(0))
    suffix_end = context.index(MAKER.prefix)
    card = get_card("nano")
    assert card.fim is not None
    engine_prompt = fim_prompt(
        PromptTokens(tuple(context[suffix_end + 1 : -1]), tuple(context[1:suffix_end])),
        card.fim,
        nano.engine("ar").vocabulary,
    )
    assert engine_prompt == context
    assert row.ids[: len(context) + len(middle)] == context + middle


@pytest.mark.parametrize("seed", range(8))
def test_who_sees_whom(seed):
    """The sequence is causal and never sees a canvas; a canvas sees the context before its start, and itself, both ways."""
    row = row_of(seed=seed)
    mask = collate([row]).mask[0, 0]
    length = MAKER.layout.sequence
    assert torch.equal(mask[:length, :length], torch.ones(length, length, dtype=torch.bool).tril())
    assert not mask[:length, length:].any()
    context, _ = MAKER.tokens(Hole(CODE, 200, 230, "test"), random.Random(seed))
    for i in range(length, MAKER.layout.row):
        same = [j for j in range(length, MAKER.layout.row) if row.group[j] == row.group[i]]
        assert mask[i, length:].nonzero().flatten().tolist() == [j - length for j in same]
        first = min(same)
        start = row.positions[first] - len(context)
        assert mask[i, :length].sum() == len(context) + start
        assert row.positions[i] == row.positions[first] + (i - first)


@pytest.mark.parametrize("seed", range(8))
def test_targets(seed):
    """Next tokens in the sequence but never a marker; in a canvas the token under each mask, and nothing else."""
    row = row_of(seed=seed)
    context, middle = MAKER.tokens(Hole(CODE, 200, 230, "test"), random.Random(seed))
    sequence = context + middle
    markers = {MAKER.suffix, MAKER.prefix, MAKER.middle}
    for i, target in enumerate(row.targets[: len(sequence) - 1]):
        assert target == (IGNORE if sequence[i + 1] in markers else sequence[i + 1])
        assert row.part[i] == (MIDDLE_PART if i >= len(context) - 1 else CONTEXT)
    for i in range(MAKER.layout.sequence, MAKER.layout.row):
        assert row.part[i] == CANVAS
        assert (row.ids[i] == MAKER.mask) == (row.targets[i] != IGNORE)
        k = row.positions[i] - len(context)
        wanted = middle[k] if k < len(middle) else MAKER.eot
        assert (row.targets[i] if row.ids[i] == MAKER.mask else row.ids[i]) == wanted


def test_a_middle_that_was_cut_teaches_no_end():
    """A hole longer than the row has room for: no end-of-text anywhere in the targets."""
    for seed in range(10):
        row = MAKER.row(Hole(CODE, 100, len(CODE) - 5, "test"), random.Random(seed))
        assert MAKER.eot not in row.targets
        assert MAKER.eot not in row.ids


def test_batches_depend_on_seed_and_step_alone():
    stream = RowStream([CODE, CODE[50:]], MAKER, seed=3)
    again = RowStream([CODE, CODE[50:]], MAKER, seed=3)
    assert torch.equal(stream.batch(5, 2).ids, again.batch(5, 2).ids)
    assert not torch.equal(stream.batch(5, 2).ids, stream.batch(6, 2).ids)
