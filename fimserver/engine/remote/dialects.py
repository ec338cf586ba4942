"""Registry of dialects, in the order in which a server is tried for them.

``DIALECTS`` is the place for another dialect; nothing else names one.
"""

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
    """The dialect of a card, or all of them where it names none. Raises ``CardError``."""
    if not name:
        return DIALECTS
    if name not in DIALECTS:
        raise CardError(f"remote.dialect: there is no {name!r}; use one of {', '.join(DIALECTS)}")
    return {name: DIALECTS[name]}


def recognised(found: Probed, dialects: Mapping[str, Dialect]) -> tuple[str, ServerFacts] | None:
    """The first dialect that a server speaks, and what the server says about itself."""
    for name, dialect in dialects.items():
        try:
            facts = dialect.recognise(found)
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # another server's answer under the same address
        if facts is not None:
            return name, facts
    return None
