"""Layouts of the prompt, its budget, and an anchor that does not move while the user types."""

import itertools

import pytest

from fimserver.cards import Fim
from fimserver.engine.prompts.prompt import PromptTokens, anchored_tail, cut_context, fim_prompt, prompt_use
from fimserver.lengths import common_prefix
from fimserver.types import Deadline, Request, Sampling, Snippet


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
        layout=layout,
        prefix="<|prefix|>",
        suffix="<|suffix|>",
        middle="<|middle|>",
        stops=("<|eot|>",),
        start=("<|file|>",),
    )
    context = PromptTokens(tuple(vocabulary.encode("P")), tuple(vocabulary.encode("S")))
    assert vocabulary.decode(fim_prompt(context, fim, vocabulary)) == "<|file|>" + LAYOUTS[layout].replace(
        " ", ""
    )


def test_a_layout_without_a_middle_token(engine):
    fim = Fim(layout="spm", prefix="<|prefix|>", suffix="<|suffix|>", stops=("<|eot|>",))
    ids = fim_prompt(PromptTokens((), ()), fim, engine.vocabulary)
    assert engine.vocabulary.decode(ids) == "<|suffix|><|prefix|>"


@pytest.mark.parametrize(
    ("prefix", "suffix"), [(0, 0), (10, 10), (100_000, 10), (10, 100_000), (5_000_000, 5_000_000)]
)
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
        ({"file": "<|file|>", "repo": "<|pad|>"}, Request("", ""), ""),
        (
            {"file": "<|file|>", "repo": "<|pad|>"},
            Request("", "", path="a.py", repo="r"),
            "<|pad|>r\n<|file|>a.py\n",
        ),
    ],
)
def test_repository_and_file_stand_first_where_the_family_knows_them(tokens, request_, header, engine):
    fim = engine.card.fim.model_copy(update=tokens)
    card = engine.card.model_copy(update={"fim": fim})
    prompt = fim_prompt(cut_context(request_, card, engine.vocabulary), fim, engine.vocabulary)
    assert engine.vocabulary.decode(prompt) == header + "<|suffix|><|prefix|><|middle|>"


@pytest.mark.parametrize(
    ("prefix", "suffix", "is_named"),
    [
        ("", "", True),
        ("# Dates\n", "\n" * 500, True),
        ("x = 1\n" * 50, "", False),
        ("", "x = 1\n" * 50, False),
    ],
)
def test_outside_of_a_repository_a_file_with_hardly_any_text_has_its_name(prefix, suffix, is_named, engine):
    fim = engine.card.fim.model_copy(update={"file": "<|file|>", "repo": "<|pad|>"})
    card = engine.card.model_copy(update={"fim": fim})
    header = cut_context(Request(prefix, suffix, path="a.py"), card, engine.vocabulary).header
    assert engine.vocabulary.decode(header) == ("<|pad|>workspace\n<|file|>a.py\n" if is_named else "")


def test_a_file_name_is_text_and_never_a_marker(engine):
    card = engine.card.model_copy(update={"fim": engine.card.fim.model_copy(update={"file": "<|file|>"})})
    header = cut_context(Request("", "", path="<|middle|>.py"), card, engine.vocabulary).header
    assert engine.vocabulary.special("<|middle|>") not in header


SNIPPETS = (Snippet("b.py", "def helper(x):\n    return x"), Snippet("<|middle|>.py", "y = 2"))


def test_snippets_stand_before_the_file_in_their_order(engine):
    fim = engine.card.fim.model_copy(update={"file": "<|file|>", "repo": "<|pad|>"})
    card = engine.card.model_copy(update={"fim": fim})
    request = Request("", "", path="a.py", snippets=SNIPPETS)
    header = cut_context(request, card, engine.vocabulary).header
    assert engine.vocabulary.decode(header) == (
        "<|pad|>workspace\n<|file|>b.py\ndef helper(x):\n    return x\n<|file|><|middle|>.py\ny = 2\n<|file|>a.py\n"
    )
    assert engine.vocabulary.special("<|middle|>") not in header


def test_snippets_take_a_quarter_of_the_prompt_at_most_and_are_never_cut(engine):
    card = engine.card.model_copy(update={"fim": engine.card.fim.model_copy(update={"file": "<|file|>"})})
    many = tuple(Snippet(f"{i}.py", "value = compute(1)\n" * 5) for i in range(40))
    header = cut_context(Request("", "", snippets=many), card, engine.vocabulary).header
    assert 0 < len(header) <= card.prompt_tokens // 4
    text = engine.vocabulary.decode(header)
    assert text.count("value = compute(1)\n") == 5 * text.count("<|file|>")


def test_a_family_without_a_file_token_gets_no_snippets(engine):
    assert cut_context(Request("a", "b", snippets=SNIPPETS), engine.card, engine.vocabulary).header == ()


def psm(engine):
    fim = engine.card.fim.model_copy(update={"layout": "psm", "typed_after_middle": True})
    return engine.card.model_copy(update={"fim": fim}), fim


def test_text_typed_since_the_anchor_stands_behind_the_middle_token(engine):
    card, fim = psm(engine)
    context = cut_context(Request("x = comp", "\ny", typed_chars=4), card, engine.vocabulary)
    assert (
        engine.vocabulary.decode(fim_prompt(context, fim, engine.vocabulary))
        == "<|prefix|>x = <|suffix|>\ny<|middle|>comp"
    )


def test_while_someone_types_a_psm_prompt_goes_on_from_the_one_before(engine):
    card, fim = psm(engine)
    line, before, recomputed = "result = compute(values)", (), []
    for typed in range(len(line) + 1):
        request = Request("import os\n" * 20 + line[:typed], "\nprint(result)\n" * 20, typed_chars=typed)
        prompt = fim_prompt(cut_context(request, card, engine.vocabulary), fim, engine.vocabulary)
        recomputed.append(len(prompt) - common_prefix(prompt, before))
        before = prompt
    assert max(recomputed[1:]) <= 3
    plain = fim_prompt(
        cut_context(Request("import os\n" * 20 + line, "\nprint(result)\n" * 20), card, engine.vocabulary),
        fim,
        engine.vocabulary,
    )
    assert (
        len(plain) - common_prefix(plain, before) > 50
    )  # what it would cost to bring all of it into the prefix


def test_in_a_file_longer_than_the_prompt_typing_recomputes_a_few_tokens(engine):
    """The cuts do not follow the length of what was typed, of the header, or of the suffix."""
    card, fim = psm(engine)
    text = "".join(f"value_{i} = compute(value_{i - 1}, {i})\n" for i in range(400))
    line, before, recomputed = "result = [compute(value) for value in values if value is not None]", (), []
    for typed in range(len(line) + 1):
        request = Request(text + line[:typed], text, typed_chars=typed)
        prompt = fim_prompt(cut_context(request, card, engine.vocabulary), fim, engine.vocabulary)
        recomputed.append(len(prompt) - common_prefix(prompt, before))
        before = prompt
    assert max(recomputed[1:]) <= 4


def test_what_was_typed_moves_into_the_prefix_in_steps(engine):
    """Not with every key, since the suffix would have to be read again each time."""
    card, _ = psm(engine)
    typed = "item_1, " * 60
    prefixes = [
        cut_context(Request("x = [" + typed[:n], "\ny", typed_chars=n), card, engine.vocabulary).prefix
        for n in range(0, len(typed), 3)
    ]
    moves = sum(one != other for one, other in itertools.pairwise(prefixes))
    assert 0 < moves <= len(typed) // (card.prompt_tokens // 4)


def test_snippets_that_do_not_fit_are_counted(engine):
    card = engine.card.model_copy(update={"fim": engine.card.fim.model_copy(update={"file": "<|file|>"})})
    many = tuple(Snippet(f"{i}.py", "value = compute(1)\n" * 5) for i in range(40))
    for path in ("", "a.py"):
        request = Request("", "", path=path, snippets=many)
        context = cut_context(request, card, engine.vocabulary)
        shown = engine.vocabulary.decode(context.header).count("<|file|>") - bool(path)
        assert prompt_use(request, context, engine.vocabulary, 9, 9).snippets == 40 - shown < 40


def test_where_the_card_does_not_allow_it_typed_text_stays_in_the_prefix(engine):
    plain = cut_context(Request("x = comp", "\ny"), engine.card, engine.vocabulary)
    assert cut_context(Request("x = comp", "\ny", typed_chars=4), engine.card, engine.vocabulary) == plain


@pytest.mark.parametrize("route", ["ar", "dllm"])
def test_a_warmed_prompt_gives_the_same_text_in_no_more_passes(route, nano):
    engine, request = (
        nano.engine(route),
        Request("def area(width, height):\n    return ", "\n" * 3, sampling=Sampling(max_tokens=8)),
    )
    cold = list(engine.complete(request, Deadline()))
    nano.runtime(nano.card(route)).cache.clear()
    engine.warm(request, Deadline())
    warm = list(engine.complete(request, Deadline()))
    assert "".join(chunk.text for chunk in warm) == "".join(chunk.text for chunk in cold)
    assert warm[-1].forwards <= cold[-1].forwards
