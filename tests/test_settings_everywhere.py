"""Every copy of a setting agrees with it: editors, the VS Code extension, the wire, the command line, the docs."""

import json
import re
from pathlib import Path
from typing import Literal, get_args, get_origin

import annotated_types
import click
import pytest
from pydantic import TypeAdapter

from fimserver import cli
from fimserver.commands import options
from fimserver.front.config import Config, from_settings
from fimserver.settings import ENGINE_SETTINGS, HOST_SETTINGS, WEIGHTS_SETTINGS, Settings, scope_of
from fimserver.types import Sampling
from fimserver.wire import CompletionBody

ROOT = Path(__file__).parent.parent
SHARED = sorted(set(Config.model_fields) & set(Settings.model_fields) - {"deadline_ms", "stats"})
CAMEL = {field.alias: name for name, field in Config.model_fields.items()}
OF_THE_PROGRAM = {"path", "args", "connect"}  # how the extension starts it


def schema(model, name):
    """Bounds and choices of a field, as JSON schema says them."""
    field = model.model_fields[name]
    found = TypeAdapter(field.annotation).json_schema()
    for mark in field.metadata:
        found |= {
            annotated_types.Ge: lambda m: {"minimum": m.ge},
            annotated_types.Gt: lambda m: {"exclusiveMinimum": m.gt},
            annotated_types.Le: lambda m: {"maximum": m.le},
            annotated_types.Lt: lambda m: {"exclusiveMaximum": m.lt},
        }.get(type(mark), lambda _: {})(mark)
    return found


def package():
    found = json.loads((ROOT / "editors" / "vscode" / "package.json").read_text("utf-8"))["contributes"][
        "configuration"
    ]
    groups = found if isinstance(found, list) else [found]
    return {
        name.removeprefix("fimserver."): value
        for group in groups
        for name, value in group["properties"].items()
    }


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_has_a_scope_and_a_flag(name):
    assert scope_of(name) in options.SCOPES
    flags = {
        flag
        for parameter in cli.main.params
        if isinstance(parameter, click.Option)
        for flag in parameter.opts
    }
    assert options.flag(name) in flags


def test_lists_of_settings_follow_from_scopes():
    assert set(WEIGHTS_SETTINGS) < set(ENGINE_SETTINGS) < set(HOST_SETTINGS)
    assert set(HOST_SETTINGS) - set(ENGINE_SETTINGS) == {"policy"}
    assert not set(HOST_SETTINGS) & {"max_tokens", "temperature", "seed", "token", "connect", "ab", "stats"}


def test_what_each_request_may_set_is_a_field_of_a_body():
    wanted = {name for name in Settings.model_fields if scope_of(name) == "request"} - {"model"}
    assert wanted <= set(CompletionBody.model_fields) | {"stop", "deadline_ms"}
    assert wanted - {"deadline_ms"} == set(Sampling.__dataclass_fields__)


@pytest.mark.parametrize("name", SHARED)
def test_an_editor_may_set_what_the_program_may(name):
    assert schema(Config, name) == schema(Settings, name)
    assert Config.model_fields[name].default == Settings.model_fields[name].default
    assert getattr(from_settings(Settings()), name) == Settings.model_fields[name].default


@pytest.mark.parametrize("name", ["max_tokens", "temperature", "top_p", "seed"])
def test_the_wire_takes_every_value_that_a_setting_may_have(name):
    found = schema(Settings, name)
    low = found.get("minimum", 0.001)
    high = found.get("maximum", found.get("exclusiveMaximum", 0) - 1)
    for value in (low, high):
        assert getattr(CompletionBody(prompt="", **{name: value}), name) == value


@pytest.mark.parametrize("name", sorted(set(package()) - OF_THE_PROGRAM))
def test_the_extension_offers_what_an_editor_may_set(name):
    ours, theirs = schema(Config, CAMEL[name]), package()[name]
    default = Config.model_fields[CAMEL[name]].default
    assert theirs["default"] == (list(default) if isinstance(default, tuple) else default)
    for bound in ("minimum", "maximum", "exclusiveMinimum"):
        assert theirs.get(bound) == ours.get(bound), bound
    assert set(theirs.get("enum", [])) == set(ours.get("enum", []))
    assert {"type": theirs["type"]}["type"] in {
        ours.get("type"),
        "array" if "items" in ours else ours.get("type"),
    }


def test_the_extension_sends_what_it_offers():
    source = (ROOT / "editors" / "vscode" / "src" / "settings.ts").read_text("utf-8")
    sent = set(re.findall(r"'(\w+)'", re.search(r"const \w+ = \[(.*?)\]", source, re.DOTALL)[1]))
    assert sent == set(package()) - OF_THE_PROGRAM


def test_routes_are_spelled_out_once():
    """``RoutePin`` in types.py, nowhere else."""
    spelled = 'Literal["auto", "dllm", "ar"]'
    found = [path.name for path in (ROOT / "fimserver").rglob("*.py") if spelled in path.read_text("utf-8")]
    assert found == ["types.py"]


def test_the_table_of_the_docs_is_the_generated_one():
    """``python -m fimserver.commands.options`` prints it."""
    text = (ROOT / "docs" / "settings.md").read_text("utf-8")
    lines = list(options.table())
    assert "\n".join(lines) in text, (
        "run python -m fimserver.commands.options and put its output into docs/settings.md"
    )
    literal = [field for field in Settings.model_fields.values() if get_origin(field.annotation) is Literal]
    assert all(f"`{get_args(field.annotation)[0]}`" in text for field in literal)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("max_tokens", "1 to 1024"),
        ("deadline_ms", "above 0 to 120000"),
        ("seed", f"0 to {2**62 - 1}"),
        ("drafter", ""),
    ],
)
def test_bounds_in_words(name, text):
    assert options.bounds(Settings.model_fields[name]) == text
