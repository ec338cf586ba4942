"""Weights into the package: copied, pinned, and pinned again."""

import shutil

import pytest
import torch

from fimserver.cards import MODELS, read_card
from fimserver.engine.load import load
from fimserver.errors import LoadError
from fimserver.hashing import sha256
from models.training.ship import SHIPPED, ship


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
    assert pinned.files == {name: sha256(nano / name) for name in SHIPPED}
    load(pinned, nano, torch.device("cpu"))
    (nano / "tokenizer.json").write_bytes((nano / "tokenizer.json").read_bytes() + b" ")
    with pytest.raises(LoadError, match="damaged"):
        load(pinned, nano, torch.device("cpu"))


def test_the_shipped_card_pins_the_shipped_files():
    card = read_card(MODELS / "cards" / "nano.toml")
    assert card.files == {name: sha256(MODELS / "nano" / name) for name in SHIPPED}
