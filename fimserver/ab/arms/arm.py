"""Arm of a comparison: its specification, settings and answers.

A specification is an optional route or URL and settings, separated by commas: ``dllm``, ``ar,drafter=none``,
``auto,policy=bandit``, ``card=dreamon-7b``, ``http://gpu-box:8765,model=ar``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from fimserver.ab.items.spans import Span
from fimserver.ab.schema import Arm
from fimserver.cards import get_card
from fimserver.commands.complete import TimedMiddle, text_body
from fimserver.errors import CardError, InputError
from fimserver.settings import Settings, read_settings
from fimserver.types import ROUTES
from fimserver.wire import CompletionBody, Usage

REQUEST_SETTINGS = ("max_tokens", "temperature", "top_p", "seed", "stop", "deadline_ms", "model")


class ArmSpec(NamedTuple):
    """A parsed specification. ``text`` is without the token."""

    text: str
    url: str
    changes: dict[str, str]


@dataclass(frozen=True)
class ArmAnswer:
    """Answer of one arm to one span, timed by the caller."""

    text: str
    usage: Usage
    first_ms: float
    answer_ms: float


class Runner(Protocol):
    """One arm: ``LocalArm`` or ``RemoteArm``."""

    arm: Arm

    def fill(self, span: Span, *, warm: bool) -> ArmAnswer:
        """Fill a span with an empty cache or, if ``warm``, a cache with its prompt. Raises ``FimError``."""
        ...

    def cancel_ms(self, span: Span, after_ms: float) -> float | None:
        """Cancel after ``after_ms`` and return how long the work went on; ``None`` if that is unknown."""
        ...

    def close(self) -> None:
        """Close connections and free models."""
        ...


def read_spec(text: str) -> ArmSpec:
    """Parse a specification. Raises ``InputError``."""
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
            raise InputError(
                f"arm {text!r}: {part!r} is not a route, URL or setting=value; for example: ar,drafter=none"
            )
    if url and (wrong := [name for name in changes if name not in (*REQUEST_SETTINGS, "token")]):
        raise InputError(
            f"arm {text!r}: {wrong[0]} is a setting of the host: set it where the host is started"
        )
    return ArmSpec(without_token(text), url, changes)


def without_token(text: str) -> str:
    """Return a specification or a command line without its token, for a report."""
    return re.sub(r"\b(token[= ])[^\s,'\"]+", r"\1…", text)


def _of_card(name: str) -> dict[str, str]:
    """Return the settings that select a card: on each of its routes, and its route if it has only one."""
    try:
        routes = get_card(name).routes
    except CardError as error:
        raise InputError(str(error)) from None
    return {f"{route}_card": name for route in routes} | ({"model": routes[0]} if len(routes) == 1 else {})


def settings_of_arm(text: str, flags: dict[str, Any]) -> Settings:
    """Return the settings of an arm: those of the command with its changes. Raises ``InputError``."""
    spec = read_spec(text)
    return read_settings(**flags | spec.changes | ({"connect": spec.url} if spec.url else {}))


def body_of(span: Span, settings: Settings, session: str = "") -> CompletionBody:
    """Return the request body for a span. With ``session`` a newer request supersedes the older one."""
    body = text_body(span.prefix, span.suffix, settings, path=span.group, language=span.language or None)
    return body.with_hints(session=session, document=session)


def answer_of(middle: TimedMiddle) -> ArmAnswer:
    """Return the answer of an arm. A failure is an answer too, with the reason in its usage."""
    return ArmAnswer(middle.text, middle.usage, middle.first_ms, middle.total_ms)
