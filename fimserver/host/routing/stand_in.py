"""Stand-ins: a model far smaller than the other route's, which a policy never chooses."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from fimserver.cards import get_card
from fimserver.errors import CardError
from fimserver.types import ROUTES, Route, RoutePin, other

FAR_SMALLER = 20.0  # ratio of parameters; no keep rates are published for such small models
ELSEWHERE_M = 7000.0  # assumed size of a remote model without a card
WEIGHING = frozenset({"expected_value", "bandit"})  # policies that use keep rates


def needed_routes(pin: RoutePin, policy: str, models: Mapping[Route, str]) -> tuple[Route, ...]:
    """Return the routes whose engines must be loaded to answer a request: not that of a stand-in.

    A stand-in is loaded when its route is pinned, or when the other route cannot run.
    """
    if pin != "auto":
        return (pin,)
    larger = far_larger(models) if policy in WEIGHING else None
    return (larger,) if larger else ROUTES


def far_larger(models: Mapping[Route, str]) -> Route | None:
    """Return the route whose model is far larger than the other's; ``None`` if sizes are similar."""
    sizes = {route: _parameters_m(model) for route, model in models.items()}
    if len(sizes) < len(ROUTES) or not all(sizes.values()):
        return None
    large = max(ROUTES, key=lambda route: sizes[route])
    return large if sizes[large] >= FAR_SMALLER * sizes[other(large)] else None


@cache
def _parameters_m(model: str) -> float:
    """Millions of parameters according to the model's card; 0 if there is no card.

    A remote model is named ``MODEL.at.SERVER``. Without a card it counts as a real coder, so that a local
    stand-in is not preferred to it.
    """
    name, elsewhere, _ = model.partition(".at.")
    try:
        return get_card(name).parameters_m
    except CardError:
        return ELSEWHERE_M if elsewhere else 0.0
