"""Settings of one editor window, which an editor may change at any time.

The names are the same in ``initializationOptions`` and in the settings section ``fimserver``, in camelCase or
with underscores. A value that cannot be used is left out and named; the others hold.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import Any, Literal

from pathspec import GitIgnoreSpec
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic.alias_generators import to_camel

from fimserver.settings import Settings
from fimserver.types import MAX_TEMPERATURE, MAX_TOKENS, SEEDS, Route, RoutePin, StopRule

EDITOR_SETTINGS = frozenset({"path", "args", "connect"})  # of the VS Code extension: how it starts the server
MAX_NAME_CHARS = 60
Trigger = Literal["automatic", "onDemand"]


class Config(BaseModel):
    """Settings that hold for one editor window."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, populate_by_name=True, extra="ignore")

    enabled: bool = True
    trigger: Trigger = "automatic"  # onDemand: only on explicit request
    triggers: dict[str, Trigger] = {}  # by LSP language id
    model: RoutePin = "auto"
    routes: dict[str, Route] = {}  # by LSP language id; overrides ``model``
    ab: Literal["off", "blocks", "shadow"] = "off"  # compare the routes while working
    seed: int = Field(0, ge=0, lt=SEEDS)  # of that comparison
    max_tokens: int = Field(64, ge=1, le=MAX_TOKENS)
    temperature: float = Field(0.0, ge=0, le=MAX_TEMPERATURE)
    stop: StopRule = "auto"
    deadline_ms: float = Field(2000.0, gt=0, le=10_000)  # of an automatic request
    invoked_deadline_ms: float = Field(5000.0, gt=0, le=30_000)  # of an explicit request
    delay_ms: float = Field(120.0, ge=0, le=2000)  # longest wait for the next key
    calm_delay_ms: float = Field(0.0, ge=0, le=5000)  # added after dismissals, and while deleting or moving
    shown_per_minute: int = Field(0, ge=0, le=1000)  # automatic suggestions; 0: no limit
    min_acceptance: float = Field(0.0, ge=0, le=1)  # minimum probability of acceptance; 0: no limit
    battery: Literal["ignore", "save", "off"] = "save"  # on battery or while the system saves power
    candidates: int = Field(3, ge=1, le=8)  # of an explicit request
    menu: Literal["auto", "always", "never"] = (
        "auto"  # completion menu: only for clients without ghost text, always, never
    )
    prefetch: bool = True
    snippets: bool = True
    exclude: tuple[str, ...] = ()  # globs, in addition to the built-in ones
    disabled_languages: tuple[str, ...] = ()  # LSP language ids
    stats: bool = True  # send the host the outcome of suggestions, as lengths and hashes
    status: bool = False  # whether the editor understands the notification fimserver/status
    preview: bool = False  # whether the editor wants fimserver/canvas: the canvas of each denoising step

    @field_validator("exclude")
    @classmethod
    def _are_globs(cls, globs: tuple[str, ...]) -> tuple[str, ...]:
        try:
            GitIgnoreSpec.from_lines(globs)
        except re.error as error:
            raise ValueError(f"not a glob: {error.msg}") from None
        return globs


def from_settings(settings: Settings) -> Config:
    """Return the initial configuration of a window, from the user's options."""
    same = ("model", "ab", "seed", "max_tokens", "temperature", "stop")
    config = Config(**{name: getattr(settings, name) for name in same}, stats=settings.stats == "on")
    if settings.deadline_ms is None:
        return config
    deadline_ms = min(settings.deadline_ms, 10_000.0)
    return config.model_copy(
        update={"deadline_ms": deadline_ms, "invoked_deadline_ms": max(deadline_ms, 5000.0)}
    )


def changed(config: Config, sent: Any) -> tuple[Config, tuple[str, ...]]:
    """Return ``config`` updated with what an editor sent, and the names of unusable values."""
    config, problems = _changed(config, sent)
    return config, tuple(problems)


def setting_problems(sent: Any) -> tuple[str, ...]:
    """Return a line for each unknown name or unusable value in an editor's settings. Quotes no value."""
    if not isinstance(sent, dict):
        return ()
    unknown = [
        str(key) for key in sent if _name(str(key)) not in Config.model_fields and key not in EDITOR_SETTINGS
    ]
    return tuple(
        [_unknown_name(key) for key in unknown]
        + [
            f"{to_camel(name)}: {problem}; it stays as it was"
            for name, problem in _changed(Config(), sent)[1].items()
        ]
    )


def _unknown_name(key: str) -> str:
    names = [to_camel(name) for name in Config.model_fields]
    close = get_close_matches(key.lower(), [name.lower() for name in names], n=1)
    meant = next((name for name in names if close and name.lower() == close[0]), "")
    return f"{key[:MAX_NAME_CHARS]!a}: there is no such setting" + (
        f"; did you mean {meant}?" if meant else ""
    )


def _changed(config: Config, sent: Any) -> tuple[Config, dict[str, str]]:
    """Return ``config`` with the sent values, and a problem for each unusable value, by field name."""
    if not isinstance(sent, dict):
        return config, {}
    named = {_name(str(key)): value for key, value in sent.items()}
    values = {
        name: value for name, value in named.items() if value is not None and name in Config.model_fields
    }
    problems: dict[str, str] = {}
    while True:
        try:
            return Config.model_validate(config.model_dump() | values), problems
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            name = _name(str(first["loc"][0]))
            problems[name] = first["msg"].removeprefix("Value error, ")
            del values[name]


def named(sent: dict[str, Any], name: str) -> Any:
    """Return the value that an editor sent for a field, in either spelling."""
    return next((value for key, value in sent.items() if _name(str(key)) == name), None)


def _name(key: str) -> str:
    """Return the field name for a key such as ``maxTokens`` or ``max_tokens``."""
    return "".join("_" + char.lower() if char.isupper() else char for char in key)
