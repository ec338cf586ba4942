"""Text to ids and back: nothing that a user types is ever a special token."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, trainers

from fimserver.engine.output import Output, stop_rule
from fimserver.engine.prompts.vocabulary import Vocabulary
from fimserver.errors import LoadError
from fimserver.reasons import Reason
from fimserver.types import Request, Sampling
from tests.tiny import make_card

NAMES = ["<|middle|>", "<|eot|>", "<|mask|>", "<|suffix|>", "<|prefix|>", "<|pad|>", "<|file|>"]


@pytest.fixture
def vocabulary(nano):
    return nano.engine("ar").vocabulary


@settings(max_examples=300, deadline=None)
@given(pieces=st.lists(st.one_of(st.text(max_size=12), st.sampled_from(NAMES)), max_size=6))
def test_user_text_never_becomes_special_and_comes_back(pieces, nano_models):
    vocabulary = nano_models.engine("ar").vocabulary
    text = "".join(pieces).replace("\r\n", "\n")
    ids = vocabulary.encode(text)
    assert not set(ids) & set(vocabulary.specials.values())
    assert vocabulary.decode(ids) == text


def test_a_lone_surrogate_is_replaced(vocabulary):
    assert vocabulary.decode(vocabulary.encode("a\ud83db")) == "a\ufffdb"


def test_an_unknown_special_is_named(vocabulary):
    with pytest.raises(LoadError, match=r"no token '<\|nope\|>'"):
        vocabulary.special("<|nope|>")


def shown(vocabulary, text, request):
    """The output after each token of ``text``."""
    output, ids, parts = Output(vocabulary, request), [], []
    for token in vocabulary.encode(text):
        ids.append(token)
        parts.append(output.show(ids))
        if output.reason:
            break
    return parts, output


def test_half_a_character_waits(vocabulary):
    parts, output = shown(vocabulary, "a😀b", Request("", ""))
    assert "".join(parts) == output.text == "a😀b"
    assert not any("\ufffd" in part for part in parts)
    assert "" in parts


@pytest.mark.parametrize(
    ("rule", "prefix", "text", "want", "reason"),
    [
        ("line", "x = ", "f(1)\ny = 2", "f(1)", Reason.LINE),
        ("line", "def f():", "\n    return 1\n\n", "\n    return 1", Reason.LINE),
        ("line", "x = ", "f(1)", "f(1)", None),
        ("block", "    x = ", "1\n    y = 2\nz = 3", "1\n    y = 2", Reason.BLOCK),
        ("block", "\tx = ", "1\n\n\ty = 2\n", "1\n\n\ty = 2", None),
        ("block", "def f():", "\n    return 1\n\n\nx = 2\n", "\n    return 1", Reason.BLOCK),
        ("block", "    if x:", "\n        y = 2\n    z = 3", "\n        y = 2", Reason.BLOCK),
        ("none", "    x = ", "1\nz = 3", "1\nz = 3", None),
    ],
)
def test_stop_rules(rule, prefix, text, want, reason, vocabulary):
    parts, output = shown(vocabulary, text, Request(prefix, "", sampling=Sampling(stop=rule)))
    assert "".join(parts) == want
    assert output.reason is reason


@pytest.mark.parametrize(
    ("prefix", "suffix", "rule"),
    [
        ("", "", "none"),
        ("    ", "\nx = 1", "none"),
        ("    ", "\r\nx = 1", "none"),
        ("def f():", "\n", "none"),
        ("f(", ")\n", "none"),
        ("f(a,", "\n", "none"),
        ("return ", "\n\n", "line"),
        ("f(a", ")\n", "line"),
        ("f(", "name)\n", "line"),
        ("", " + 1)\n", "line"),
    ],
)
def test_auto_is_one_line_where_code_stands_on_the_line_and_opens_nothing(prefix, suffix, rule):
    assert stop_rule(Request(prefix, suffix)) == rule


def sentencepiece_style():
    """A BPE that puts a space before the first word, as CodeLlama's and Codestral's do."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<unk>", *bytes_, "<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<eos>"],
    )
    tokenizer.train_from_iterator(
        ["def read(path):\n    return open(path).read()\n" * 5, "☺ ☺x ☺ y"], trainer
    )
    return tokenizer


@pytest.mark.parametrize("text", ["return", " return", "    return x\n", "", "(path)", "é\n"])
def test_an_anchor_keeps_leading_blanks_as_they_are(text):
    card = make_card("llama", tokenizer={"anchor": "☺"})
    vocabulary = Vocabulary(sentencepiece_style(), card)
    ids = vocabulary.encode(text)
    assert vocabulary.decode(ids) == text
    plain = Vocabulary(sentencepiece_style(), make_card("llama"))
    if text == "return":
        assert plain.encode(text) != ids


def test_tokens_by_text_are_kept_for_the_next_start_and_found_again_where_the_file_does_not_fit(tmp_path):
    card = make_card("llama", tokenizer={"anchor": "☺"})
    found = Vocabulary(sentencepiece_style(), card).by_text
    texts = [text for text in Vocabulary(sentencepiece_style(), card).texts() if text]
    assert sorted(texts) == found.texts
    assert {found.texts[found.ids.index(i)] for i in found.beginning_with("re")} == {
        text for text in texts if text.startswith("re")
    }
    file = tmp_path / "vocabulary.json"
    for damaged in (None, "{", '{"key": "other"}', '{"texts": 1}'):
        if damaged:
            file.write_text(damaged)
        assert Vocabulary(sentencepiece_style(), card, tmp_path).by_text == found
        kept = Vocabulary(sentencepiece_style(), card, tmp_path)
        kept.texts = lambda: pytest.fail("they were kept")
        assert kept.by_text == found
        assert kept.largest_id == Vocabulary(sentencepiece_style(), card).largest_id
    assert Vocabulary(sentencepiece_style(), make_card("llama"), tmp_path).by_text.texts != found.texts
