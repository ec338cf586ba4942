"""Knows which engine serves which route and how it is put together. Knows nothing of who asks.

``ENGINES`` is the place for another engine; nothing else names one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from fimserver.cards import Card, default_card, get_card, model_folder
from fimserver.engine import lean
from fimserver.engine.autoregressive import Autoregressive
from fimserver.engine.context import PromptCache
from fimserver.engine.device import free_gib, pick_device
from fimserver.engine.diffusion import Diffusion
from fimserver.engine.load import Loaded, load
from fimserver.engine.network import NativeNetwork, Network
from fimserver.engine.schedules import SCHEDULES, Schedule
from fimserver.errors import CardError, InputError, LoadError
from fimserver.settings import Settings
from fimserver.types import Budget, Chunk, Request, Route


class Engine(Protocol):
    """Anything that fills middles."""

    card: Card

    def warm(self, request: Request, budget: Budget) -> None:
        """Do what can be done before the request is final."""
        ...

    def complete(self, request: Request, budget: Budget) -> Iterator[Chunk]:
        """Chunks of one middle; the last one carries the reason."""
        ...


@dataclass(frozen=True)
class Runtime:
    """A loaded model ready to run: its network and, where its attention allows one, the cache both routes share.

    ``rows`` is the constant row count of a decoding pass.
    """

    loaded: Loaded
    network: Network
    cache: PromptCache | None
    rows: int


def make_runtime(loaded: Loaded, settings: Settings) -> Runtime:
    """Choose the forward pass and size the cache for one model."""
    card = loaded.card
    if card.canvas and card.canvas.attention == "full":
        return Runtime(loaded, NativeNetwork(loaded.model, loaded.device), None, 1)
    use_lean = settings.network != "native" and lean.fits(loaded.model)
    if settings.network == "lean" and not use_lean:
        raise InputError(f"--network lean does not fit {card.name} ({card.architecture}): use auto or native")
    on_cpu = loaded.device.type == "cpu"
    rows = settings.decode_rows or (1 if on_cpu and not use_lean else 8)
    chunk = settings.prefill_rows or (64 if on_cpu and use_lean else 128)
    longest = max(card.max_new_tokens, card.canvas.max_tokens + card.canvas.block_tokens if card.canvas else 0)
    capacity = -(-(card.prompt_tokens + longest + rows) // chunk) * chunk
    positions = int(getattr(loaded.model.config, "max_position_embeddings", capacity))
    if card.prompt_tokens + longest > positions:
        raise LoadError(f"{card.name}: the card wants {card.prompt_tokens + longest} positions, the model has {positions}")
    network: Network = (
        lean.LeanNetwork(loaded.model, capacity, rows) if use_lean else NativeNetwork(loaded.model, loaded.device)
    )
    return Runtime(loaded, network, PromptCache(network, capacity, chunk), rows)


def make_ar(runtime: Runtime, settings: Settings) -> Engine:  # noqa: ARG001 - the shape of ENGINES
    """The ar route on a runtime."""
    if runtime.cache is None:
        raise CardError(f"{runtime.loaded.card.name} sees both ways and cannot decode token by token: use --model dllm")
    return Autoregressive(runtime.loaded.card, runtime.loaded.vocabulary, runtime.cache, runtime.rows)


def make_dllm(runtime: Runtime, settings: Settings) -> Engine:
    """The dllm route on a runtime."""
    card = runtime.loaded.card
    return Diffusion(card, runtime.loaded.vocabulary, runtime.network, runtime.cache, make_schedule(card, settings))


ENGINES: Mapping[Route, Callable[[Runtime, Settings], Engine]] = {"dllm": make_dllm, "ar": make_ar}


def make_schedule(card: Card, settings: Settings) -> Schedule:
    """The schedule that was asked for, or the card's."""
    name = settings.schedule or (card.canvas.schedule if card.canvas else "threshold")
    return SCHEDULES[name](settings.threshold) if name in {"threshold", "leftmost"} else SCHEDULES[name]()


class Models:
    """Loaded models, each once, and the engines on them."""

    def __init__(self, settings: Settings) -> None:
        if settings.schedule and settings.schedule not in SCHEDULES:
            raise InputError(f"no schedule named {settings.schedule!r}: use one of {', '.join(SCHEDULES)}")
        self.settings = settings
        self.device = pick_device(settings.device)
        if settings.threads:
            torch.set_num_threads(settings.threads)
        self._free_gib = free_gib(self.device)  # before anything of ours is there
        self._cards: dict[Route, Card] = {}
        self._runtimes: dict[str, Runtime] = {}
        self._engines: dict[Route, Engine] = {}

    def card(self, route: Route) -> Card:
        """The card that a route uses, chosen once. Raises ``CardError`` when the card that was asked for does not serve it."""
        if route not in self._cards:
            name = self.settings.card(route)
            room = self._free_gib - sum(card.weights_gib for card in self._cards.values())
            card = get_card(name) if name else default_card(route, room, self.settings.models_dir)
            if route not in card.routes:
                raise CardError(f"{card.name} does not serve the {route} route; `fimserver models` shows what does")
            self._cards[route] = card
        return self._cards[route]

    def served(self) -> Mapping[Route, str]:
        """The name of each route's model."""
        return {route: self.card(route).name for route in ENGINES}

    def engine(self, route: Route) -> Engine:
        """The engine of a route; loads its model at the first call."""
        if route not in self._engines:
            self._engines[route] = ENGINES[route](self.runtime(self.card(route)), self.settings)
        return self._engines[route]

    def runtime(self, card: Card) -> Runtime:
        if card.name not in self._runtimes:
            folder = model_folder(card, self.settings.models_dir)
            loaded = load(card, folder, self.device, self.settings.quantize)
            self._runtimes[card.name] = make_runtime(loaded, self.settings)
        return self._runtimes[card.name]
