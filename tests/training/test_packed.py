"""A coder and texts packed for a machine without a network, and training on them."""

import json
import sys

import pytest
import torch

from models.training import canvas_packed
from models.training.canvas_data import Example
from models.training.canvas_export import export
from models.training.packed import BASE, TEXTS, VALID, Texts, cut_vocabulary, kept_tokens, within
from tests.gguf_files import write_gguf
from tests.tiny import make_checkpoint

SUFFIX, PREFIX, MIDDLE, RARE = 1, 2, 3, 99
KEPT, MARKERS = frozenset(range(50)), frozenset({SUFFIX, PREFIX, MIDDLE})
SIDE, BEFORE = [20] * 6, [30] * 30


def example(side=(), before=(), middle=(40, 41, 42)):
    first = [SUFFIX, *(side or SIDE), PREFIX]
    prefix = list(before or BEFORE)
    return Example((*first, *prefix, *middle), len(first) + len(prefix), len(first))


class TestRareTokens:
    def test_an_example_without_them_is_whole(self):
        assert within(example(), KEPT, MARKERS) == example()

    def test_a_suffix_ends_before_them(self):
        cut = within(example(side=[20, 20, RARE, 20, RARE]), KEPT, MARKERS)
        assert cut == example(side=[20, 20])

    def test_a_prefix_begins_after_them(self):
        assert within(example(before=[30, RARE, 31, RARE, *BEFORE]), KEPT, MARKERS) == example()

    def test_a_middle_ends_before_them(self):
        assert within(example(middle=(40, 41, RARE, 42)), KEPT, MARKERS) == example(middle=(40, 41))

    def test_little_is_left(self):
        assert within(example(middle=(40, RARE)), KEPT, MARKERS) is None
        assert within(example(before=[*BEFORE, RARE, 30]), KEPT, MARKERS) is None

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
    run(monkeypatch, "join", out, tmp_path / "state.safetensors")
    adapter = export(tmp_path / "state.safetensors", tmp_path / "adapter.safetensors")
    assert adapter.base == "0" * 64
    assert adapter.blocks == (1, 2, 4, 8, 16)


def test_a_run_goes_on_from_another_checkpoint(packed, tmp_path, monkeypatch):
    sizes = ("--attention-rank", 4, "--mlp-rank", 2, "--sampler", 8, "--rows", 2)
    run(monkeypatch, "--packed", packed, "--out", tmp_path / "a", "--max-steps", 2, *sizes)
    run(monkeypatch, "join", tmp_path / "a", tmp_path / "state.safetensors")
    smaller = ("--attention-rank", 3, "--mlp-rank", 2, "--sampler", 6, "--rows", 2)
    init = ("--init", tmp_path / "state.safetensors")
    run(monkeypatch, "--packed", packed, "--out", tmp_path / "b", "--max-steps", 1, *init, *smaller)
    first = json.loads((tmp_path / "b" / "log.jsonl").read_text().splitlines()[0])
    last = json.loads((tmp_path / "a" / "log.jsonl").read_text().splitlines()[-1])
    assert first["valid_kl"] == pytest.approx(last["valid_kl"], abs=0.05)
