"""Batches of canvases for a GPU: the same rows, targets and hidden states as one example at a time."""

import pytest
import torch

from models.training.canvas_batches import (
    Pattern,
    Weights,
    collate,
    denoise,
    draw,
    in_batches,
    losses,
    read,
)
from models.training.canvas_data import MASK, NO_TARGET, Example, Plan, work
from models.training.canvas_model import Canvases, Coder
from models.training.packed import Texts
from tests.training.small_coder import small_coder

VOCABULARY = 40
END = 39
PATTERN = Pattern(drafts=((4, 5), (1, 3)), infills=((8, 2),))


@pytest.fixture(scope="module")
def coder():
    return Coder(small_coder(VOCABULARY), "cpu", torch.float32)


@pytest.fixture(scope="module")
def texts(coder):
    """Texts of several lengths, in which half of the tokens are what the coder would have written."""
    generator = torch.Generator().manual_seed(2)
    examples = []
    for length in (70, 48, 61, 90):
        ids = torch.randint(END, (length,), generator=generator).tolist()
        for place in range(25, length):
            if torch.rand((), generator=generator) < 0.7:
                ids[place] = int(coder.logits(coder.clean(ids[:place]).hidden[-1:])[:, :END].argmax())
        examples.append(Example((*ids, END), length - 20, 3))
    return Texts.of(examples, torch.arange(VOCABULARY), "base")


@pytest.fixture
def adapter(coder):
    adapter = coder.adapter({"qkv": 4, "out": 4, "gate_up": 2, "down": 2}, 4.0, 1, 8)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return adapter


def drawn(coder, texts, seed=3):
    torch.manual_seed(seed)
    batch = collate(texts, range(len(texts)))
    seen = read(coder, batch)
    return batch, seen, draw(batch, seen, PATTERN)


def one_by_one(example, number, batch, canvases, own):
    """What ``work`` makes of the canvases of one text of a batch."""
    sizes, row, plans = PATTERN.sizes(), 0, []
    for size in sizes:
        places = canvases.places[number, row : row + size].tolist()
        masked = (canvases.ids[number, row : row + size] == MASK).tolist()
        plans.append(Plan(places[0] - example.prompt, tuple(masked)))
        row += size
    return work(example, plans, END, own=own)


class TestPackedTexts:
    def test_come_back_from_their_file(self, texts, tmp_path):
        texts.save(tmp_path / "texts.safetensors")
        loaded = Texts.load(tmp_path / "texts.safetensors")
        assert [loaded[i] for i in range(len(texts))] == [texts[i] for i in range(len(texts))]
        assert loaded.base == "base"

    def test_ids_are_places_in_the_kept_vocabulary(self):
        kept = torch.tensor([3, 17, 90, 151_643])
        texts = Texts.of([Example((90, 3, 151_643), 2, 1)], kept, "base")
        assert texts[0] == Example((2, 0, 3), 2, 1)

    def test_each_text_is_in_one_batch_of_about_its_length(self, texts):
        batches = in_batches(texts, 2, 0)
        assert sorted(number for batch in batches for number in batch) == [0, 1, 2, 3]
        lengths = [sorted(len(texts[n].ids) for n in batch) for batch in batches]
        assert sorted(lengths) == [[49, 62], [71, 91]]


class TestTheFrozenPass:
    def test_is_that_of_each_text_alone(self, coder, texts):
        batch, seen, _ = drawn(coder, texts)
        for number in range(len(texts)):
            example = texts[number]
            alone = coder.clean(example.ids)
            length = len(example.ids)
            torch.testing.assert_close(seen.hidden[number, :length], alone.hidden, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(seen.kv[:, :, number, :, :length], alone.kv, atol=1e-5, rtol=1e-4)
            own = coder.logits(alone.hidden).argmax(-1)
            assert torch.equal(seen.own[number, :length], own)
        assert torch.equal(batch.ids[0, : len(texts[0].ids)], torch.tensor(texts[0].ids))


class TestDrawing:
    def test_rows_and_targets_are_those_of_one_example_at_a_time(self, coder, texts):
        batch, seen, canvases = drawn(coder, texts)
        expected = seen.expected(batch.ids)
        for number in range(len(texts)):
            example = texts[number]
            own = expected[number, : len(example.ids)].tolist()
            alone = one_by_one(example, number, batch, canvases, own)
            shown = canvases.open[number]
            targets = canvases.target[number].masked_fill(~shown, NO_TARGET)
            assert torch.equal(canvases.ids[number], alone.canvases.ids)
            assert torch.equal(targets, alone.targets)
            assert torch.equal(
                canvases.places[number][canvases.leading[number] & shown], alone.teacher[alone.teacher >= 0]
            )
            leading = canvases.leading[number] & shown
            assert torch.equal(canvases.expected[number][leading], alone.expected[leading])
            width = len(example.ids)
            mask = torch.cat(
                [canvases.mask[number, :, :width], canvases.mask[number, :, batch.ids.shape[1] :]], 1
            )
            assert torch.equal(mask, alone.canvases.mask)

    def test_drafts_start_where_the_coder_agrees_with_the_text_as_far_as_there_are_such_places(
        self, coder, texts
    ):
        batch, seen, canvases = drawn(coder, texts)
        expected = seen.expected(batch.ids)
        first = (canvases.rank == 0)[: sum(PATTERN.sizes()[: PATTERN.draft_count])].nonzero()[:, 0]
        starts = canvases.places[:, first]
        assert expected.gather(1, starts).all()
        assert all(len(set(row)) == PATTERN.draft_count for row in starts.tolist())
        assert (starts >= batch.prefix_at[:, None] + 16).all()

    def test_infills_lie_in_the_middle(self, coder, texts):
        batch, _, canvases = drawn(coder, texts)
        infills = canvases.places[:, -16:][:, ::8]
        assert (infills >= batch.prompt[:, None]).all()
        assert (infills < batch.length[:, None]).all()

    def test_a_text_with_few_places_is_drawn_from_more_than_once(self, coder):
        short = Texts.of([Example(tuple(range(6)), 3, 0)], torch.arange(VOCABULARY), "base")
        _, _, canvases = drawn(coder, short)
        assert canvases.open.any()
        assert (canvases.places[:, canvases.rank == 0] <= 4).all()


class TestDenoising:
    def test_hidden_states_are_those_of_one_example_at_a_time(self, coder, texts, adapter):
        batch, seen, canvases = drawn(coder, texts)
        with torch.no_grad():
            hidden = denoise(coder, adapter, seen, canvases).view(len(texts), -1, 32)
            for number in range(len(texts)):
                example = texts[number]
                alone = one_by_one(example, number, batch, canvases, ())
                rows = Canvases(alone.canvases.ids, alone.canvases.positions, alone.canvases.mask)
                expected = coder.denoise(adapter, [coder.clean(example.ids)], [rows])
                torch.testing.assert_close(hidden[number], expected, atol=1e-4, rtol=1e-3)

    def test_a_few_steps_bring_drafts_nearer_to_the_coder(self, coder, texts, adapter):
        _, seen, canvases = drawn(coder, texts)
        optimiser = torch.optim.AdamW(adapter.parameters(), lr=1e-2)
        values = []
        for _ in range(20):
            loss, measures = losses(coder, adapter, seen, canvases, Weights())
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            values.append((float(loss.detach()), float(measures["informed_kl"])))
        assert values[-1][0] < 0.9 * values[0][0]
        assert values[-1][1] < values[0][1]

    def test_rows_without_a_target_teach_nothing(self, coder, texts, adapter):
        _, seen, canvases = drawn(coder, texts)
        closed = canvases._replace(target=torch.where(canvases.open, canvases.target, 7))
        first, _ = losses(coder, adapter, seen, canvases, Weights())
        second, _ = losses(coder, adapter, seen, closed, Weights())
        assert torch.equal(first, second)
