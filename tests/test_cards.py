"""Model cards: those that ship are valid, and an invalid one gives a helpful error."""

import pytest

from fimserver.canvas_card import Canvas
from fimserver.cards import (
    MODELS,
    Card,
    Fim,
    IndexParts,
    Remote,
    Tokenizer,
    get_card,
    is_present,
    model_folder,
    read_card,
    read_cards,
)
from fimserver.engine.denoising.schedules import read_schedule
from fimserver.engine.drafters.registry import DRAFTERS
from fimserver.errors import CardError
from models.training.tokenizer import EOT, MASK, MIDDLE, PREFIX, SUFFIX

CARDS = read_cards()
SHIPPED = {"nano", "nano-draft"}
GOOD = """
name = "good"
licence = "MIT"
osi = true
parameters_m = 10
architecture = "qwen2"
[fim]
layout = "psm"
prefix = "<p>"
suffix = "<s>"
middle = "<m>"
stops = ["<e>"]
"""
WANTED = [
    "nano",
    "nano-draft",
    "qwen2.5-coder-0.5b",
    "qwen2.5-coder-1.5b",
    "qwen2.5-coder-0.5b-instruct",
    "qwen2.5-coder-1.5b-instruct",
    "qwen2.5-coder-3b",
    "qwen2.5-coder-7b",
    "qwen2.5-coder-14b",
    "qwen2.5-coder-32b",
    "qwen3-coder-30b-a3b",
    "starcoder2-3b",
    "starcoder2-7b",
    "starcoder2-15b",
    "deepseek-coder-1.3b",
    "deepseek-coder-6.7b",
    "deepseek-coder-v2-lite",
    "codellama-7b",
    "codellama-13b",
    "codestral-22b",
    "codegemma-2b",
    "codegemma-7b",
    "granite-code-3b",
    "granite-code-8b",
    "seed-coder-8b",
    "mellum-4b",
    "dreamon-7b",
    "dream-7b",
    "dream-coder-7b",
    "diffucoder-7b",
    "open-dcoder-0.5b",
]


def test_every_promised_model_has_a_card():
    assert set(WANTED) <= set(CARDS)


@pytest.mark.parametrize("card", CARDS.values(), ids=lambda c: c.name)
def test_a_shipped_card_is_sound(card):
    assert card.hub or card.name in SHIPPED
    assert set(card.drafters) <= {"default", *DRAFTERS}
    assert set(card.drafters.get("default", "ngram").split(",")) <= set(DRAFTERS)
    assert card.drafters.get("model", "nano") in CARDS
    files = [what for what in card.drafters.values() if what.endswith(".safetensors")]
    inside = [what for what in files if not (MODELS / "adapters" / what).is_file()]  # in the model's folder
    assert set(inside) <= set(card.files)
    if card.canvas:
        assert read_schedule(card.canvas.schedule)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("parameters_m = 10\n", ""), "parameters_m: Field required"),
        (("parameters_m = 10", "parameters_m = 10\ncolour = 3"), "colour: Extra inputs are not permitted"),
        (('"psm"', '"pms"'), "fim.layout"),
        (('middle = "<m>"\n', ""), "needs the token `middle`"),
        (("osi = true", 'osi = "yes"'), "osi: Input should be a valid boolean"),
        (("[fim]", "[fim"), "not valid TOML"),
        (('name = "good"', 'name = "other"'), "must equal the file name"),
        (('licence = "MIT"', 'licence = "MIT"\nrevision = "main"'), "revision"),
        (
            ("[fim]", '[index]\npackages = "p-{number}"\nversion = "1"\ncount = 3\npart_bytes = 9\n[fim]'),
            "add up to",
        ),
        (
            ("[fim]", '[index]\npackages = "p"\nversion = "1"\ncount = 3\npart_bytes = 9\n[fim]'),
            "index.packages",
        ),
    ],
)
def test_a_wrong_card_is_refused_with_its_field(change, complaint, tmp_path):
    path = tmp_path / "good.toml"
    path.write_text(GOOD)
    assert isinstance(read_card(path), Card)
    path.write_text(GOOD.replace(*change))
    with pytest.raises(CardError, match=r"good\.toml") as raised:
        read_card(path)
    assert complaint in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["gpt-5", "../nano", ""])
def test_an_unknown_card_is_an_error_that_says_where_to_look(name):
    with pytest.raises(CardError, match="fimserver models"):
        get_card(name)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("qwen2.5-coder-0.5b-instruc", "did you mean qwen2.5-coder-0.5b-instruct?"),
        ("qwen2.5-code-1.5b", "qwen2.5-coder-1.5b"),
        ("Dream", "did you mean dream-7b, dream-coder-7b, dreamon-7b?"),
    ],
)
def test_a_name_that_is_nearly_right_gets_those_meant(name, meant):
    with pytest.raises(CardError) as error:
        get_card(name)
    assert meant in str(error.value)


def test_nano_is_present_and_its_markers_are_those_it_was_trained_with(tmp_path):
    card = get_card("nano")
    assert is_present(card, tmp_path)
    assert card.fim is not None
    assert card.canvas is not None
    assert (card.fim.prefix, card.fim.suffix, card.fim.middle) == (PREFIX, SUFFIX, MIDDLE)
    assert (card.canvas.mask, card.canvas.end, card.fim.stops) == (MASK, EOT, (EOT,))


def test_every_field_is_explained():
    text = (MODELS / "README.md").read_text()
    for model in (Card, Tokenizer, Fim, Canvas, IndexParts, Remote):
        for name in model.model_fields:
            assert f"`{name}`" in text or f"`[{name}]`" in text, name


def test_a_toy_card_from_outside_is_a_model(tmp_path, monkeypatch):
    """nano's files under another name: a card is all that a model needs."""
    (tmp_path / "cards").mkdir()
    text = (MODELS / "cards" / "nano.toml").read_text("utf-8").replace('name = "nano"', 'name = "toy"')
    (tmp_path / "cards" / "toy.toml").write_text(text)
    (tmp_path / "toy").symlink_to(MODELS / "nano")
    monkeypatch.setattr("fimserver.cards.MODELS", tmp_path)
    assert get_card("toy").routes == ("dllm", "ar")
    assert model_folder(get_card("toy"), tmp_path / "none") == tmp_path / "toy"


@pytest.mark.parametrize("name", sorted(read_cards()))
def test_a_card_is_the_same_after_json(name):
    card = get_card(name)
    assert Card.model_validate_json(card.model_dump_json()) == card
