"""Makes the card of a server named by its URL; ``URL#MODEL`` names one of its models."""

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
AT = ".at."  # between model and server in the name of a card


def is_url(name: str) -> bool:
    """Whether a card is named by a URL."""
    return name.startswith(("http://", "https://"))


def card_of_url(text: str, route: Route) -> Card:
    """Make a card for the server at a URL; the server is asked for the name of its model.

    Raises ``CardError`` if ``text`` is not a URL. A server that does not answer is not an error yet.
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
        found = model  # the error is reported with the first request
    return card.model_copy(update={"name": name_of(found, url)})


def name_of(model: str, url: str) -> str:
    """Return a name for statistics: that of our card of the same model, or the server's, and the server."""
    like = card_like(model)
    known = (
        like.name if like and like.name in slug(model) else slug(model.rsplit("/", 1)[-1])[:60].strip("-.")
    )
    parts = urlsplit(url)
    return f"{known or 'model'}{AT}{slug(f'{parts.hostname}-{parts.port or parts.scheme}')}"
