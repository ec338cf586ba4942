"""Advice on models: the best one for this machine on each route, why, its size and how to get it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from fimserver.cards import is_present
from fimserver.defaults import choose
from fimserver.machine import Machine
from fimserver.settings import Settings
from fimserver.store.sizes import size_text
from fimserver.types import ROUTES, Route


@dataclass(frozen=True)
class Advice:
    """The best model of a route for this machine, installed or not."""

    route: Route
    name: str
    here: bool
    size_bytes: int
    why: str
    command: str  # command that downloads it; empty if it is installed

    def as_json(self) -> Mapping[str, object]:
        """Return plain values, and the size as text."""
        return asdict(self) | {"size": size_text(self.size_bytes)}

    def text(self) -> str:
        """Describe it in one line."""
        what = f"{self.name}, {self.why}"
        return what if self.here else f"{what}; it is not here ({size_text(self.size_bytes)}): {self.command}"


def best_models(settings: Settings, machine: Machine) -> list[Advice]:
    """Return the best model of each route."""
    return [_best(route, settings, machine) for route in ROUTES]


def _best(route: Route, settings: Settings, machine: Machine) -> Advice:
    choice = choose(route, machine, settings, wanted=True)
    card = choice.card
    here = is_present(choice.card, settings.models_dir)
    size_bytes = card.download_bytes or int(card.parameters_m * 2e6)
    return Advice(
        route, card.name, here, size_bytes, choice.why, "" if here else f"fimserver models get {card.name}"
    )
