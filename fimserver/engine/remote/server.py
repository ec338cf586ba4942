"""Finds out what a remote server is: dialect, model, context length."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path
from typing import NamedTuple

from fimserver.cards import Card, Fim, Remote
from fimserver.engine.remote.connection import RemoteConnection
from fimserver.engine.remote.dialect import Dialect, ServerFacts
from fimserver.engine.remote.dialects import DIALECTS, dialects_of, recognised
from fimserver.engine.remote.template import slug, template_of
from fimserver.engine.remote.wait import Wait
from fimserver.errors import BadKeyError, CardError, GarbledError, NoFimError, WarmingError, WrongModelError
from fimserver.types import Deadline, Route

_NAMES = 5  # most models named in a message


class RemoteServer(NamedTuple):
    """A server, its dialect and model. ``fim``: the model's markers; ``None`` if no card has its family."""

    dialect_name: str
    dialect: Dialect
    facts: ServerFacts
    model: str
    fim: Fim | None

    def about(self) -> str:
        """Describe the server in one line."""
        context = f", {self.facts.context_tokens} tokens of context" if self.facts.context_tokens else ""
        return f"{self.facts.software}, dialect {self.dialect_name}, model {self.model or 'unnamed'}{context}"


def key_of(remote: Remote) -> str:
    """Return the key of a card, from its file or variable; empty if it has none. Raises ``CardError``."""
    if not remote.key_file:
        key = os.environ.get(remote.key_env, "").strip()
    else:
        try:
            key = Path(remote.key_file).expanduser().read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise CardError(
                f"remote.key_file: {remote.key_file} cannot be read ({type(error).__name__})"
            ) from None
    if not (key.isascii() and key.isprintable()):
        raise CardError("the key of a remote server has characters that an HTTP header cannot carry")
    return key


def ask_server(
    connection: RemoteConnection, card: Card, route: Route, deadline: Deadline
) -> Generator[Wait, None, RemoteServer]:
    """Find out what a server is, yielding the waits.

    Raises ``RemoteError``, or ``CardError`` for an unknown dialect.
    """
    assert card.remote is not None
    dialects = dialects_of(card.remote.dialect)
    paths = tuple(dict.fromkeys(path for dialect in dialects.values() for path in dialect.probes))
    found_there = yield from connection.ask(paths, deadline)
    answers = dict(zip(paths, found_there, strict=True))
    found = {
        path: data for path, (status, data) in answers.items() if status in {200, 503} and data is not None
    }
    known = recognised(found, dialects)
    statuses = {status for status, _ in answers.values()}
    if known is None and statuses & {401, 403}:
        raise BadKeyError(
            f"{connection.url} refuses the key: "
            f"put the right one into {card.remote.key_file or card.remote.key_env}"
        )
    if known is None and 503 in statuses:
        raise WarmingError(f"{connection.url} is loading its model")
    if known is None and not card.remote.dialect:
        raise GarbledError(f"{connection.url} is not a server of a known kind: name its dialect in a card")
    name, facts = known or (card.remote.dialect, ServerFacts("a server"))
    _check_route(name, facts, card, route, connection.url)
    model = facts.routes[route] if facts.routes else _model(facts, card.remote.model, connection.url)
    return RemoteServer(name, DIALECTS[name], facts, model, card.fim or template_of(model))


def _check_route(name: str, facts: ServerFacts, card: Card, route: Route, url: str) -> None:
    """Raise ``NoFimError`` if a server does not serve a route, ``WarmingError`` if not yet."""
    if name == "fimserver":
        if facts.routes is None:
            raise WarmingError(f"{url} is loading its models")
        if route not in facts.routes:
            raise NoFimError(f"{url} does not serve the {route} route: use another server for it")
    elif route == "dllm" and not (card.fim and card.remote and card.remote.dialect):
        raise NoFimError(
            f"{url} is {facts.software}, which has no diffusion route: use --ar-card, "
            "or set its dialect and [fim] in a card"
        )


def _model(facts: ServerFacts, wanted: str, url: str) -> str:
    """Return the server's name of the wanted model. Raises ``WrongModelError``."""
    if not facts.models:
        return wanted
    names = ", ".join(facts.models[:_NAMES])
    if wanted:
        match = [name for name in facts.models if name == wanted] or [
            name for name in facts.models if slug(wanted) in slug(name)
        ]
        if not match:
            raise WrongModelError(f"{url} does not have {wanted!r}; it has {names}")
        return match[0]
    coders = [name for name in facts.models if template_of(name)] if len(facts.models) > 1 else []
    if len(facts.models) == 1 or len(coders) == 1:
        return (coders or facts.models)[0]
    raise WrongModelError(f"{url} has several models ({names}): name one, as in {url}#NAME")
