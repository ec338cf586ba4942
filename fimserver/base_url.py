"""Base URLs of servers, as settings, cards and commands take them."""

from __future__ import annotations

from urllib.parse import urlsplit


def base_url(text: str) -> str:
    """Scheme, host, port and path of a server, without a final ``/v1``. Raises ``ValueError``."""
    url = urlsplit(text.strip())
    is_whole = url.scheme in {"http", "https"} and url.hostname and url.port != 0
    if not is_whole or url.query or url.fragment:
        raise ValueError("give http://HOST:PORT")
    return f"{url.scheme}://{url.netloc}{url.path.rstrip('/').removesuffix('/v1')}"
