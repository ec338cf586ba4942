"""The manifest of the VS Code extension, without VS Code."""

import json
from pathlib import Path

import pytest

from fimserver import __version__
from fimserver.front.config import Config

FOLDER = Path(__file__).parents[1] / "editors/vscode"
MANIFEST = json.loads((FOLDER / "package.json").read_text("utf-8"))
SETTINGS = MANIFEST["contributes"]["configuration"]["properties"]
OWN = {"path", "args", "connect"}  # of the extension, not of the server
CHOOSING = {"path", "args", "connect", "model", "routes"}  # a program, a host or a model
MAX_SETTINGS, MAX_LINES = 21, 690


def test_settings_are_few_and_described():
    assert len(SETTINGS) <= MAX_SETTINGS
    assert all(
        name.startswith("fimserver.") and facts["markdownDescription"] for name, facts in SETTINGS.items()
    )


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_a_setting_is_the_servers_with_its_default(name):
    key = name.removeprefix("fimserver.")
    if key not in OWN:
        assert SETTINGS[name]["default"] == Config().model_dump(mode="json", by_alias=True)[key]


def limits(facts):
    """What a JSON schema says of the values that it takes."""
    words = ("type", "minimum", "exclusiveMinimum", "maximum")
    values = facts.get("additionalProperties", facts).get("enum", [])
    return {word: facts.get(word) for word in words} | {"values": sorted(values)}


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_settings_json_marks_what_the_server_does_not_take(name):
    key = name.removeprefix("fimserver.")
    if key not in OWN:
        server = Config.model_json_schema(by_alias=True)["properties"]
        assert limits(SETTINGS[name]) == limits(server[key])


def test_what_chooses_a_program_or_a_model_is_the_machines_and_restricted():
    restricted = set(MANIFEST["capabilities"]["untrustedWorkspaces"]["restrictedConfigurations"])
    for key in CHOOSING:
        assert SETTINGS[f"fimserver.{key}"]["scope"].startswith("machine")
        assert f"fimserver.{key}" in restricted
    assert restricted <= set(SETTINGS)


def test_what_opens_more_of_the_user_to_the_server_is_restricted():
    opening = {"enabled", "exclude", "disabledLanguages", "snippets", "prefetch", "stats"}
    assert {f"fimserver.{key}" for key in opening} <= set(
        MANIFEST["capabilities"]["untrustedWorkspaces"]["restrictedConfigurations"]
    )


def test_commands_are_under_one_name_and_not_the_servers():
    from fimserver.front.lsp.commands import COMMANDS

    commands = MANIFEST["contributes"]["commands"]
    assert {command["category"] for command in commands} == {"FIM"}
    assert not {command["command"] for command in commands} & {f"fimserver.{name}" for name in COMMANDS}


def test_it_is_of_this_version_and_thin():
    sources = [
        line.strip() for path in FOLDER.glob("src/*.ts") for line in path.read_text("utf-8").splitlines()
    ]
    code = [line for line in sources if line and not line.startswith(("//", "/*", "*"))]
    assert MANIFEST["version"] == __version__
    assert len(code) <= MAX_LINES


def test_the_first_steps_offer_a_coder_with_its_size_and_only_a_button_starts_it():
    from fimserver.cards import get_card
    from fimserver.store.sizes import size_text

    steps = {step["id"]: step for step in MANIFEST["contributes"]["walkthroughs"][0]["steps"]}
    assert "command:fimserver.getModel" in steps["coder"]["description"]
    page = (FOLDER / steps["coder"]["media"]["markdown"]).read_text("utf-8")
    for name in ("qwen2.5-coder-0.5b-instruct", "qwen2.5-coder-1.5b-instruct"):
        assert f"`{name}` | {size_text(get_card(name).download_bytes)}" in page
    code = {path.name: path.read_text("utf-8") for path in FOLDER.glob("src/*.ts")}
    assert [name for name, text in code.items() if "'get'" in text] == ["model.ts"]
    assert "modal: true" in code["model.ts"]
