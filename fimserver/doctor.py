"""Knows what to ask of a machine before trusting it with models. Knows nothing of terminals."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from fimserver import __version__
from fimserver.cards import Card, is_present, read_cards
from fimserver.engine.device import describe, room_for_weights_gib
from fimserver.engine.engines import Models
from fimserver.errors import FimError
from fimserver.settings import Settings
from fimserver.types import Budget, Request, Route

if TYPE_CHECKING:
    from fimserver.engine.engines import Engine

# Any model that ever saw Python knows how this goes on.
KNOWN = Request(
    "class Box:\n    def __init__(self, width, height):\n        self.width = width\n        self.height = ",
    "\n\n    def area(self):\n        return self.width * self.height\n",
    max_tokens=8,
)
KNOWN_ANSWER = "height"


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    name: str
    value: str
    ok: bool = True


def examine(settings: Settings) -> Iterator[Finding]:
    """Machine first, then cards, then a completion on each present default model."""
    models = Models(settings)
    yield Finding("fimserver", f"{__version__}, Python {platform.python_version()}, {sys.platform}")
    yield Finding("device", describe(models.device))
    yield Finding("fits", ", ".join(c.name for c in _fitting(models)) or "nano")
    yield Finding("present", ", ".join(c.name for c in read_cards().values() if is_present(c, settings.models_dir)))
    for route in ("ar", "dllm"):
        yield _try_route(models, route)


def _fitting(models: Models) -> list[Card]:
    """Cards whose weights and a fifth more fit into the memory of the device."""
    room = room_for_weights_gib(models.device)
    return [card for card in read_cards().values() if card.weights_gib <= room]


def _try_route(models: Models, route: Route) -> Finding:
    """Load, answer a question whose answer is known, measure speed."""
    try:
        started = time.perf_counter()
        engine = models.engine(route)
        loaded_s = time.perf_counter() - started
        answer = "".join(chunk.text for chunk in engine.complete(KNOWN, Budget()))
        right = answer.startswith(KNOWN_ANSWER)
        said = "right answer" if right else f"WRONG answer {answer!r} to a known question"
        return Finding(route, f"{engine.card.name}: {said}, loaded in {loaded_s:.1f} s, {_speed(engine):.0f} tokens/s", right)
    except FimError as error:
        return Finding(route, str(error), ok=False)


def _speed(engine: Engine) -> float:
    """Tokens a second of a longer completion, prompt warm."""
    request = Request("def fibonacci(n):\n    ", "\n", max_tokens=48, stop="none", temperature=0.8)
    tokens, started = 0, time.perf_counter()
    for seed in range(4):
        for chunk in engine.complete(Request(**(asdict(request) | {"seed": seed})), Budget()):
            count = chunk.tokens
        tokens += count
    return tokens / (time.perf_counter() - started)
