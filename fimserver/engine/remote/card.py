"""Card of a server that was named by its URL; ``URL#MODEL`` names one of its models."""

from __future__ import annotations

from urllib.parse import urlsplit

from pydantic import ValidationError

from fimserver.cards import ELSEWHERE, Card, Remote
from fimserver.engine.remote.connection import RemoteConnection
from fimserver.engine.remote.server import ask_server, key_of
from fimserver.engine.remote.template import card_like, slug
from fimserver.engine.remote.wait import result_of
from fimserver.errors import CardError, RemoteError, first_problem
from fimserver.types import Deadline, Route

ASK_MS = 1500.0
AT = ".at."  # in the name of a card, between model and server


def is_url(name: str) -> bool:
    """Whether a card is named by a URL."""
    return name.startswith(("http://", "https://"))


def card_of_url(text: str, route: Route) -> Card:
    """A card for the server at a URL, which is asked for the name of its model if it is there.

    Raises ``CardError`` for what is no URL.
    """
    url, _, model = text.partition("#")
    try:
        card = Card(name="elsewhere", remote=Remote(url=url, model=model), **ELSEWHERE)
    except ValidationError as error:
        raise CardError(f"--{route}-card: {first_problem(error, 'url')}") from None
    try:
        assert card.remote is not None
        connection = RemoteConnection(card.remote.url, key_of(card.remote))
        found = result_of(ask_server(connection, card, route, Deadline.of_ms(ASK_MS))).model
    except RemoteError:
        found = model  # it says so itself when it is asked for a middle
    return card.model_copy(update={"name": name_of(found, url)})


def name_of(model: str, url: str) -> str:
    """A name for statistics and costs: that of our card of the same model, or its own, and the server."""
    like = card_like(model)
    known = (
        like.name if like and like.name in slug(model) else slug(model.rsplit("/", 1)[-1])[:60].strip("-.")
    )
    parts = urlsplit(url)
    return f"{known or 'model'}{AT}{slug(f'{parts.hostname}-{parts.port or parts.scheme}')}"
