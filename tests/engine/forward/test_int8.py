"""Exact int8: integer sums, rows that do not depend on others, and the cache of int8 weights."""

import json
import logging
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fimserver.cards import MODELS, get_card
from fimserver.engine.engines import ModelPool, make_ar
from fimserver.engine.forward import int8, split_chunks
from fimserver.engine.forward.layers import Stack
from fimserver.engine.forward.prefix_cache import PrefixCache
from fimserver.engine.load import load
from fimserver.engine.runtime import DraftContext, attends_alike, make_runtime
from fimserver.engine.speculation.drafts import RandomDrafter, ScriptedDrafter
from fimserver.engine.weights import arithmetic, int8_cache, packed_file
from fimserver.engine.weights.safetensors import open_checkpoint
from fimserver.errors import LoadError
from fimserver.settings import Settings
from fimserver.types import Deadline
from tests.engine.speculation.test_speculate import REQUESTS, Liar, ids_of
from tests.tiny import make_card, make_checkpoint

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(not int8.is_exact(), reason="this processor has no exact int8 products")


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_products_are_exact_integer_sums_and_rows_do_not_see_each_other():
    weight, x = random(300, 640), random(32, 640, seed=1)
    values, scales = int8.quantize_weight([weight[:200], weight[200:]])
    product = int8.Int8Linear(values, scales)
    integers, row_scales = int8.quantize_rows(x)
    sums = (integers.long() - 128) @ values.T.long()
    assert torch.equal(product(x), (sums.float() * scales).mul(row_scales))
    for rows in (1, 2, 3, 5, 8, 16, 31):
        assert torch.equal(product(x[:rows]), product(x)[:rows])
    relative = (product(x) - x @ weight.T).norm() / (x @ weight.T).norm()
    assert relative < 0.02


def test_a_row_of_zeros_and_a_bias():
    product = int8.Int8Linear(*int8.quantize_weight([random(8, 64)]), torch.arange(8.0))
    assert torch.equal(product(torch.zeros(2, 64)), torch.arange(8.0).expand(2, 8))


@pytest.mark.parametrize("groups", [1, 2, 4, 7])
def test_passes_of_any_shape_that_is_used_have_the_same_bits(groups, tmp_path):
    heads = {"num_attention_heads": 2 * groups, "num_key_value_heads": 2, "head_dim": 16}
    folder = make_checkpoint(tmp_path / "tiny", "qwen3", **heads)
    card, settings = make_card("qwen3"), Settings(threads=1)
    runtime = make_runtime(load(card, folder, CPU, "int8"), settings)
    assert attends_alike(runtime.loaded.weights) == (groups >= 4)
    engine = make_ar(DraftContext(runtime, settings))
    assert len(engine.speculation.policy.costs.ms) >= 8  # nothing was refused by the probe


@pytest.fixture(scope="module")
def engine():
    return ModelPool(Settings(device="cpu", threads=1, quantize="int8", drafter="none")).engine("ar")


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda r: f"{len(r.prefix)}-{r.sampling.temperature}")
def test_the_text_is_the_same_whatever_is_drafted(engine, request_):
    plain, _ = ids_of(engine, request_)
    for drafter in (ScriptedDrafter(plain), Liar(plain, 0), RandomDrafter(0, 8192)):
        assert ids_of(engine, request_, [drafter])[0] == plain


def test_the_text_is_the_same_from_any_state_of_the_cache(engine):
    request = REQUESTS[0]
    engine.cache.clear()
    plain, _ = ids_of(engine, request)
    for other in REQUESTS[1:3]:
        ids_of(engine, other)
        assert ids_of(engine, request)[0] == plain


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_a_prompt_read_in_any_pieces_has_the_bits_of_whole_chunks(kind, tmp_path):
    runtime = make_runtime(load(make_card(kind), make_checkpoint(tmp_path / "tiny", kind), CPU, "int8"),
                           Settings(threads=1, prefill_rows=16, prompt_tokens=100))  # fmt: skip
    cache = runtime.cache
    assert cache.splits
    ids = [7 * i % 61 for i in range(77)]

    def rows(*ends):
        cache.clear()
        for end in ends:
            logits = cache.prefill(ids[:end], Deadline(), want_logits=True)
        return logits, [r[:, :77].clone() for i in range(2) for r in cache.kv.layer(i)]

    cache.splits = False
    wanted = rows(77)
    cache.splits = True
    for ends in ([77], [76, 77], [1, 2, 3, 33, 77], [16, 32, 77], [31, 32, 48, 50, 77]):
        found = rows(*ends)
        assert torch.equal(found[0], wanted[0])
        assert all(torch.equal(*pair) for pair in zip(found[1], wanted[1], strict=True))
    assert cache.num_uncached_tokens([*ids, 5]) == 1
    assert cache.num_uncached_tokens(ids[:40]) == 1  # the row whose logits are wanted
    cache.clear()
    assert [len(p) for p in cache._pieces(ids, ids[:20], want_logits=True)] == [28, 29]


def test_chunks_whose_rows_see_each_other_in_the_kernels_are_not_split(tmp_path):
    loaded = load(make_card("qwen2"), make_checkpoint(tmp_path / "tiny", "qwen2"), CPU, "int8")
    network = make_runtime(loaded, Settings(threads=1)).network
    assert split_chunks.chunks_split(network, 16)
    layer = network.stack.layers[0]
    exact = layer.out
    other = layer._replace(out=lambda x: exact(x) * (1 + 1e-6 * (len(x) % 2)))
    stack = Stack([other, *network.stack.layers[1:]], network.stack.sizes)
    network.weights = network.weights._replace(stack=stack)
    assert not split_chunks.chunks_split(network, 16)


def test_the_network_is_nearly_that_of_fp32(nano):
    exact = nano.runtime(nano.card("ar"))
    loaded = load(get_card("nano"), MODELS / "nano", CPU, "int8")
    ids = exact.loaded.vocabulary.encode("def mean(values):\n    return sum(values) / len(values)\n\n\n" * 4)
    rows = [PrefixCache(n, 256, 64).prefill(ids, Deadline(), want_logits=True) for n in
            (exact.network, make_runtime(loaded, Settings(threads=1)).network)]  # fmt: skip
    p, q = (row.float().log_softmax(-1) for row in rows)
    assert float((p.exp() * (p - q)).sum()) < 0.05


@pytest.fixture
def folder(tmp_path):
    return make_checkpoint(tmp_path / "tiny", "qwen2")


def count_reads(monkeypatch):
    reads = []
    original = int8_cache.quantized
    monkeypatch.setattr(
        int8_cache, "quantized", lambda checkpoint: (reads.append(1), original(checkpoint))[1]
    )
    return reads


def logits(loaded):
    return PrefixCache(make_runtime(loaded, Settings(threads=1)).network, 64, 64).prefill(
        [5, 6, 7], Deadline(), want_logits=True
    )


def test_a_second_start_reads_what_the_first_one_kept(folder, monkeypatch):
    reads = count_reads(monkeypatch)
    first, second = (logits(load(make_card("qwen2"), folder, CPU, "int8")) for _ in range(2))
    assert len(reads) == 1
    assert torch.equal(first, second)


def damage(place):
    with (place / "weights.safetensors").open("r+b") as file:
        file.truncate(1000)


def forget(place):
    (place / "tokenizer.json").unlink()


def garble(place):
    (place / "meta.json").write_text("{")


def older(place):
    meta = json.loads((place / "meta.json").read_text())
    (place / "meta.json").write_text(json.dumps(meta | {"format": 0}))


def shorten(place):
    with (place / "packed.bin").open("r+b") as file:
        file.truncate(1000)


def of_another_machine(place):
    """As a home folder that two machines share, or after torch was updated."""
    index = json.loads((place / "packed.json").read_text())
    rewrite(place, "packed.json", json.dumps(index | {"machine": "torch 1 on a toaster"}).encode(), sums=True)


def flip(place):
    """Another bit in the last matrix."""
    data = (place / "packed.bin").read_bytes()
    rewrite(place, "packed.bin", data[:-100] + bytes([data[-100] ^ 1]) + data[-99:])


def zeros(place):
    """As after a crash: some pages of the embedding never reached the disk."""
    data = (place / "embedding.safetensors").read_bytes()
    rewrite(place, "embedding.safetensors", data[:-8192] + bytes(8192))


def other_products(place):
    """Bytes that are as they were written, in a layout that this processor reads otherwise."""
    index = json.loads((place / "packed.json").read_text())
    name = min(index["matrices"], key=lambda name: index["matrices"][name]["bytes"])
    index["matrices"][name]["check"][0] += 1
    rewrite(place, "packed.json", json.dumps(index).encode(), sums=True)


def rewrite(place, name, data, *, sums=False):
    """Other bytes that the sizes and times in ``meta.json`` do not give away; nor the ``sums``."""
    (place / name).write_bytes(data)
    meta = json.loads((place / "meta.json").read_text())
    meta["files"][name] = int8_cache._stamp(place / name)
    if sums:
        meta["sums"][name] = int8_cache.file_sum(place / name)
    (place / "meta.json").write_text(json.dumps(meta))


@pytest.mark.parametrize(
    "spoil", [damage, forget, garble, older, shorten, of_another_machine, flip, zeros, other_products]
)
def test_what_was_kept_and_does_not_fit_is_made_again(spoil, folder, monkeypatch):
    reads = count_reads(monkeypatch)
    wanted = logits(load(make_card("qwen2"), folder, CPU, "int8"))
    (place,) = int8_cache.FOLDER.iterdir()
    spoil(place)
    assert torch.equal(logits(load(make_card("qwen2"), folder, CPU, "int8")), wanted)
    assert len(reads) == 2
    load(make_card("qwen2"), folder, CPU, "int8")
    assert len(reads) == 2
    assert [p.name for p in int8_cache.FOLDER.iterdir()] == [place.name]  # nothing half written is left


def test_what_an_older_version_kept_of_the_same_weights_is_removed(folder):
    load(make_card("qwen2"), folder, CPU, "int8")
    (place,) = int8_cache.FOLDER.iterdir()
    older = place.with_name(f"{place.name.rpartition('-v')[0]}-v1")
    place.rename(older)
    load(make_card("qwen2"), folder, CPU, "int8")
    assert list(int8_cache.FOLDER.iterdir()) == [place]


def test_what_is_packed_is_kept_and_mapped_and_multiplies_alike(tmp_path):
    values = {"a": (random(96, 64) * 40).to(torch.int8), "b": (random(31, 200, seed=1) * 40).to(torch.int8)}
    with packed_file.PackedFile(tmp_path) as file:
        for name, matrix in values.items():
            file.add(name, matrix)
    found = packed_file.read_packed(tmp_path)
    for name, matrix in values.items():
        x = random(5, matrix.shape[1])
        fresh, kept = (int8.Int8Linear(m, torch.ones(len(matrix))) for m in (matrix, found[name]))
        assert torch.equal(fresh(x), kept(x))


def test_a_build_of_torch_that_cannot_take_them_back_keeps_the_integers(folder, monkeypatch):
    for module in (packed_file, int8_cache):
        monkeypatch.setattr(module, "keeps_packed", lambda: False)
    first, second = (logits(load(make_card("qwen2"), folder, CPU, "int8")) for _ in range(2))
    (place,) = int8_cache.FOLDER.iterdir()
    assert not (place / "packed.bin").exists()
    assert torch.equal(first, second)


def test_a_full_disk_costs_the_next_start_and_nothing_else(folder, monkeypatch, caplog):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(int8_cache, "save_file", full)
    with caplog.at_level(logging.WARNING):
        load(make_card("qwen2"), folder, CPU, "int8")
    assert "No space left" in caplog.text
    assert not list(int8_cache.FOLDER.iterdir())


@pytest.mark.parametrize("written", ["tokenizer.json", "meta.json"])
def test_a_disk_that_is_full_only_after_the_weights_is_no_error_either(written, folder, monkeypatch, caplog):
    original = Path.write_text

    def full(path, *args, **named):
        if path.name == written:
            raise OSError(28, "No space left on device")
        return original(path, *args, **named)

    monkeypatch.setattr(Path, "write_text", full)
    with caplog.at_level(logging.WARNING):
        assert torch.isfinite(logits(load(make_card("qwen2"), folder, CPU, "int8"))).all()
    assert "could not be stored" in caplog.text
    assert not list(int8_cache.FOLDER.iterdir())


def test_ctrl_c_while_it_is_written_leaves_nothing_and_the_next_start_makes_it(folder, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(int8_cache, "save_file", interrupt)
        with pytest.raises(KeyboardInterrupt):
            load(make_card("qwen2"), folder, CPU, "int8")
    assert not list(int8_cache.FOLDER.iterdir())
    load(make_card("qwen2"), folder, CPU, "int8")
    assert len(list(int8_cache.FOLDER.iterdir())) == 1


def test_two_that_make_it_at_once_both_have_it(folder, monkeypatch):
    """The second process begins and ends while the first one writes."""
    original = int8_cache.save_file
    other = []

    def save(tensors, path):
        original(tensors, path)
        if not other:
            other.append(True)
            with monkeypatch.context() as patch:
                patch.setattr(int8_cache.os, "getpid", lambda: 1)
                other.append(logits(load(make_card("qwen2"), folder, CPU, "int8")))

    monkeypatch.setattr(int8_cache, "save_file", save)
    first = logits(load(make_card("qwen2"), folder, CPU, "int8"))
    assert torch.equal(first, other[1])
    assert len(list(int8_cache.FOLDER.iterdir())) == 1


def test_other_weights_are_kept_apart(tmp_path):
    for seed in (0, 1):
        load(make_card("qwen2"), make_checkpoint(tmp_path / str(seed), "qwen2", seed), CPU, "int8")
    assert len(list(int8_cache.FOLDER.iterdir())) == 2


def test_a_network_that_it_does_not_compute(tmp_path):
    folder = make_checkpoint(tmp_path / "tiny", "starcoder2")
    with pytest.raises(LoadError, match="plain Qwen2, Qwen3 and Llama"):
        load(make_card("starcoder2"), folder, CPU, "int8")


def test_damaged_numbers_are_refused(folder):
    checkpoint = open_checkpoint(make_card("qwen2"), folder)

    def pieces(name):
        for rows in checkpoint.pieces(name):
            yield torch.full_like(rows, torch.nan) if name.endswith("1.mlp.up_proj.weight") else rows

    damaged = replace(checkpoint, pieces=pieces)
    with pytest.raises(LoadError, match="NaN or infinity"):
        int8_cache.int8_checkpoint("0" * 64, lambda: damaged)
    assert not list(int8_cache.FOLDER.iterdir())


def test_a_first_start_holds_one_matrix_at_a_time(folder, monkeypatch):
    """What was read and quantised of a matrix is gone when the next one is read."""
    checkpoint = open_checkpoint(make_card("qwen2"), folder)
    made: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []
    original = int8_cache.quantize_weight

    def pieces(name):
        for rows in checkpoint.pieces(name):
            own = rows.clone()
            made.append(weakref.ref(own))
            yield own

    def quantize(rows):
        alive.append(sum(tensor() is not None for tensor in made if tensor() is None or tensor().ndim == 2))
        values, scales = original(rows)
        made.append(weakref.ref(values))
        return values, scales

    monkeypatch.setattr(int8_cache, "quantize_weight", quantize)
    kept = int8_cache.int8_checkpoint("0" * 64, lambda: replace(checkpoint, pieces=pieces))
    assert len(kept.packed) == len(alive) == 1 + 4 * kept.shape.layers
    assert alive == [0] * len(alive)


class TestTheChoiceOfArithmetic:
    def test_what_is_asked_for_is_taken_and_small_models_stay_as_they_are(self):
        assert arithmetic.choose("bf16", 7.0, CPU) == "bf16"
        assert arithmetic.choose("auto", 7.0, CPU) == "none"
        assert arithmetic.choose("auto", 500.0, torch.device("cuda")) == "none"

    def test_it_is_measured_once(self, monkeypatch):
        measured = []
        monkeypatch.setattr(arithmetic, "measure", lambda: (measured.append(1), "int8")[1])
        assert [arithmetic.choose("auto", 500.0, CPU) for _ in range(2)] == ["int8", "int8"]
        assert len(measured) == 1

    def test_a_choice_that_cannot_be_read_is_made_again(self, monkeypatch):
        monkeypatch.setattr(arithmetic, "measure", lambda: "bf16")
        arithmetic.CHOICE_FILE.write_text("[]")
        assert arithmetic.choose("auto", 500.0, CPU) == "bf16"

    def test_the_measurement_names_one_that_this_processor_has(self):
        assert arithmetic.measure() in {"none", "bf16", "int8"}
