"""Weights into the package: copied, pinned, and pinned again."""

import shutil

import pytest
import torch

from fimserver.cards import MODELS, read_card
from fimserver.engine.load import load
from fimserver.errors import LoadError
from fimserver.hashing import sha256
from models.training.ship import SHIPPED, ship, ship_drafter


def test_shipping_pins_what_it_copies_and_can_be_repeated(tmp_path):
    nano, card = tmp_path / "nano", tmp_path / "cards" / "nano.toml"
    shutil.copytree(MODELS / "nano", nano)
    card.parent.mkdir()
    shutil.copyfile(MODELS / "cards" / "nano.toml", card)
    ship(nano, nano, card)
    once = card.read_text()
    ship(nano, nano, card)
    assert card.read_text() == once
    pinned = read_card(card)
    assert set(pinned.files) >= set(SHIPPED)
    assert pinned.files == {name: sha256(nano / name) for name in pinned.files}
    load(pinned, nano, torch.device("cpu"))
    (nano / "tokenizer.json").write_bytes((nano / "tokenizer.json").read_bytes() + b" ")
    with pytest.raises(LoadError, match="damaged"):
        load(pinned, nano, torch.device("cpu"))


def test_a_drafter_goes_where_the_card_names_it_and_is_pinned(tmp_path):
    nano, card = tmp_path / "nano", tmp_path / "cards" / "nano.toml"
    shutil.copytree(MODELS / "nano", nano)
    card.parent.mkdir()
    text = (MODELS / "cards" / "nano.toml").read_text().replace("heads.safetensors", "other.safetensors")
    card.write_text(text)
    (tmp_path / "made.safetensors").write_bytes(b"weights")
    ship_drafter(tmp_path / "made.safetensors", "heads", nano, card)
    assert (nano / "drafters" / "other.safetensors").read_bytes() == b"weights"
    assert read_card(card).files["drafters/other.safetensors"] == sha256(tmp_path / "made.safetensors")


@pytest.mark.parametrize("name", ["nano", "nano-draft"])
def test_the_shipped_card_pins_the_shipped_files(name):
    card, folder = read_card(MODELS / "cards" / f"{name}.toml"), MODELS / name
    files = {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.suffix in {".json", ".safetensors"}
    }
    assert card.files == {name: sha256(folder / name) for name in files}
