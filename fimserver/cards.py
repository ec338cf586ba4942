"""Model cards: their fields, and the paths of cards and models. ``models/README.md`` explains every field."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fimserver.base_url import base_url
from fimserver.canvas_card import Canvas
from fimserver.errors import CardError
from fimserver.types import ROUTES, Route

PACKAGE = Path(__file__).parent
# The cards are inside the package in a wheel, beside it in a checkout.
MODELS = PACKAGE / "_models" if (PACKAGE / "_models").is_dir() else PACKAGE.parent / "models"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Revision = Annotated[str, Field(pattern=r"^([0-9a-f]{40})?$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Tokenizer(_Strict):
    """Tokenizer options. ``add``: tokens that the checkpoint's tokenizer lacks, in id order."""

    anchor: str = ""  # prepended to the text and removed again: stops SentencePiece from adding a space
    add: tuple[str, ...] = ()


class Fim(_Strict):
    """The prompt of the ar route."""

    layout: Literal["psm", "spm", "spm_tail"]
    prefix: str
    suffix: str
    middle: str | None = None
    start: tuple[str, ...] = ()
    stops: tuple[str, ...]
    repo: str | None = None
    file: str | None = None
    typed_after_middle: bool = False
    heal: bool = False  # token healing: the model writes the last token of the prefix again

    @property
    def tokens(self) -> tuple[str, ...]:
        """All special tokens, without duplicates."""
        texts = (self.prefix, self.suffix, self.middle, self.repo, self.file, *self.start, *self.stops)
        return tuple(dict.fromkeys(text for text in texts if text))

    @model_validator(mode="after")
    def _middle_is_named(self) -> Fim:
        if self.middle is None and self.layout != "spm":
            raise ValueError(f"layout {self.layout!r} needs the token `middle`")
        if self.typed_after_middle and self.layout != "psm":
            raise ValueError("`typed_after_middle` is for the layout 'psm': elsewhere the prefix is last")
        return self


class IndexParts(_Strict):
    """The one file of a model on a Python index, split into parts of equal size, one per wheel."""

    packages: str = Field(pattern=r"^[a-z0-9-]*\{number\}[a-z0-9-]*$")  # numbers start at 1
    version: str
    count: int = Field(ge=1)
    part_bytes: int = Field(ge=1)  # the last part may be smaller


class Remote(_Strict):
    """A remote server with the model. The API key is in an environment variable or a file."""

    url: str
    dialect: str = ""  # empty: detected by asking the server
    model: str = ""  # the server's name for it; empty: its only one
    key_env: str = "FIMSERVER_REMOTE_KEY"
    key_file: str = ""
    suffix: bool = False  # the server itself builds the FIM prompt from prefix and suffix

    @field_validator("url")
    @classmethod
    def _is_base_url(cls, text: str) -> str:
        url = base_url(text)
        if "@" in urlsplit(url).netloc:
            raise ValueError("no name or password here: put the key into the variable that `key_env` names")
        return url


# Defaults for a card with [remote], whose weights are on another server.
ELSEWHERE: Mapping[str, Any] = {
    "licence": "unknown",
    "osi": False,
    "parameters_m": 0.001,
    "architecture": "elsewhere",
}


class Card(_Strict):
    """One model: its origin, its properties and its prompt formats."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")
    hub: str | None = None
    revision: Revision = ""
    licence: str
    osi: bool
    parameters_m: float = Field(gt=0)
    architecture: str
    loads_as: Literal["", "qwen2", "qwen3", "llama", "glm4_moe"] = ""
    prompt_tokens: int = Field(default=2048, ge=64)
    suffix_share: float = Field(default=0.25, ge=0, le=0.9)
    max_new_tokens: int = Field(default=256, ge=1)
    tokenizer: Tokenizer = Tokenizer()
    fim: Fim | None = None
    canvas: Canvas | None = None
    drafters: Mapping[str, str] = Field(default_factory=dict)
    files: Mapping[str, Sha256] = Field(default_factory=dict)
    download_bytes: int = Field(default=0, ge=0)
    engine: str = ""  # kind of engine that serves it; empty: that of the route
    folder: str = ""  # of a model that was given by its path
    index: IndexParts | None = None
    remote: Remote | None = None

    @model_validator(mode="after")
    def _parts_make_one_file(self) -> Card:
        if self.index is None:
            return self
        whole = self.download_bytes
        part = self.index.part_bytes
        count = self.index.count
        if len(self.files) != 1 or not part * (count - 1) < whole <= part * count:
            raise ValueError(
                "[index] needs one file in [files], and `download_bytes` that its parts add up to"
            )
        return self

    @model_validator(mode="after")
    def _serves_a_route(self) -> Card:
        if self.fim is None and self.canvas is None and self.remote is None:
            raise ValueError("neither [fim] nor [canvas]: the card serves no route")
        if self.canvas is not None and self.canvas.attention == "block" and self.fim is not None:
            raise ValueError(
                "attention 'block' has no [fim]: such a model does not decode token by token here"
            )
        return self

    @property
    def routes(self) -> tuple[Route, ...]:
        if self.remote is not None:  # only the server knows which ones it supports
            return ROUTES
        served = {"dllm": self.canvas, "ar": self.fim}
        return tuple(route for route in ROUTES if served[route] is not None)

    @property
    def weights_gib(self) -> float:
        """Size in memory at two bytes per parameter."""
        return self.parameters_m * 2e6 / 2**30


def read_card(path: Path) -> Card:
    """Read and validate one card. Raises ``CardError`` with the file and the field."""
    try:
        data: Any = _tuples(tomllib.loads(path.read_text("utf-8")))
        card = Card.model_validate({**ELSEWHERE, **data} if data.get("remote") else data)
    except tomllib.TOMLDecodeError as error:
        raise CardError(f"{path.name}: not valid TOML: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CardError(f"{path}: cannot be read: {error}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "card"
        raise CardError(
            f"{path.name}: {where}: {first['msg']} (fields are explained in models/README.md)"
        ) from None
    if card.name != path.stem:
        raise CardError(f"{path.name}: name: is {card.name!r}, must equal the file name")
    return card


def read_cards() -> dict[str, Card]:
    """Read all cards, by name, sorted."""
    return {path.stem: read_card(path) for path in sorted((MODELS / "cards").glob("*.toml"))}


def get_card(name: str) -> Card:
    """Read one card by name. Raises ``CardError`` if there is none."""
    path = MODELS / "cards" / f"{name}.toml"
    if not path.is_file() or path.parent != MODELS / "cards":
        raise CardError(f"no model card named {name!r}{_did_you_mean(name)}; `fimserver models` lists them")
    return read_card(path)


def _did_you_mean(name: str) -> str:
    """Return a question with up to three names that begin with a wrong one, or else resemble it."""
    import difflib  # noqa: PLC0415 - for wrong names alone

    names = sorted(path.stem for path in (MODELS / "cards").glob("*.toml"))
    begun = [each for each in names if name and each.startswith(name.lower())]
    near = begun[:3] or difflib.get_close_matches(name.lower(), names)
    return f" (did you mean {', '.join(near)}?)" if near else ""


def is_place(name: str) -> bool:
    """Whether ``name`` is a path or URL of a card or model instead of a card's name."""
    return os.sep in name or name.endswith((".gguf", ".toml"))


def model_folder(card: Card, models_dir: Path) -> Path:
    """Return the folder where the files of a model are or would be."""
    if card.folder:
        return Path(card.folder)
    shipped = MODELS / card.name
    return shipped if shipped.is_dir() else models_dir / card.name


def adapter_path(folder: Path, name: str) -> Path:
    """Return the path of a canvas adapter, a length probe or the file of a drafter.

    It is in ``adapters`` beside the weights, or in the package.
    """
    beside = folder / "adapters" / name
    return beside if beside.is_file() else MODELS / "adapters" / name


def is_present(card: Card, models_dir: Path) -> bool:
    """Whether the files of a model exist. Does not check their contents."""
    folder = model_folder(card, models_dir)
    if names := gguf_files(card):
        return all((folder / name).is_file() for name in names)
    return folder.is_dir() and any(folder.glob("*.safetensors")) and (folder / "config.json").is_file()


def gguf_files(card: Card) -> tuple[str, ...]:
    """Names of the GGUF files that a card pins; empty for a model in safetensors."""
    return tuple(name for name in card.files if name.endswith(".gguf"))


def _tuples(value: object) -> object:
    """Convert TOML arrays to tuples, so that validation can be strict and cards immutable."""
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return value
