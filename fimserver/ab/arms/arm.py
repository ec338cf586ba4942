"""Knows how one of two configurations is asked: an engine in this process, or a host by its URL. Knows nothing of scores.

A specification is a route, a URL, or neither, and settings behind commas: ``dllm``, ``ar,drafter=none``,
``auto,policy=bandit``, ``card=dreamon-7b``, ``http://gpu-box:8765,model=ar``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from fimserver.ab.items.spans import Span
from fimserver.ab.schema import Arm
from fimserver.cards import get_card
from fimserver.cursor import make_request
from fimserver.errors import CardError, FimError, InputError
from fimserver.front.syntax.features import features
from fimserver.settings import ENGINE_SETTINGS, Settings, read_settings
from fimserver.types import ROUTES, Request
from fimserver.wire import CompletionChunk, Usage

if TYPE_CHECKING:
    from fimserver.engine.engines import ModelPool

CONTEXT_CHARS = 64 * 1024  # each side, as in the host
OF_A_REQUEST = ("max_tokens", "temperature", "top_p", "seed", "stop", "deadline_ms", "model")


class ArmSpec(NamedTuple):
    """A specification, read. ``text`` is without its token."""

    text: str
    url: str
    changes: dict[str, str]


@dataclass(frozen=True)
class ArmAnswer:
    """What one arm did with one span, timed by the caller."""

    text: str
    usage: Usage
    first_ms: float
    answer_ms: float


class Runner(Protocol):
    """One arm: ``LocalArm`` or ``RemoteArm``."""

    arm: Arm

    def fill(self, span: Span, *, warm: bool) -> ArmAnswer:
        """The middle of a span from an empty cache, or from one that has read the prompt. Raises ``FimError``."""
        ...

    def cancel_ms(self, span: Span, after_ms: float) -> float | None:
        """How long work goes on after it is called off; ``None`` where that cannot be seen."""
        ...

    def close(self) -> None:
        """Let go of what it holds."""
        ...


def read_spec(text: str) -> ArmSpec:
    """Raises ``InputError`` for what cannot be one."""
    changes: dict[str, str] = {}
    url = ""
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = part.partition("=")
        if part.startswith(("http://", "https://")):
            url = part
        elif not equals and part in ("auto", *ROUTES):
            changes["model"] = part
        elif equals and name == "card":
            changes |= _of_card(value)
        elif equals and name.replace("-", "_") in Settings.model_fields:
            changes[name.replace("-", "_")] = value
        else:
            raise InputError(f"arm {text!r}: {part!r} is no route, URL or setting=value; for example: ar,drafter=none")
    if url and (wrong := [name for name in changes if name not in (*OF_A_REQUEST, "token")]):
        raise InputError(f"arm {text!r}: {wrong[0]} is the host's own business: set it where the host is started")
    return ArmSpec(without_token(text), url, changes)


def without_token(text: str) -> str:
    """A specification or a command line as it may stand in a report."""
    return re.sub(r"\b(token[= ])[^\s,'\"]+", r"\1…", text)


def _of_card(name: str) -> dict[str, str]:
    """What serves a card: its route, where it has one, and the card on each of its routes."""
    try:
        routes = get_card(name).routes
    except CardError as error:
        raise InputError(str(error)) from None
    return {f"{route}_card": name for route in routes} | ({"model": routes[0]} if len(routes) == 1 else {})


def open_arms(texts: tuple[str, str], flags: dict[str, Any]) -> tuple[Runner, Runner]:
    """Both arms; models that both can use are loaded once. Raises ``FimError``."""
    shared: list[ModelPool] = []
    first, second = (_open(read_spec(text), flags, shared) for text in texts)
    return first, second


def settings_of_arm(text: str, flags: dict[str, Any]) -> Settings:
    """The settings of an arm: those of the command, changed. Raises ``InputError``."""
    spec = read_spec(text)
    return read_settings(**flags | spec.changes | ({"connect": spec.url} if spec.url else {}))


def _open(spec: ArmSpec, flags: dict[str, Any], shared: list[ModelPool]) -> Runner:
    settings = read_settings(**flags | spec.changes)
    if spec.url:
        from fimserver.ab.arms.remote import RemoteArm  # noqa: PLC0415 - the HTTP library, where an arm is remote

        return RemoteArm(spec.text, spec.url, settings)
    from fimserver.ab.arms.local import LocalArm  # noqa: PLC0415 - torch, where an arm is local
    from fimserver.engine.engines import ModelPool  # noqa: PLC0415

    models = next((models for models in shared if _same_host(models.settings, settings)), None)
    if models is None:
        models = ModelPool(settings, shares=shared)
        shared.append(models)
    return LocalArm(spec.text, settings, models)


def _same_host(one: Settings, other: Settings) -> bool:
    return all(getattr(one, name) == getattr(other, name) for name in ENGINE_SETTINGS)


def request_of(span: Span, settings: Settings) -> Request:
    """A request as an editor would make it."""
    prefix, suffix = span.prefix[-CONTEXT_CHARS:], span.suffix[:CONTEXT_CHARS]
    known = features(span.language or None, prefix, suffix)
    return replace(make_request(prefix, suffix, settings, span.group), features=known)


def filled(text: str, last: CompletionChunk | None, first_ms: float, answer_ms: float) -> ArmAnswer:
    """Raises ``FimError`` where an answer broke off."""
    if last is None or last.usage is None:
        raise FimError("an answer came without its end")
    return ArmAnswer(text, last.usage, first_ms or answer_ms, answer_ms)
