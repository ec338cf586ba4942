"""Settings: each option once, with its default, bounds, scope and one line of help.

Values come, strongest first, from the command line, the environment (``FIMSERVER_…``), and ``config.toml`` in
the user's configuration folder. Nothing is ever read from a workspace.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from fimserver.base_url import base_url
from fimserver.errors import InputError
from fimserver.types import (
    MAX_DEADLINE_MS,
    MAX_PROMPT_TOKENS,
    MAX_TEMPERATURE,
    MAX_TOKENS,
    SEEDS,
    RoutePin,
    Sampling,
    StopRule,
)

CONFIG_FILE = platformdirs.user_config_path("fimserver") / "config.toml"

Scope = Literal["request", "weights", "engine", "host", "window"]


def option(default: Any, scope: Scope, description: str, **bounds: Any) -> Any:
    """Declare a setting.

    ``scope`` says what depends on it: ``request`` a completion; ``weights`` the loaded model, and so the
    engine; ``engine`` the engine, and so the host process; ``host`` the host process; ``window`` one editor
    window or command.
    """
    return Field(default, description=description, json_schema_extra={"scope": scope}, **bounds)


def _url(text: str) -> str:
    return base_url(text) if text else ""


def _token(text: str) -> str:
    """Validate a token for an HTTP header and strip the line end that files and shells add."""
    text = text.strip()
    if not (text.isascii() and text.isprintable()):
        raise ValueError("use printable ASCII characters: it is sent in an HTTP header")
    return text


class Settings(BaseSettings):
    """All settings, immutable. The description of a field is also the help text of its flag."""

    model_config = SettingsConfigDict(
        env_prefix="FIMSERVER_", env_ignore_empty=True, extra="forbid", frozen=True
    )

    model: RoutePin = option("auto", "request", "Route: diffusion (dllm), autoregressive (ar), or auto.")
    ab: Literal["off", "blocks", "shadow"] = option(
        "off",
        "window",
        "Compare the routes while you work: in turns (blocks), or also with unseen requests (shadow).",
    )
    dllm_card: str = option(
        "", "engine", "Model card of the dllm route; empty: the best installed one that fits."
    )
    ar_card: str = option(
        "", "engine", "Model card of the ar route; empty: the best installed one that fits."
    )
    policy: Literal["always_ar", "length", "latency", "expected_value", "bandit"] = option(
        "expected_value", "host", "Policy that chooses the route if none is pinned."
    )
    models_dir: Path = option(
        platformdirs.user_data_path("fimserver") / "models",
        "weights",
        "Folder that `models get` downloads into.",
    )
    device: Literal["auto", "cpu", "cuda"] = option("auto", "weights", "Where models run.")
    quantize: Literal["auto", "none", "bf16", "int8", "int4"] = option(
        "auto",
        "weights",
        "Number format of the matrix products; auto: the fastest here. int4 is for GPUs; on a GPU int8 and"
        " int4 need `fimserver[gpu]`.",
    )
    threads: int = option(0, "weights", "CPU threads; 0: as many as this process may use.", ge=0, le=1024)
    max_tokens: int = option(64, "request", "Longest middle, in tokens.", ge=1, le=MAX_TOKENS)
    stats: Literal["on", "off"] = option(
        "on", "window", "Count which suggestions are kept, in lengths and hashes, never text."
    )
    deadline_ms: float | None = option(
        None,
        "request",
        "Milliseconds until an answer; the text that is complete by then is given.",
        gt=0,
        le=MAX_DEADLINE_MS,
    )
    temperature: float = option(0.0, "request", "0 is greedy.", ge=0, le=MAX_TEMPERATURE)
    top_p: float = option(
        1.0,
        "request",
        "Sample from the most likely tokens with this total probability (dllm route).",
        gt=0,
        le=1,
    )
    seed: int = option(0, "request", "Same seed, same text, at any temperature.", ge=0, lt=SEEDS)
    stop: StopRule = option(
        "auto", "request", "Where a middle ends at the latest: line, block, none, or auto."
    )
    schedule: str = option(
        "",
        "engine",
        "Which slots a denoising step commits, such as fixed:4 or threshold:0.9; empty: as in the card.",
    )
    threshold: float = option(
        0.9,
        "engine",
        "Minimum confidence for the schedules threshold and leftmost to commit a slot.",
        gt=0,
        le=1,
    )
    canvas_cache: str = option(
        "",
        "engine",
        "Cache of a canvas with full attention, such as none, dual:8, checked; empty: as in the card.",
    )
    drafter: str = option(
        "auto",
        "engine",
        "Drafters of the ar route: ngram, lookahead, heads, diffusion, model (with commas), mix, auto, none.",
    )
    draft_tokens: int = option(
        16, "engine", "Longest window of the diffusion drafter, in tokens.", ge=1, le=31
    )
    draft_steps: int = option(1, "engine", "Denoising steps of a window.", ge=1, le=6)
    drafts: int = option(1, "engine", "Joint drafts of a window that are verified together.", ge=1, le=4)
    draft_first: str = option("", "engine", "Another drafter for the first tokens of a window.")
    verify: Literal["keyed", "token", "block", "recursive"] = option(
        "keyed",
        "engine",
        "Acceptance rule; keyed: the same text with and without drafts, the others: the same distribution.",
    )
    prompt_tokens: int = option(
        0,
        "weights",
        "Longest prompt, in tokens; 0: what can be read within prompt_ms, from 512 to the card's limit.",
        ge=0,
        le=MAX_PROMPT_TOKENS,
    )
    prompt_ms: float = option(
        1000.0,
        "weights",
        "Milliseconds that reading a whole prompt may take at the measured speed; limits its length.",
        gt=0,
        le=MAX_DEADLINE_MS,
    )
    decode_rows: int = option(
        0,
        "weights",
        "Rows of every decoding pass; 0: 8, but 1 if a CPU runs transformers' class.",
        ge=0,
        le=64,
    )
    prefill_rows: int = option(
        0,
        "weights",
        "Rows of every prefill pass; 0: 256 on a GPU, 64 on a CPU with fimserver's own pass, else 128.",
        ge=0,
        le=1024,
    )
    connect: Annotated[str, AfterValidator(_url)] = option(
        "", "window", "URL of a remote host; empty: this machine's own, started when needed."
    )
    token: Annotated[str, AfterValidator(_token)] = option(
        "", "window", "Token of that host, or of `fimserver serve`; better as FIMSERVER_TOKEN."
    )
    record: Annotated[Path | None, BeforeValidator(lambda value: None if value == "" else value)] = option(
        None, "window", "Write a keystroke trace of this window to this file, with text; empty: none."
    )
    idle_exit_minutes: float = option(
        60.0, "window", "Minutes without use after which a host exits.", gt=0, le=525600
    )
    batch: int = option(
        0,
        "weights",
        "Requests that run in a batch, and documents whose prompts stay cached; 0: as many as memory allows,"
        " at most 8; 1: one after another.",
        ge=0,
        le=64,
    )
    network: Literal["auto", "native", "lean"] = option(
        "auto", "weights", "Forward pass: transformers' or ours where it fits."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic's signature
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings, env_settings, TomlConfigSettingsSource(settings_cls, CONFIG_FILE))

    @property
    def sampling(self) -> Sampling:
        """Default sampling options of a request."""
        return Sampling(self.max_tokens, self.temperature, self.top_p, self.seed, self.stop)

    def card(self, route: str) -> str:
        """Return the requested card of a route, or an empty string."""
        return self.dllm_card if route == "dllm" else self.ar_card


def scope_of(name: str) -> Scope:
    """Return the scope of a setting."""
    extra = Settings.model_fields[name].json_schema_extra
    assert isinstance(extra, dict)
    scope: Any = extra["scope"]
    found: Scope = scope
    return found


def _scoped(*scopes: Scope) -> tuple[str, ...]:
    return tuple(name for name in Settings.model_fields if scope_of(name) in scopes)


WEIGHTS_SETTINGS = _scoped("weights")  # that select loaded weights
ENGINE_SETTINGS = _scoped("weights", "engine")  # that select an engine
HOST_SETTINGS = _scoped("weights", "engine", "host")  # that select a host process


def read_settings(**flags: Any) -> Settings:
    """Read the settings; ``flags`` override them. Raises ``InputError`` with the option and its source."""
    try:
        return Settings(**flags)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0])
        given = "" if name == "token" else f", got {first['input']!r}"
        problem = first["msg"].removeprefix("Value error, ")
        raise InputError(f"option {name} ({_source(name, flags)}): {problem}{given}") from None
    except ValueError as error:  # config.toml is not TOML
        raise InputError(f"{CONFIG_FILE}: {error}") from None


def _source(name: str, flags: dict[str, Any]) -> str:
    if name in flags:
        return f"--{name.replace('_', '-')}"
    variable = f"FIMSERVER_{name.upper()}"
    return variable if variable in os.environ else str(CONFIG_FILE)
