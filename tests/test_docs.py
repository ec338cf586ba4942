"""Documentation names only what exists: files, links, anchors, make targets, flags, settings, modules."""

import re
from pathlib import Path

import click
import pytest

from fimserver.cli import main
from fimserver.reasons import EXPLANATIONS
from fimserver.settings import Settings

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    path
    for path in [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("models/*.md"),
        *ROOT.glob("models/training/README.md"),
        *ROOT.glob("editors/*/README.md"),
        *ROOT.glob("bench/**/README.md"),
    ]
)
FOREIGN_FLAGS = {
    "--install-extension",
    "--ignore-scripts",
    "--index-url",
    "--init",
    "--build-arg",
    "--generate",
}  # of code, npm, pip, training, docker, Ray


def text_of(path):
    return path.read_text("utf-8")


def anchors(path):
    """GitHub's anchors of the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", text_of(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def is_message(name):
    """Whether it is the name of a request or notification of our own, as in ``fimserver/explain``."""
    return any(f'"{name}"' in text_of(path) for path in ROOT.glob("fimserver/front/lsp/*.py"))


def flags_of(command):
    found = {option for p in command.params for option in (*p.opts, *p.secondary_opts)}
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found |= flags_of(command.get_command(context, name))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
class TestEveryPage:
    def test_links_lead_to_files_and_headings(self, page):
        for target in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", text_of(page)):
            link = target[0] or target[1]
            if re.match(r"[a-z]+:", link):
                continue
            file, _, anchor = link.partition("#")
            path = (page.parent / file).resolve() if file else page
            assert path.exists(), link
            assert not anchor or anchor in anchors(path), link

    def test_files_in_code_exist(self, page):
        for name in re.findall(
            r"`((?:fimserver|models|tests|editors|bench|docs|examples)/[\w./-]+)`", text_of(page)
        ):
            assert (ROOT / name).exists() or is_message(name), name

    def test_modules_that_are_run_exist(self, page):
        for name in re.findall(r"python -m ((?:fimserver|models|tests|bench)[\w.]*)", text_of(page)):
            path = ROOT / name.replace(".", "/")
            assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), name

    def test_make_targets_exist(self, page):
        makefile = text_of(ROOT / "Makefile")
        for name in re.findall(r"(?:`|^)make ([a-z]+)", text_of(page), re.MULTILINE):
            assert re.search(rf"^(?:[\w ]+ )?{name}(?: [\w ]+)?:", makefile, re.MULTILINE), name

    def test_flags_of_the_program_exist(self, page):
        known = flags_of(main) | {"--help", "--version"} | FOREIGN_FLAGS
        lines = [
            line
            for line in text_of(page).splitlines()
            if ("fimserver" in line or "`--" in line) and "-m " not in line
        ]
        for flag in re.findall(r"(?<![\w-])(--[a-z][a-z-]+)", "\n".join(lines)):
            assert flag in known, flag

    def test_environment_variables_are_settings(self, page):
        for name in re.findall(r"FIMSERVER_([A-Z_]+)", text_of(page)):
            assert name.lower() in Settings.model_fields or name in {"TOKEN", "REMOTE_KEY"}, name


def test_the_readme_is_short():
    assert text_of(ROOT / "README.md").count("\n") <= 150


def test_the_page_of_reasons_has_each_with_its_sentence():
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", text_of(ROOT / "docs" / "reasons.md"), re.MULTILINE))
    assert rows == {str(reason): sentence for reason, sentence in EXPLANATIONS.items()}


def test_the_glossary_has_each_word_once():
    words = re.findall(r"^\| ([^|]+?) \|", text_of(ROOT / "docs" / "glossary.md"), re.MULTILINE)
    single = [word for cell in words if cell not in {"word", "---"} for word in cell.split(", ")]
    assert sorted(single) == sorted(set(single))


def test_the_index_names_every_page():
    index = text_of(ROOT / "docs" / "README.md")
    missing = [p.name for p in ROOT.glob("docs/*.md") if p.name != "README.md" and f"({p.name})" not in index]
    assert missing == []


def test_every_command_is_on_the_page_of_the_command_line():
    page = text_of(ROOT / "docs" / "cli.md")
    assert isinstance(main, click.Group)
    assert [name for name in main.list_commands(click.Context(main)) if f"fimserver {name}" not in page] == []
