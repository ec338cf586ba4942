"""GGUF files: the same network as in safetensors for every quantisation, and a one-line error for an unreadable file."""

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer

from fimserver.engine.load import load
from fimserver.engine.weights.formats import WEIGHTS, size_bytes
from fimserver.engine.weights.gguf import read_gguf
from fimserver.engine.weights.gguf_tokenizer import make_tokenizer
from fimserver.errors import LoadError, ModelMissingError
from tests.gguf_files import gguf_card, write_gguf
from tests.tiny import make_card, make_checkpoint

CPU = torch.device("cpu")
ODD_TEXTS = (
    "", " ", "\t\t\n", "e\u0301 naïve ﬁ", "日本語のコード", "a\r\nb\r\n\r\n", "1234567890 3.14e-10", "don't DON'T I'LL",
    "😀👨‍👩‍👧 x", "\u00a0\u2003x", "if x:\n\n\n    y = 'z'\t", "   leading", "trailing   ", "\x00\x01\x7f", "١٢٣ ৪৫", "ǅ ß İ",
)  # fmt: skip


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    return {name: make_checkpoint(folder / name, name) for name in ("qwen2", "qwen3", "llama", "starcoder2")}


@pytest.fixture
def path(checkpoints, tmp_path):
    return write_gguf(checkpoints["qwen2"], tmp_path / "tiny" / "tiny.gguf")


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "llama"])
def test_the_network_is_that_of_the_safetensors(architecture, checkpoints, tmp_path):
    path = write_gguf(checkpoints[architecture], tmp_path / "tiny" / "tiny.gguf")
    wanted = load(make_card(architecture), checkpoints[architecture], CPU)
    loaded = load(gguf_card(path, architecture), path.parent, CPU)
    ids = torch.tensor([wanted.vocabulary.encode("def add(a, b):\n    return a + b\n")])
    torch.testing.assert_close(loaded.model(ids).logits, wanted.model(ids).logits, rtol=1e-5, atol=1e-5)
    assert type(loaded.model) is type(wanted.model)


def test_a_head_that_is_the_embedding(tmp_path):
    folder = make_checkpoint(tmp_path / "tied", "qwen2", tie_word_embeddings=True)
    path = write_gguf(folder, tmp_path / "tiny" / "tiny.gguf")
    wanted, loaded = load(make_card("qwen2"), folder, CPU), load(gguf_card(path, "qwen2"), path.parent, CPU)
    ids = torch.tensor([[5, 6, 7, 8]])
    torch.testing.assert_close(loaded.model(ids).logits, wanted.model(ids).logits, rtol=1e-5, atol=1e-5)


def test_a_model_in_several_files(checkpoints, tmp_path):
    write_gguf(checkpoints["qwen2"], tmp_path / "tiny" / "tiny.gguf", tensors_a_file=10)
    paths = sorted((tmp_path / "tiny").glob("*.gguf"))
    assert len(paths) == 3
    card = gguf_card(paths[0], "qwen2")
    card = card.model_copy(update={"files": {p.name: gguf_card(p, "qwen2").files[p.name] for p in paths}})
    assert size_bytes(card, paths[0].parent) == sum(p.stat().st_size for p in paths)
    load(card, paths[0].parent, CPU)
    paths[1].unlink()
    with pytest.raises(LoadError, match=r"-00002-of-00003\.gguf is missing"):
        read_gguf(paths[0])
    with pytest.raises(ModelMissingError, match="models get tiny"):
        load(card, paths[0].parent, CPU)


def _readable(kind: Kind) -> bool:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    try:
        gguf.quants.dequantize(np.zeros((1, size), np.uint8), kind)
    except NotImplementedError:
        return False
    return block > 1


@pytest.mark.parametrize("kind", [kind for kind in Kind if _readable(kind)], ids=lambda kind: kind.name)
def test_every_quantisation_that_the_library_reads(kind, tmp_path):
    block, size = gguf.GGML_QUANT_SIZES[kind]
    stored = np.random.default_rng(0).integers(0, 256, (5000, -(-256 // block) * size), dtype=np.uint8)
    path = tmp_path / "one.gguf"
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_tensor("blk.0.ffn_up.weight", stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = read_gguf(path)
    with np.errstate(all="ignore"):
        values = file.tensor("model.layers.0.mlp.up_proj.weight")
        wanted = torch.from_numpy(gguf.quants.dequantize(stored, kind))
    assert values.shape == file.shape("model.layers.0.mlp.up_proj.weight") == (5000, max(block, 256))
    torch.testing.assert_close(values, wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("kind", [Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q5_0, Kind.Q4_0])
def test_a_quantised_file_loads(kind, checkpoints, tmp_path):
    path = write_gguf(checkpoints["qwen2"], tmp_path / "tiny" / "tiny.gguf", kind)
    load(gguf_card(path, "qwen2"), path.parent, CPU)


def test_the_tokenizer_is_the_familys(path):
    metadata = dict(read_gguf(path).metadata)
    tokens, merges = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.merges"]
    theirs = Qwen2Tokenizer(
        {text: i for i, text in enumerate(tokens)}, [tuple(pair.split(" ", 1)) for pair in merges]
    )
    ours = make_tokenizer(metadata | {"tokenizer.ggml.pre": "qwen2"}, "tiny")
    for text in ODD_TEXTS:
        wanted = theirs.backend_tokenizer.encode(text, add_special_tokens=False).ids
        assert ours.encode(text, add_special_tokens=False).ids == wanted, text
    assert ours.token_to_id("<fim_prefix>") == tokens.index("<fim_prefix>")
    assert ours.encode("a<fim_middle>").ids[-1] == tokens.index("<fim_middle>")


def damaged(path, checkpoints, **changes):
    return write_gguf(checkpoints["qwen2"], path, **changes)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"qwen2__rope__scaling__type": "yarn"}, "rope.scaling.type = yarn is not supported"),
        ({"qwen2__attention__sliding_window": 128}, "attention.sliding_window = 128 is not supported"),
        ({"qwen2__context_length": None}, "lacks qwen2.context_length"),
        ({"pre": "tekken"}, r"tokenizer \(gpt2, tekken\) is not supported"),
        ({"tokens": ()}, "no token '<fim_prefix>'"),
    ],
)
def test_what_cannot_be_computed_is_one_line(changes, complaint, checkpoints, tmp_path):
    path = damaged(tmp_path / "tiny" / "tiny.gguf", checkpoints, **changes)
    with pytest.raises(LoadError, match=complaint) as raised:
        load(gguf_card(path, "qwen2"), path.parent, CPU)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("share", [0.0001, 0.3, 0.9])
def test_a_file_that_is_cut_short_is_one_line(share, path):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(LoadError, match=r"incomplete or damaged|not a GGUF file|lacks the tensor") as raised:
        load(gguf_card(path, "qwen2"), path.parent, CPU)
    assert "\n" not in str(raised.value)


def test_another_file_is_named(path, checkpoints, tmp_path):
    path.write_bytes(b"PK\x03\x04" + b"0" * 100)
    with pytest.raises(LoadError, match="is not a GGUF file"):
        load(gguf_card(path, "qwen2"), path.parent, CPU)
    other = write_gguf(checkpoints["llama"], tmp_path / "other" / "tiny.gguf")
    with pytest.raises(LoadError, match="holds 'llama', the card says 'qwen2'"):
        load(gguf_card(other, "qwen2"), other.parent, CPU)


class Pickled:
    """A toy format: one file of torch's own."""

    def files(self, _card, folder):
        return sorted(folder.glob("*.pt"))

    def read(self, card, folder):
        raise LoadError(f"{card.name} was read by the toy from {folder.name}")


def test_another_format_needs_one_entry(tmp_path, monkeypatch):
    (tmp_path / "toy.pt").write_bytes(b"weights")
    card = make_card("qwen2")
    with pytest.raises(ModelMissingError):
        load(card, tmp_path, CPU)
    monkeypatch.setitem(WEIGHTS, "toy", Pickled())
    with pytest.raises(LoadError, match="was read by the toy"):
        load(card, tmp_path, CPU)
    assert size_bytes(card, tmp_path) == 7
