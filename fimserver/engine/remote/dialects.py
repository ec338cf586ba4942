"""Registry of dialects, in the order in which they are tried on a server."""

from __future__ import annotations

from collections.abc import Mapping

from fimserver.engine.remote import fimserver, llama_cpp, mistral, ollama, openai
from fimserver.engine.remote.dialect import Dialect, Probed, ServerFacts
from fimserver.errors import CardError

DIALECTS: Mapping[str, Dialect] = {
    "fimserver": fimserver.DIALECT,
    "llama_cpp": llama_cpp.DIALECT,
    "ollama": ollama.DIALECT,
    "mistral": mistral.DIALECT,
    "openai": openai.DIALECT,
}


def dialects_of(name: str) -> Mapping[str, Dialect]:
    """Return the dialect named by a card, or all if it names none. Raises ``CardError``."""
    if not name:
        return DIALECTS
    if name not in DIALECTS:
        raise CardError(f"remote.dialect: there is no {name!r}; use one of {', '.join(DIALECTS)}")
    return {name: DIALECTS[name]}


def recognised(found: Probed, dialects: Mapping[str, Dialect]) -> tuple[str, ServerFacts] | None:
    """Return the first dialect that a server speaks, with the server's facts; ``None`` if it speaks none."""
    for name, dialect in dialects.items():
        try:
            facts = dialect.recognise(found)
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # the answer of another kind of server at the same path
        if facts is not None:
            return name, facts
    return None
