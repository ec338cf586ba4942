"""Layouts of the prompt, its budget, and an anchor that stays where it is while someone types."""

import pytest

from fimserver.cards import Fim
from fimserver.engine.kv import common_prefix
from fimserver.engine.prompt import Context, anchored_tail, cut_context, fim_prompt
from fimserver.types import Request


@pytest.fixture
def engine(nano):
    return nano.engine("ar")


LAYOUTS = {
    "psm": "<|prefix|> P <|suffix|> S <|middle|>",
    "spm": "<|suffix|> S <|prefix|> P <|middle|>",
    "spm_tail": "<|prefix|> <|suffix|> S <|middle|> P",
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, engine):
    vocabulary = engine.vocabulary
    fim = Fim(
        layout=layout, prefix="<|prefix|>", suffix="<|suffix|>", middle="<|middle|>", stops=("<|eot|>",), start=("<|file|>",)
    )
    context = Context(tuple(vocabulary.encode("P")), tuple(vocabulary.encode("S")))
    assert vocabulary.decode(fim_prompt(context, fim, vocabulary)) == "<|file|>" + LAYOUTS[layout].replace(" ", "")


def test_a_layout_without_a_middle_token(engine):
    fim = Fim(layout="spm", prefix="<|prefix|>", suffix="<|suffix|>", stops=("<|eot|>",))
    ids = fim_prompt(Context((), ()), fim, engine.vocabulary)
    assert engine.vocabulary.decode(ids) == "<|suffix|><|prefix|>"


@pytest.mark.parametrize(("prefix", "suffix"), [(0, 0), (10, 10), (100_000, 10), (10, 100_000), (5_000_000, 5_000_000)])
def test_the_prompt_fits_its_budget(prefix, suffix, engine):
    line = "value = compute(value, 12)\n"
    left, right = (line * (prefix // len(line) + 1))[:prefix], (line * (suffix // len(line) + 1))[:suffix]
    context = cut_context(Request(left, right), engine.card, engine.vocabulary)
    assert len(context.prefix) + len(context.suffix) + 8 <= engine.card.prompt_tokens
    assert left.endswith(engine.vocabulary.decode(context.prefix))
    assert right.startswith(engine.vocabulary.decode(context.suffix))
    if prefix >= 100_000:
        assert len(context.prefix) >= 0.7 * (engine.card.prompt_tokens - 8 - len(context.suffix))


def test_typing_moves_the_cut_seldom(engine):
    """500 keys at the end of a long prefix: nearly every prompt continues the one before."""
    text = "".join(f"value_{i} = compute(value_{i - 1}, {i})\n" for i in range(400))
    typed = "result = [compute(v) for v in values if v is not None]\n" * 10
    moved = 0
    last: tuple[int, ...] = ()
    for i in range(500):
        prefix = cut_context(Request(text + typed[:i], "\n"), engine.card, engine.vocabulary).prefix
        moved += common_prefix(prefix, last) < len(last) - 4
        last = prefix
    assert moved <= 4


def test_the_tail_starts_at_a_line(engine):
    text = "".join(f"line {i}\n" for i in range(1000))
    tail = anchored_tail(text, 800)
    assert tail.startswith("line ")
    assert text.endswith(tail)
    assert len(tail) <= 800


def test_windows_line_ends_are_the_models_line_ends(engine):
    unix = cut_context(Request("a\nb\n", "c\n"), engine.card, engine.vocabulary)
    assert cut_context(Request("a\r\nb\r\n", "c\r\n"), engine.card, engine.vocabulary) == unix


@pytest.mark.parametrize(
    ("tokens", "request_", "header"),
    [
        ({}, Request("", "", path="a.py", repo="r"), ""),
        ({"file": "<|file|>"}, Request("", "", path="a.py"), "<|file|>a.py\n"),
        ({"file": "<|file|>"}, Request("", ""), ""),
        ({"file": "<|file|>", "repo": "<|pad|>"}, Request("", "", path="a.py"), ""),
        ({"file": "<|file|>", "repo": "<|pad|>"}, Request("", "", path="a.py", repo="r"), "<|pad|>r\n<|file|>a.py\n"),
    ],
)
def test_repository_and_file_stand_first_where_the_family_knows_them(tokens, request_, header, engine):
    fim = engine.card.fim.model_copy(update=tokens)
    card = engine.card.model_copy(update={"fim": fim})
    prompt = fim_prompt(cut_context(request_, card, engine.vocabulary), fim, engine.vocabulary)
    assert engine.vocabulary.decode(prompt) == header + "<|suffix|><|prefix|><|middle|>"


def test_a_file_name_is_text_and_never_a_marker(engine):
    card = engine.card.model_copy(update={"fim": engine.card.fim.model_copy(update={"file": "<|file|>"})})
    header = cut_context(Request("", "", path="<|middle|>.py"), card, engine.vocabulary).header
    assert engine.vocabulary.special("<|middle|>") not in header
