"""Adding and removing models: links by hash or by name, no copies, no files of others removed."""

import json

import pytest

from fimserver.cards import get_card, is_present
from fimserver.errors import InputError
from fimserver.store import links
from fimserver.store.fetch import fetch
from tests.store.conftest import DATA, NAME

CODER = "qwen2.5-coder-0.5b"


@pytest.fixture
def pinned(card, monkeypatch):
    """The cards there are: one that pins the small file."""
    monkeypatch.setattr(links, "read_cards", lambda: {"tiny": card})
    return card


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "elsewhere" / CODER
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def test_a_file_is_known_by_its_hash_and_linked(pinned, tmp_path):
    path = tmp_path / "some.gguf"
    path.write_bytes(DATA)
    assert links.add(path, tmp_path / "models") == pinned
    assert (tmp_path / "models" / "tiny" / NAME).resolve() == path
    assert is_present(pinned, tmp_path / "models")
    assert links.own_bytes(tmp_path / "models" / "tiny") < 1000


def test_a_file_that_no_card_pins_is_used_by_its_path(pinned, tmp_path):
    path = tmp_path / "some.gguf"
    path.write_bytes(b"GGUF" + DATA)
    with pytest.raises(InputError, match="--ar-card"):
        links.add(path, tmp_path / "models")


def test_a_folder_is_linked_under_the_name_of_its_card(checkpoint, tmp_path):
    assert links.add(checkpoint, tmp_path / "models").name == CODER
    assert is_present(get_card(CODER), tmp_path / "models")


def test_a_folder_with_another_name_needs_the_name(checkpoint, tmp_path):
    other = checkpoint.rename(checkpoint.with_name("mine"))
    with pytest.raises(InputError, match="--as NAME"):
        links.add(other, tmp_path / "models")
    with pytest.raises(InputError, match="--as NAME"):
        links.add(other, tmp_path / "models", "unknown")
    assert links.add(other, tmp_path / "models", CODER).name == CODER


def test_a_snapshot_of_the_hub_names_itself(checkpoint, tmp_path):
    snapshot = tmp_path / "models--Qwen--Qwen2.5-Coder-0.5B" / "snapshots" / "a"
    snapshot.parent.mkdir(parents=True)
    checkpoint.rename(snapshot)
    assert links.add(snapshot, tmp_path / "models").name == CODER


def test_what_is_no_model_is_refused(tmp_path, checkpoint):
    text = tmp_path / "a.txt"
    text.write_text("text")
    for path, says in (
        (text, "not a GGUF"),
        (tmp_path / "none", "does not exist"),
        (tmp_path, r"no config\.json"),
    ):
        with pytest.raises(InputError, match=says):
            links.add(path, tmp_path / "models")
    (checkpoint / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(InputError, match="of the kind 'llama'"):
        links.add(checkpoint, tmp_path / "models")
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"no \*\.safetensors"):
        links.add(checkpoint, tmp_path / "models")


def test_a_downloaded_model_is_not_replaced_by_a_link(checkpoint, tmp_path):
    folder = tmp_path / "models" / CODER
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes(2 << 20))
    with pytest.raises(InputError, match=f"fimserver models rm {CODER}"):
        links.add(checkpoint, tmp_path / "models")


def test_removing_a_link_leaves_what_it_leads_to(checkpoint, tmp_path):
    links.add(checkpoint, tmp_path / "models")
    assert links.remove(CODER, tmp_path / "models") == 0
    assert (checkpoint / "model.safetensors").exists()
    assert not (tmp_path / "models" / CODER).is_symlink()


def test_removing_says_what_became_free_and_takes_unfinished_downloads_too(tmp_path):
    for name in (CODER, f"{CODER}.part"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(bytes(100))
    assert links.remove(CODER, tmp_path) == 200
    assert list(tmp_path.glob("qwen*")) == []


@pytest.mark.parametrize(
    ("name", "says"),
    [("nano", "shipped"), ("nothing", "no model named"), (CODER, "is not in"), ("..", "no model")],
)
def test_what_cannot_be_removed_is_said(name, says, tmp_path):
    with pytest.raises(InputError, match=says):
        links.remove(name, tmp_path)


def test_get_links_what_another_program_has(card, seen, tmp_path):
    path = tmp_path / "home" / ".lmstudio" / "models" / "a" / "b" / NAME
    path.parent.mkdir(parents=True)
    path.write_bytes(DATA)
    where = fetch(card, tmp_path / "models", seen)
    assert (where / NAME).resolve() == path
    assert any("LM Studio has it" in line for line in seen.lines)
