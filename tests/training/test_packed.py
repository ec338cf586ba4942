"""A coder and texts packed for a machine without a network, and training on them."""

import json
import sys

import pytest
import torch

from models.training import canvas_packed
from models.training.canvas_data import Example
from models.training.canvas_export import export
from models.training.packed import BASE, TEXTS, VALID, Spelling, Texts, cut_vocabulary, kept_tokens
from tests.gguf_files import write_gguf
from tests.tiny import make_checkpoint

VOCABULARY = {"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4, "bc": 5, "<suffix>": 6, "<prefix>": 7}
SPELLING = Spelling(VOCABULARY, frozenset({0, 1, 2, 5, 6, 7}))


class TestRareTokens:
    def test_are_spelled_in_the_longest_kept_ones(self):
        assert SPELLING([4, 2, 3, 5]) == [0, 5, 2, 0, 1, 5]

    def test_the_parts_of_an_example_keep_their_bounds(self):
        spelled = SPELLING.example(Example((6, 4, 7, 3, 2, 4, 0), 5, 3))
        assert spelled == Example((6, 0, 5, 7, 0, 1, 2, 0, 5, 0), 7, 4)
        assert spelled.middle == (0, 5, 0)

    def test_an_example_without_them_is_the_same(self):
        example = Example((6, 1, 7, 0, 2, 5), 4, 3)
        assert SPELLING.example(example) == example

    def test_the_most_frequent_tokens_are_kept_and_all_markers(self):
        texts = [Example((5, 5, 9, 9, 9, 7), 3), Example((9, 4), 1)]
        assert kept_tokens(texts, [1, 60], 4).tolist() == [1, 5, 9, 60]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    return write_gguf(make_checkpoint(folder / "tiny", "qwen2"), folder / "tiny.gguf")


@pytest.fixture
def packed(base, tmp_path):
    """A packed base with texts of random tokens."""
    kept = torch.arange(3, 300, 3)
    cut_vocabulary(base, kept, tmp_path / BASE)
    generator = torch.Generator().manual_seed(1)
    examples = []
    for length in (60, 72, 80, 64, 90, 71):
        ids = kept[torch.randint(len(kept), (length,), generator=generator)].tolist()
        examples.append(Example(tuple(ids), length - 20, 4))
    for name in (TEXTS, VALID):
        Texts.of(examples, kept, "0" * 64).save(tmp_path / name)
    return tmp_path


def test_the_cut_coder_is_the_coder_on_the_kept_tokens(base, packed):
    kept = torch.arange(3, 300, 3)
    whole, cut = canvas_packed.read_cut(base), canvas_packed.read_cut(packed / BASE)
    ids = torch.tensor([[1, 5, 60, 98]])
    torch.testing.assert_close(cut(ids).logits, whole(kept[ids]).logits[..., kept])


def join(folder, out):
    out.write_bytes(b"".join(path.read_bytes() for path in sorted(folder.glob("state.part*"))))


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["canvas_packed", *map(str, arguments)])
    canvas_packed.main()


def test_a_run_ends_with_a_checkpoint_in_parts_that_becomes_an_adapter(packed, tmp_path, monkeypatch):
    out = tmp_path / "out"
    sizes = ("--attention-rank", 4, "--mlp-rank", 2, "--sampler", 8, "--rows", 2)
    run(monkeypatch, "--packed", packed, "--out", out, "--max-steps", 3, "--log-every", 1, *sizes)
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 3]
    assert "valid_informed_at_0" in lines[-1]
    assert 0 < lines[1]["places"] < lines[3]["places"]
    join(out, tmp_path / "state.safetensors")
    adapter = export(tmp_path / "state.safetensors", tmp_path / "adapter.safetensors")
    assert adapter.base == "0" * 64
    assert adapter.blocks == (1, 2, 4, 8, 16)


def test_a_run_goes_on_from_another_checkpoint(packed, tmp_path, monkeypatch):
    sizes = ("--attention-rank", 4, "--mlp-rank", 2, "--sampler", 8, "--rows", 2)
    run(monkeypatch, "--packed", packed, "--out", tmp_path / "a", "--max-steps", 2, *sizes)
    join(tmp_path / "a", tmp_path / "state.safetensors")
    smaller = ("--attention-rank", 3, "--mlp-rank", 2, "--sampler", 6, "--rows", 2)
    init = ("--init", tmp_path / "state.safetensors")
    run(monkeypatch, "--packed", packed, "--out", tmp_path / "b", "--max-steps", 1, *init, *smaller)
    first = json.loads((tmp_path / "b" / "log.jsonl").read_text().splitlines()[0])
    last = json.loads((tmp_path / "a" / "log.jsonl").read_text().splitlines()[-1])
    assert first["valid_kl"] == pytest.approx(last["valid_kl"], abs=0.05)
