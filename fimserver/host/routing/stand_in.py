"""Stand-ins: a model that adds nothing to the other route's, which a policy never chooses.

It is far smaller, or writes what the other route's model writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

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
    alone = without_stand_in(models) if policy in WEIGHING else None
    return (alone.route,) if alone else ROUTES


class Alone(NamedTuple):
    """The route that answers by itself, and why."""

    route: Route
    why: str


def without_stand_in(models: Mapping[Route, str]) -> Alone | None:
    """The route beside which the other's model is a stand-in; ``None`` where there is something to weigh."""
    if larger := far_larger(models):
        return Alone(larger, f"{models[other(larger)]} on {other(larger)} is far smaller")
    sizes = {route: _parameters_m(model) for route, model in models.items()}
    if len(sizes) == len(ROUTES) and sizes["ar"] >= sizes["dllm"] and _writes_its_ar_text(models["dllm"]):
        return Alone("ar", f"{models['dllm']} writes the same on both routes")
    return None


@cache
def _writes_its_ar_text(model: str) -> bool:
    """Whether a model's ar route checks its canvas: so no keep rate published for canvases is its own."""
    try:
        canvas = get_card(model).canvas
    except CardError:
        return False
    return canvas is not None and canvas.schedule.partition(":")[0] == "checked"


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
