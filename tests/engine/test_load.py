"""Checkpoints that are damaged, incomplete or another model's: each gives an error and never a token."""

import json

import accelerate
import pytest
import torch
from safetensors.torch import load_file, save_file

from fimserver.engine.device import device_map
from fimserver.engine.engines import ModelPool, make_ar
from fimserver.engine.forward import fused
from fimserver.engine.load import load
from fimserver.engine.runtime import DraftContext, make_runtime
from fimserver.errors import FimError, LoadError, ModelMissingError
from fimserver.hashing import sha256
from fimserver.machine import Machine
from fimserver.settings import Settings
from fimserver.types import Deadline, Request, Sampling
from tests.tiny import CONFIGS, DREAM_CANVAS, copy_checkpoint, make_card, make_checkpoint

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("good") / "tiny", "qwen2")


@pytest.fixture
def folder(good, tmp_path):
    return copy_checkpoint(good, tmp_path / "tiny")


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors), folder / "model.safetensors", metadata={"format": "pt"})


def edit_json(path, change):
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def pinned(folder):
    return make_card("qwen2", files={p.name: sha256(p) for p in folder.iterdir()})


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def flip_byte(folder):
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-500] ^= 1
    path.write_bytes(bytes(data))


def drop_tensor(folder):
    rewrite(folder, lambda t: {k: v for k, v in t.items() if k != "model.layers.1.mlp.up_proj.weight"})


def add_tensor(folder):
    rewrite(folder, lambda t: t | {"model.layers.7.mlp.up_proj.weight": torch.zeros(2)})


def reshape_tensor(folder):
    rewrite(folder, lambda t: t | {"model.norm.weight": torch.zeros(3)})


def nan_weights(folder):
    rewrite(folder, lambda t: t | {"model.norm.weight": torch.full_like(t["model.norm.weight"], torch.nan)})


def garbage_tokenizer(folder):
    (folder / "tokenizer.json").write_text("{}")


def foreign_tokenizer(folder):
    value = json.loads((folder / "tokenizer.json").read_text())
    value["added_tokens"] = [t for t in value["added_tokens"] if t["content"] != "<fim_middle>"]
    (folder / "tokenizer.json").write_text(json.dumps(value))


def foreign_config(folder):
    edit_json(folder / "config.json", {"model_type": "llama"})


def shrunk_vocabulary(folder):
    edit_json(folder / "config.json", {"vocab_size": 8000})
    rewrite(
        folder,
        lambda t: t | {k: t[k][:8000].clone() for k in ("model.embed_tokens.weight", "lm_head.weight")},
    )


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (truncate, "cannot be read"),
        (drop_tensor, "lacks tensor model.layers.1.mlp.up_proj.weight"),
        (add_tensor, "unknown tensor model.layers.7.mlp.up_proj.weight"),
        (reshape_tensor, "another shape: ('model.norm.weight'"),
        (nan_weights, "NaN or infinity"),
        (garbage_tokenizer, "tokenizer files"),
        (foreign_tokenizer, "no token '<fim_middle>'"),
        (foreign_config, "config.json says 'llama'"),
        (shrunk_vocabulary, "does not fit an embedding of 8000 rows"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_damage_is_found_and_named(damage, complaint, folder):
    load(make_card("qwen2"), folder, CPU)
    damage(folder)
    with pytest.raises(LoadError) as raised:
        load(make_card("qwen2"), folder, CPU)
    assert complaint in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_flipped_byte_is_found_by_the_hashes_of_the_card(folder):
    card = pinned(folder)
    load(card, folder, CPU)
    flip_byte(folder)
    with pytest.raises(LoadError, match=r"model\.safetensors is damaged.*fimserver models get tiny"):
        load(card, folder, CPU)


def test_a_flipped_byte_is_found_by_the_manifest_of_a_download(folder):
    files = {p.name: sha256(p) for p in folder.iterdir()}
    (folder / "manifest.json").write_text(json.dumps({"files": files}))
    load(make_card("qwen2"), folder, CPU)
    flip_byte(folder)
    with pytest.raises(LoadError, match="damaged"):
        load(make_card("qwen2"), folder, CPU)


def test_a_file_that_a_card_pins_may_not_be_missing(folder):
    card = pinned(folder)
    (folder / "generation_config.json").unlink()
    with pytest.raises(LoadError, match=r"generation_config\.json is missing"):
        load(card, folder, CPU)


def test_an_absent_model_says_how_to_get_it(tmp_path):
    with pytest.raises(ModelMissingError, match="fimserver models get tiny"):
        load(make_card("qwen2"), tmp_path / "nothing", CPU)


def test_pickles_are_not_weights(folder):
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelMissingError):
        load(make_card("qwen2"), folder, CPU)


def test_code_in_a_checkpoint_is_never_run(folder, capfd):
    marker = folder / "ran"
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass C: pass\n")
    auto_map = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.C"}
    edit_json(folder / "config.json", {"auto_map": auto_map})
    load(make_card("qwen2"), folder, CPU)
    edit_json(folder / "config.json", {"model_type": "evil"})
    with pytest.raises(FimError):
        load(make_card("evil"), folder, CPU)
    assert not marker.exists()
    assert "y/N" not in capfd.readouterr().out


def test_a_dream_checkpoint_loads_into_native_qwen2(tmp_path):
    folder = make_checkpoint(tmp_path / "dream", "Dream")
    card = make_card("Dream", loads_as="qwen2", fim=None, canvas=DREAM_CANVAS)
    loaded = load(card, folder, CPU)
    assert type(loaded.model).__name__ == "Qwen2ForCausalLM"
    assert loaded.model.config.is_causal is False


def test_a_causal_model_on_a_full_canvas_card_is_refused(folder, monkeypatch):
    """The probe: a changed suffix token must reach a canvas row."""
    card = make_card("qwen2", fim=None, canvas=DREAM_CANVAS)
    load(card, folder, CPU)

    def causal(inputs_embeds, **_):
        length = inputs_embeds.shape[1]
        return torch.ones(length, length, dtype=torch.bool).tril()[None, None]

    monkeypatch.setattr("transformers.models.qwen2.modeling_qwen2.create_causal_mask", causal)
    with pytest.raises(LoadError, match="does not attend to the suffix"):
        load(card, folder, CPU)


@pytest.mark.parametrize("architecture", sorted(CONFIGS))
def test_every_family_loads_strictly(architecture, tmp_path):
    loaded = load(make_card(architecture), make_checkpoint(tmp_path / "tiny", architecture), CPU)
    assert loaded.dtype is torch.float32
    assert not any(p.requires_grad for p in loaded.model.parameters())


def test_a_model_larger_than_one_gpu_is_spread_by_accelerate():
    gpu = torch.device("cuda")
    small, large = make_card("qwen2", parameters_m=7000.0), make_card("qwen2", parameters_m=70000.0)
    assert device_map(small.weights_gib, gpu, [24.0]) == {"": gpu}
    assert device_map(large.weights_gib, gpu, [80.0, 80.0]) == "auto"
    assert device_map(large.weights_gib, CPU, [0.0]) == {"": CPU}


def test_a_model_that_accelerate_offloads_decodes_the_same(folder):
    """Weights that are not where the computation is: the native class through the same engine."""
    card, settings = make_card("qwen2"), Settings(network="native", threads=1)
    plain = make_ar(DraftContext(make_runtime(load(card, folder, CPU), settings), settings))
    offloaded = load(card, folder, CPU)
    accelerate.cpu_offload(offloaded.model, execution_device=CPU)
    assert not fused.fits(offloaded.model)
    spread = make_ar(DraftContext(make_runtime(offloaded, Settings()), Settings()))
    request = Request("def f(x):\n    return ", "\n", sampling=Sampling(max_tokens=8, stop="none"))
    texts = ["".join(c.text for c in engine.complete(request, Deadline())) for engine in (plain, spread)]
    assert texts[0] == texts[1] != ""


def test_the_second_route_gets_what_room_the_first_has_left(tmp_path, monkeypatch):
    """A card is chosen once, from the memory that was free before anything of ours was loaded."""
    for name in ("qwen2.5-coder-7b", "qwen2.5-coder-1.5b", "dreamon-7b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(b"")
    monkeypatch.setattr("fimserver.engine.engines.free_machine", lambda _: Machine(23.0, 0.0))
    models = ModelPool(Settings(models_dir=tmp_path, device="cpu"))
    assert models.card("dllm").name == "dreamon-7b"
    assert models.card("ar").name == "qwen2.5-coder-1.5b"
    monkeypatch.setattr("fimserver.engine.engines.free_machine", lambda _: Machine(1.0, 0.0))
    assert models.card("ar").name == "qwen2.5-coder-1.5b"
