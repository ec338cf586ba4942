"""Detection and parsing of raw FIM prompts."""

import pytest

from fimserver.cards import read_cards
from fimserver.host.http.fim_prompts import FAMILIES, RawPrompt, read_raw

PREFIX, SUFFIX = "def add(a, b):\n    return ", "\n\n\nadd(1, 2)\n"
QWEN = "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"
STAR = "<fim_prefix>", "<fim_suffix>", "<fim_middle>"

# As the clients write them: Zed crates/edit_prediction/src/fim.rs (09512d2), Continue core/autocomplete/templating/
# AutocompleteTemplate.ts (3d08fc9), cursortab server/provider/fim/fim.go (14f7163).
PLAIN = {
    "zed-qwen": f"<|fim_prefix|>{PREFIX}<|fim_suffix|>{SUFFIX}<|fim_middle|>",
    "zed-starcoder": f"<fim_prefix>{PREFIX}<fim_suffix>{SUFFIX}<fim_middle>",
    "zed-codellama": f"<PRE> {PREFIX} <SUF>{SUFFIX} <MID>",
    "zed-deepseek": f"<｜fim▁begin｜>{PREFIX}<｜fim▁hole｜>{SUFFIX}<｜fim▁end｜>",  # noqa: RUF001
    "zed-codestral": f"[SUFFIX]{SUFFIX}[PREFIX]{PREFIX}",
    "zed-glm": f"<|code_prefix|>{PREFIX}<|code_suffix|>{SUFFIX}<|code_middle|>",
    "seed-coder": f"<[fim-suffix]>{SUFFIX}<[fim-prefix]>{PREFIX}<[fim-middle]>",
    "suffix-first": f"<fim_suffix>{SUFFIX}<fim_prefix>{PREFIX}<fim_middle>",
    "with-start-token": f"<s><PRE> {PREFIX} <SUF>{SUFFIX} <MID>",
}


@pytest.mark.parametrize("name", PLAIN)
def test_prefix_and_suffix_of_every_family(name):
    assert read_raw(PLAIN[name]) == RawPrompt(PREFIX, SUFFIX)


def test_the_current_file_is_the_last_one_if_it_has_no_text():
    """As cursortab writes it, with the tokens of Qwen."""
    prompt = (
        f"<|repo_name|>shop\n<|file_sep|>cart.py\nclass Cart:\n    pass\n<|file_sep|>context/staged_diff\n+x = 1\n"
        f"<|file_sep|>main.py\n<|fim_prefix|>{PREFIX}<|fim_suffix|>{SUFFIX}<|fim_middle|>"
    )
    files = ("cart.py", "class Cart:\n    pass\n"), ("context/staged_diff", "+x = 1\n")
    assert read_raw(prompt) == RawPrompt(PREFIX, SUFFIX, "main.py", "shop", files)


def test_files_without_a_current_one():
    """As Continue writes it for a model with qwen and coder in its name."""
    prompt = f"<|repo_name|>shop\n<|file_sep|>a.py\nx = 1\n<|file_sep|>b.py\ny = 2<|fim_prefix|>{PREFIX}<|fim_suffix|><|fim_middle|>"
    assert read_raw(prompt) == RawPrompt(PREFIX, "", "", "shop", (("a.py", "x = 1\n"), ("b.py", "y = 2")))


@pytest.mark.parametrize(("repo", "file"), [("<repo_name>", "<file_sep>"), ("<reponame>", "<filename>")])
def test_files_of_the_starcoder_family(repo, file):
    prompt = f"{repo}r\n{file}a.go\npackage a\n{file}b.go\n<fim_prefix>p<fim_suffix>s<fim_middle>"
    assert read_raw(prompt) == RawPrompt("p", "s", "b.go", "r", (("a.go", "package a\n"),))


def test_markers_in_the_prefix_do_no_harm():
    prefix = f"STOPS = ['{QWEN[0]}', '{QWEN[2]}']\n"
    assert read_raw(f"{QWEN[0]}{prefix}{QWEN[1]}{SUFFIX}{QWEN[2]}") == RawPrompt(prefix, SUFFIX)


@pytest.mark.parametrize(
    "text",
    [
        "",
        PREFIX,
        QWEN[0],
        QWEN[2],
        f"{QWEN[0]}p{QWEN[2]}",  # no suffix marker
        f"{QWEN[0]}p{QWEN[1]}s",  # no end
        f"{QWEN[0]}p{QWEN[1]}s{QWEN[2]}\n",  # goes on
        f"{QWEN[0]}p{STAR[1]}s{QWEN[2]}",  # two families
        f"{QWEN[0]}p{QWEN[1]}s{QWEN[1]}s{QWEN[2]}",  # two ways to read it
        f"{QWEN[2]}p{QWEN[1]}s{QWEN[0]}",  # another order
        f"<fim_prefix><fim_suffix>{SUFFIX}<fim_middle>{PREFIX}",  # the middle goes on: an order that we do not know
        f"TOKENS = ['{QWEN[0]}', '{QWEN[1]}', '{QWEN[2]}",  # a person at work on a list of tokens
        f'prompt = f"{QWEN[0]}{{prefix}}{QWEN[1]}{{suffix}}{QWEN[2]}',
        f"Context:\n\n{QWEN[0]}p{QWEN[1]}s{QWEN[2]}",
        "x = '[SUFFIX]s[PREFIX]",
        "[PREFIX]p[SUFFIX]s",
    ],
)
def test_what_only_mentions_markers_is_text(text):
    assert read_raw(text) is None


def test_the_fim_tokens_of_our_cards_are_known():
    """For cards whose markers a client could write as text; nano's are its own."""
    known = {family[:3] for family in FAMILIES}
    for name, card in read_cards().items():
        fim = card.fim
        if fim is None or name.startswith("nano"):
            continue
        written = tuple((marker or "").replace("▁<", "<") for marker in (fim.prefix, fim.suffix, fim.middle))
        assert {tuple(m.strip() for m in family) for family in known} >= {written}, name
