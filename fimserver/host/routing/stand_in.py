"""Stand-ins: a model that is far smaller than the other route's, to which no request is routed by itself."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from fimserver.cards import get_card
from fimserver.errors import CardError
from fimserver.types import ROUTES, Route, RoutePin, other

FAR_SMALLER = 20.0  # times fewer parameters; no keep rates were published for its like
ELSEWHERE_M = 7000.0
WEIGHING = frozenset({"expected_value", "bandit"})  # policies that choose by what is kept


def needed_routes(pin: RoutePin, policy: str, models: Mapping[Route, str]) -> tuple[Route, ...]:
    """The routes whose engines have to be there to answer a request: not the one with a stand-in.

    A stand-in is loaded when it is asked for, or when the other route cannot run.
    """
    if pin != "auto":
        return (pin,)
    larger = far_larger(models) if policy in WEIGHING else None
    return (larger,) if larger else ROUTES


def far_larger(models: Mapping[Route, str]) -> Route | None:
    """The route whose model is so much larger than the other's that there is nothing to weigh.

    None where sizes are alike.
    """
    sizes = {route: _parameters_m(model) for route, model in models.items()}
    if len(sizes) < len(ROUTES) or not all(sizes.values()):
        return None
    large = max(ROUTES, key=lambda route: sizes[route])
    return large if sizes[large] >= FAR_SMALLER * sizes[other(large)] else None


@cache
def _parameters_m(model: str) -> float:
    """Millions of parameters by the model's card; 0 where there is no card of that name.

    A model elsewhere is named ``MODEL.at.SERVER``. One without a card counts as a real coder, so that a
    stand-in here does not take its place.
    """
    name, elsewhere, _ = model.partition(".at.")
    try:
        return get_card(name).parameters_m
    except CardError:
        return ELSEWHERE_M if elsewhere else 0.0
