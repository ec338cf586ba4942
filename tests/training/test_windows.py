"""Middles written by the target: in batches as alone, stored, continued, and never mixed with those of another target."""

import random

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from fimserver.cards import MODELS
from models.training import windows as module
from models.training.rows import RowMaker, RowStream
from models.training.target import Target
from models.training.windows import LAYOUT, Window, Windows, Writer, extend, make_shard, read_windows
from tests.training.test_rows import CODE


def make_target(folder, seed=0):
    """A tiny random network of nano's kind that has opinions."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=8192,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes((MODELS / "nano" / "tokenizer.json").read_bytes())
    return Target(folder)


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return make_target(tmp_path_factory.mktemp("target"))


def contexts_of(*lengths):
    rng = random.Random(0)
    return [[rng.randrange(300, 8000) for _ in range(n)] for n in lengths]


def alone(target, context, count):
    """Greedy, one row, nothing cached: the slow and sure way."""
    ids = list(context)
    for _ in range(count):
        with torch.inference_mode():
            ids.append(
                int(target.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
            )
    return ids[len(context) :]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_row_of_a_batch_is_the_row_alone(target):
    contexts = contexts_of(3, 40, 17, 1)
    middles = Writer(target, limit=12).write(contexts, (0.0,), generator())
    assert middles == [alone(target, context, 12) for context in contexts]


def test_a_row_ends_with_a_stop_and_the_others_go_on(target):
    contexts = contexts_of(5, 9, 30, 12, 7, 3)
    wanted = [alone(target, context, 10) for context in contexts]
    writer = Writer(target, limit=10)
    writer.stops = torch.tensor([wanted[0][0], wanted[2][4], wanted[3][1], wanted[4][1]])
    for row, middle in zip(wanted, writer.write(contexts, (0.0,), generator()), strict=True):
        ends = [i for i, token in enumerate(row) if token in writer.stops.tolist()]
        assert middle == row[: ends[0] + 1 if ends else 10]


def test_temperatures_share_a_pass_and_the_draw_is_seeded(target):
    contexts = contexts_of(6, 20, 11)
    writer = Writer(target, limit=8)
    both = writer.write(contexts, (0.0, 0.8), generator(1))
    assert both[:3] == writer.write(contexts, (0.0,), generator(2))
    assert both[3:] != both[:3]
    assert both == writer.write(contexts, (0.0, 0.8), generator(1))
    assert both != writer.write(contexts, (0.0, 0.8), generator(2))


def test_draws_follow_the_softmax_at_their_temperature():
    logits = torch.tensor([1.0, 0.0, -1.0]).expand(4000, 3)
    tokens = module._draw(logits, torch.full((4000,), 0.8), generator())
    expected = (logits[0] / 0.8).softmax(-1)
    torch.testing.assert_close(tokens.bincount(minlength=3) / 4000, expected, atol=0.03, rtol=0)


def test_rows_come_back_as_they_went(tmp_path):
    rows = [
        Window([1, 2, 3], [4], greedy=True),
        Window([5], [6, 7, 0], greedy=False),
        Window([8, 9], [1, 1], greedy=True),
    ]
    kept = Windows.of(rows[:1]).and_shard(rows[1:])
    kept.save(tmp_path / "w.safetensors", "abc")
    back = read_windows(tmp_path / "w.safetensors", "abc")
    assert [back[i] for i in range(len(back))] == rows
    assert back.shards == 1
    assert back.middles().tolist() == [1, 3, 2]
    sampled = back.only(greedy=False)
    assert [sampled[i] for i in range(len(sampled))] == rows[1:2]


def test_a_file_that_was_continued_is_a_file_that_was_written_at_once(target, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CONTEXTS", 4)
    monkeypatch.setattr(module, "TOGETHER", 2)
    stream = RowStream([CODE, CODE[70:]], RowMaker(target.tokenizer, LAYOUT), seed=3)
    writer = Writer(target, limit=5)
    extend(tmp_path / "parts", writer, stream, minutes=5, count=8)
    parts = extend(tmp_path / "parts", writer, stream, minutes=5, count=16)
    whole = extend(tmp_path / "whole", writer, stream, minutes=5, count=16)
    assert torch.equal(parts.ids, whole.ids)
    assert torch.equal(parts.ends, whole.ends)
    assert len(whole) == 16
    assert int(whole.greedy.sum()) == 8
    assert make_shard(writer, stream, 0) != make_shard(writer, stream, 1)
    assert all(
        whole[i].context[0] == stream.maker.suffix and whole[i].context[-1] == stream.maker.middle
        for i in range(16)
    )


def test_windows_of_another_target_are_refused(target, tmp_path):
    path = tmp_path / "w.safetensors"
    Windows.of([Window([1], [2], greedy=True)]).save(path, "a" * 64)
    with pytest.raises(SystemExit, match=r"written by other weights \(aaaaaaaaaaaa…\).*delete it"):
        extend(
            path, Writer(target), RowStream([CODE], RowMaker(target.tokenizer, LAYOUT), 1), minutes=1, count=1
        )
    with pytest.raises(SystemExit, match="is not there"):
        read_windows(tmp_path / "none", "")
