"""Models of other programs: each store in that program's layout, matched by hash if it has one."""

import json

import pytest

from fimserver.store.discovery import discover, match, may_match
from tests.store.conftest import DATA, NAME
from tests.tiny import make_card


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


def put(path, data=DATA):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def digest_of(card):
    return card.files[NAME]


def test_nothing_is_found_where_there_is_nothing(home):
    assert discover(home, {}) == []


def test_a_gguf_in_the_cache_of_the_hub_is_known_by_its_blob(home, card):
    root = home / ".cache" / "huggingface" / "hub" / "models--someone--tiny-GGUF"
    blob = put(root / "blobs" / digest_of(card))
    snapshot = root / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "other-name.gguf").symlink_to(blob)
    [found] = discover(home, {})
    assert (found.owner, found.name, found.sha256) == (
        "Hugging Face",
        "someone/tiny-GGUF/other-name.gguf",
        digest_of(card),
    )
    assert match(card, [found]) == found


def test_a_model_in_the_cache_of_the_hub_is_its_snapshot_of_the_right_revision(home):
    snapshot = home / ".cache" / "huggingface" / "hub" / "models--someone--tiny" / "snapshots" / ("a" * 40)
    put(snapshot / "model.safetensors", b"x" * 10)
    put(snapshot / "config.json", b"{}")
    [found] = discover(home, {})
    assert (found.name, found.path, found.size_bytes) == ("someone/tiny", snapshot, 10)
    assert match(make_card("qwen2", revision="a" * 40), [found]) == found
    assert match(make_card("qwen2"), [found]) == found
    assert match(make_card("qwen2", revision="b" * 40), [found]) is None


def test_ollamas_manifest_leads_to_the_blob(home, card):
    root = home / ".ollama" / "models"
    blob = put(root / "blobs" / f"sha256-{digest_of(card)}")
    layers = [
        {"mediaType": "application/vnd.ollama.image.license", "digest": "sha256:" + "0" * 64, "size": 3},
        {
            "mediaType": "application/vnd.ollama.image.model",
            "digest": f"sha256:{digest_of(card)}",
            "size": len(DATA),
        },
    ]
    put(
        root / "manifests" / "registry.ollama.ai" / "library" / "tiny" / "0.5b",
        json.dumps({"layers": layers}).encode(),
    )
    [found] = discover(home, {})
    assert (found.owner, found.name, found.path) == ("Ollama", "tiny:0.5b", blob)
    assert match(card, [found]) == found


@pytest.mark.parametrize("text", ["", "{", "[]", '{"layers": 3}', '{"layers": [{"mediaType": "x"}]}'])
def test_a_manifest_that_cannot_be_read_is_left_out(text, home):
    put(home / ".ollama" / "models" / "manifests" / "r" / "tiny" / "latest", text.encode())
    assert discover(home, {}) == []


def test_lm_studio_and_llama_cpp_are_matched_by_name_and_size_then_by_hash(home, card):
    good = put(home / ".lmstudio" / "models" / "someone" / "tiny-GGUF" / NAME)
    put(home / ".cache" / "llama.cpp" / f"someone_tiny-GGUF_{NAME}", DATA[:-1] + b"\x00")
    studio, llama = discover(home, {})
    assert (studio.owner, studio.path, llama.owner) == ("LM Studio", good, "llama.cpp")
    assert may_match(card, llama)
    assert match(card, [llama]) is None
    assert match(card, [llama, studio]) == studio


def test_folders_can_be_elsewhere(home, tmp_path, card):
    put(tmp_path / "hub" / "models--a--b" / "snapshots" / "c" / NAME)
    put(tmp_path / "llama" / NAME)
    found = discover(home, {"HF_HUB_CACHE": str(tmp_path / "hub"), "LLAMA_CACHE": str(tmp_path / "llama")})
    assert [item.owner for item in found] == ["Hugging Face", "llama.cpp"]


def test_a_sharded_file_is_found_once(home):
    for number in (1, 2):
        put(home / ".cache" / "llama.cpp" / f"coder-0000{number}-of-00002.gguf")
    assert [found.path.name for found in discover(home, {})] == ["coder-00001-of-00002.gguf"]
