"""Knows every option once: name, default, unit, one line. Knows nothing of who reads it.

Values come, strongest first, from the command line, the environment (``FIMSERVER_…``), and ``config.toml`` in the user's
configuration folder. Nothing is ever read from a workspace.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import platformdirs
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from fimserver.errors import InputError
from fimserver.types import MAX_DEADLINE_MS, MAX_TEMPERATURE, MAX_TOKENS, SEEDS, RoutePin, StopRule

CONFIG_FILE = platformdirs.user_config_path("fimserver") / "config.toml"

# What engines are unlike another by, and hosts; the rest comes with each request or does not matter to it.
ENGINE_SETTINGS = (
    "dllm_card", "ar_card", "models_dir", "device", "quantize", "threads", "schedule", "threshold",
    "decode_rows", "prefill_rows", "network", "drafter", "draft_tokens", "draft_steps", "drafts", "draft_first", "verify",
)  # fmt: skip
HOST_SETTINGS = (*ENGINE_SETTINGS, "policy")


def _url(text: str) -> str:
    """A base URL without the ``/v1`` that other servers want there."""
    if not text:
        return ""
    url = urlsplit(text.strip())
    if url.scheme not in {"http", "https"} or not url.hostname or url.port == 0:
        raise ValueError("give http://HOST:PORT")
    return f"{url.scheme}://{url.netloc}{url.path.rstrip('/').removesuffix('/v1')}"


def _token(text: str) -> str:
    """A token that an HTTP header can carry; files and shells add a line end."""
    text = text.strip()
    if not (text.isascii() and text.isprintable()):
        raise ValueError("use printable ASCII characters: it is sent in an HTTP header")
    return text


class Settings(BaseSettings):
    """One frozen tree. The description of a field is also the help text of its flag."""

    model_config = SettingsConfigDict(env_prefix="FIMSERVER_", env_ignore_empty=True, extra="forbid", frozen=True)

    model: RoutePin = Field("auto", description="Route: diffusion (dllm), autoregressive (ar), or auto.")
    ab: Literal["off", "blocks", "shadow"] = Field(
        "off", description="Compare the routes while you work: by turns (blocks), or unseen as well (shadow)."
    )
    dllm_card: str = Field("", description="Model card of the dllm route; empty: the best present one that fits.")
    ar_card: str = Field("", description="Model card of the ar route; empty: the best present one that fits.")
    policy: Literal["fixed", "length", "latency", "expected_value", "bandit"] = Field(
        "expected_value", description="Who picks the route where none is asked for."
    )
    models_dir: Path = Field(
        platformdirs.user_data_path("fimserver") / "models", description="Folder that `models get` downloads into."
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where models run.")
    quantize: Literal["auto", "none", "bf16", "int8"] = Field(
        "auto",
        description="Numbers of the matrix products; auto: as fast as this machine can. On a GPU int8 needs `fimserver[int8]`.",
    )
    threads: int = Field(0, ge=0, le=1024, description="CPU threads; 0: as many as this process may use.")
    max_tokens: int = Field(64, ge=1, le=MAX_TOKENS, description="Longest middle, in tokens.")
    stats: Literal["on", "off"] = Field(
        "on", description="Count what becomes of suggestions, in lengths and hashes, never text."
    )
    deadline_ms: float | None = Field(
        None, gt=0, le=MAX_DEADLINE_MS, description="Answer with what is good by then, in milliseconds."
    )
    temperature: float = Field(0.0, ge=0, le=MAX_TEMPERATURE, description="0 is greedy.")
    top_p: float = Field(1.0, gt=0, le=1, description="Sample from the likeliest tokens of this probability (dllm route).")
    seed: int = Field(0, ge=0, lt=SEEDS, description="Same seed, same text, at any temperature.")
    stop: StopRule = Field("auto", description="Where a middle ends at the latest: line, block, none, or auto.")
    schedule: str = Field(
        "", description="Which slots a denoising step commits, such as fixed:4 or threshold:0.9; empty: as the card says."
    )
    threshold: float = Field(0.9, gt=0, le=1, description="Confidence that the schedules threshold and leftmost ask for.")
    drafter: str = Field(
        "auto",
        description="Who drafts for the ar route: ngram, heads, diffusion, model (several with commas), mix, auto, none.",
    )
    draft_tokens: int = Field(16, ge=1, le=31, description="Longest window of the diffusion drafter, in tokens.")
    draft_steps: int = Field(1, ge=1, le=6, description="Denoising steps of a window.")
    drafts: int = Field(1, ge=1, le=4, description="Joint drafts of a window that are verified together.")
    draft_first: str = Field("", description="Another drafter that gives the first tokens of a window.")
    verify: Literal["keyed", "token", "block", "recursive"] = Field(
        "keyed", description="Rule of acceptance; keyed: the same text with and without drafts, the others: the same law."
    )
    decode_rows: int = Field(
        0, ge=0, le=64, description="Rows of every decoding pass; 0: 8, but 1 where a CPU runs transformers' class."
    )
    prefill_rows: int = Field(
        0, ge=0, le=1024, description="Rows of every prefill pass; 0: 64 where a CPU runs our own pass, else 128."
    )
    connect: Annotated[str, AfterValidator(_url)] = Field(
        "", description="URL of a host elsewhere; empty: this machine's own, started when needed."
    )
    token: Annotated[str, AfterValidator(_token)] = Field(
        "", description="Token of that host, or of `fimserver serve`; better as FIMSERVER_TOKEN."
    )
    record: Annotated[Path | None, BeforeValidator(lambda value: None if value == "" else value)] = Field(
        None, description="Write a keystroke trace of this window to this file, with text; empty: none."
    )
    idle_exit_minutes: float = Field(
        60.0, gt=0, le=525_600, description="A host that nobody uses for so long exits, in minutes."
    )
    network: Literal["auto", "native", "lean"] = Field("auto", description="Forward pass: transformers' or ours where it fits.")

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

    def card(self, route: str) -> str:
        """The card that was asked for on a route, or an empty string."""
        return self.dllm_card if route == "dllm" else self.ar_card


def read_settings(**flags: Any) -> Settings:
    """Settings with ``flags`` on top. Raises ``InputError`` that names the option and its source."""
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
