"""Engines: builds the engine of each route from its card.

``ENGINES`` is the registry; a new kind of engine is added there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import torch

from fimserver.cards import Card, get_card, model_folder
from fimserver.defaults import default_card
from fimserver.engine.autoregressive import Autoregressive
from fimserver.engine.capture import capture_canvas, capture_decoding, capture_dual, decode_starts
from fimserver.engine.checked_canvas import DRAFTERS, CheckedCanvas, priced_by_row
from fimserver.engine.denoising.refresh import Refresh, read_cache
from fimserver.engine.denoising.schedules import FOR_ADAPTERS, CheckedSchedule, Schedule, read_schedule
from fimserver.engine.denoising.step_range import within_steps
from fimserver.engine.device import free_machine, pick_device
from fimserver.engine.diffusion import Diffusion
from fimserver.engine.drafters.registry import make_drafters
from fimserver.engine.forward.joined_shapes import try_shapes
from fimserver.engine.forward.pass_cost import is_outdated, measure_costs
from fimserver.engine.kept_costs import kept_costs, kept_speed
from fimserver.engine.load import load
from fimserver.engine.prompts.prompt_budget import STEPS, PromptBudget
from fimserver.engine.remote.card import card_of_url, is_url
from fimserver.engine.remote.engine import RemoteEngine
from fimserver.engine.runtime import DraftContext, Runtime, make_runtime
from fimserver.engine.speculation.lookahead import Lookahead
from fimserver.engine.speculation.speculate import Speculation
from fimserver.engine.speculation.verify import VERIFIERS
from fimserver.engine.weights.by_path import find_card
from fimserver.errors import CardError, InputError
from fimserver.settings import WEIGHTS_SETTINGS, Settings
from fimserver.types import ROUTES, Chunk, Deadline, Request, Route

WIDTH_ELSEWHERE = 16  # requests that wait for remote servers at a time, unless --batch sets it


class Engine(Protocol):
    """Fills middles on one route."""

    card: Card

    def warm(self, request: Request, deadline: Deadline) -> None:
        """Prefill the prompt of a request that is expected to come."""
        ...

    def num_uncached_tokens(self, request: Request) -> int:
        """Return the number of prompt tokens that have to be computed before the first token."""
        ...

    def complete(self, request: Request, deadline: Deadline) -> Iterator[Chunk]:
        """Yield the chunks of one middle; the last one has the reason."""
        ...


def make_ar(target: DraftContext) -> Autoregressive:
    """Build the engine of the ar route, with its drafters. Raises ``FimError``."""
    runtime = target.runtime
    if runtime.cache is None:
        raise CardError(
            f"{runtime.loaded.card.name} has full attention and cannot decode token by token:"
            " use --model dllm"
        )
    cache = runtime.cache
    rows = runtime.rows
    draft = runtime.can_draft
    starts = decode_starts(cache)
    costs = kept_costs(
        runtime,
        lambda: measure_costs(cache, rows, draft=draft, starts=starts),
        outdated=lambda costs: is_outdated(costs, cache, starts[0]),
    )
    capture_decoding(cache, costs.ms)
    verifier = VERIFIERS[target.settings.verify]()
    drafters = make_drafters(target)
    ahead = next((d.drafter for d in drafters if isinstance(d.drafter, Lookahead)), None)
    try_shapes(cache, rows, costs.ms, [ahead.network] if ahead else [])
    speculation = Speculation(cache, drafters, verifier, costs, ahead)
    return Autoregressive(runtime.loaded.card, runtime.loaded.vocabulary, speculation, runtime.budget)


def make_dllm(target: DraftContext) -> Diffusion:
    """Build the engine of the dllm route. Raises ``FimError``."""
    runtime = target.runtime
    card = runtime.loaded.card
    schedule = make_schedule(card, target.settings)
    if runtime.cache is not None and card.canvas is not None:
        capture_canvas(runtime.cache, card.canvas.max_tokens, runtime.canvas_network)
        try_shapes(runtime.cache, runtime.rows, adapted=[runtime.canvas_network])
    rules = make_refresh(card, target.settings)
    duals = runtime.dual_caches if rules else None
    if duals is not None and card.canvas is not None:
        capture_dual(duals.current, card.canvas.max_tokens + 1)  # including the row before the first slot
    vocabulary = runtime.loaded.vocabulary
    network = runtime.canvas_network
    checked = None
    if isinstance(schedule, CheckedSchedule) and runtime.can_draft:
        checked = make_checked(target, schedule)
    return Diffusion(
        card,
        vocabulary,
        network,
        runtime.cache,
        schedule,
        runtime.budget,
        duals,
        rules,
        checked,
        runtime.length_probe,
    )


def make_checked(target: DraftContext, schedule: CheckedSchedule) -> CheckedCanvas:
    """Build a canvas whose guesses the ar route of the same coder checks."""
    drafters = f"{DRAFTERS},masks={schedule.masks}"
    drafting = target.settings.model_copy(update={"drafter": drafters, "verify": "keyed"})
    decoder = make_ar(replace(target, settings=drafting))
    policy, ahead = decoder.speculation.policy, decoder.speculation.lookahead
    canvas = target.runtime.loaded.card.canvas
    assert ahead
    assert canvas
    ahead.alone = True  # this route shows a canvas, also where n-gram drafts would be as good
    if not math.isinf(schedule.row):
        policy.costs, ahead.mask_costs = priced_by_row(policy.costs, schedule.row), {}
    vocabulary = target.runtime.loaded.vocabulary
    return CheckedCanvas(decoder, ahead, canvas, lambda token: vocabulary.decode([token]))


def _with_budget(runtime: Runtime, settings: Settings) -> Runtime:
    """Limit prompts by the measured prefill speed, unless the user set their length."""
    limit = runtime.budget.limit
    if settings.prompt_tokens or runtime.cache is None or limit <= STEPS[0]:
        return runtime
    return replace(runtime, budget=PromptBudget(limit, kept_speed(runtime), settings.prompt_ms))


class Resources(Protocol):
    """What engines need besides their card; models are loaded on demand."""

    settings: Settings

    def target(self, card: Card) -> DraftContext:
        """Return the model of a card, loading it if need be. Raises ``FimError``."""
        ...


# By kind: the card's ``engine`` if it names one, else its route, with "remote" before it for a remote server.
ENGINES: Mapping[str, Callable[[Card, Resources], Engine]] = {
    "dllm": lambda card, resources: make_dllm(resources.target(card)),
    "ar": lambda card, resources: make_ar(resources.target(card)),
    "remote dllm": lambda card, _resources: RemoteEngine(card, "dllm"),
    "remote ar": lambda card, _resources: RemoteEngine(card, "ar"),
}


def make_schedule(card: Card, settings: Settings) -> Schedule:
    """Return the schedule of the settings, or else of the card, within the card's range of steps.

    Raises ``InputError`` for a bad setting, ``CardError`` for a bad card.
    """
    if settings.schedule:
        return _schedule_for(card, settings.schedule, settings.threshold)
    try:
        return _schedule_for(card, card.canvas.schedule if card.canvas else "threshold", settings.threshold)
    except InputError as error:
        raise CardError(f"{card.name}: canvas.schedule: {error}") from None


def _schedule_for(card: Card, spec: str, threshold: float) -> Schedule:
    """Read a schedule. Raises ``InputError``, also if it needs an adapter that the card does not have."""
    if spec.partition(":")[0] in FOR_ADAPTERS and not (card.canvas and card.canvas.adapter):
        raise InputError(f"schedule {spec} is for models with a canvas adapter, {card.name} has none")
    least, most = (card.canvas.least_steps, card.canvas.most_steps) if card.canvas else (0, 0)
    return within_steps(read_schedule(spec, level=threshold), least, most)


def make_refresh(card: Card, settings: Settings) -> Refresh | None:
    """Return the refresh rules of the canvas cache of the settings, or else of the card.

    ``None``: no cache, or attention is not full. Raises ``InputError`` for a bad setting, ``CardError`` for
    a bad card.
    """
    asked = read_cache(settings.canvas_cache) if settings.canvas_cache else None
    if card.canvas is None or card.canvas.attention != "full":
        return None
    try:
        return asked if settings.canvas_cache else read_cache(card.canvas.cache)
    except InputError as error:
        raise CardError(f"{card.name}: canvas.cache: {error}") from None


class ModelPool:
    """Loads models on demand, each once, and builds the engines on them."""

    def __init__(self, settings: Settings, shares: Sequence[ModelPool] = ()) -> None:
        """``shares``: pools whose loaded weights are reused if the settings would load the same."""
        if settings.schedule:
            read_schedule(settings.schedule)
        if settings.canvas_cache:
            read_cache(settings.canvas_cache)
        self.settings = settings
        self.device = pick_device(settings.device)
        if settings.threads:
            torch.set_num_threads(settings.threads)
        self.free = free_machine(self.device)  # before any model is loaded
        self._cards: dict[Route, Card] = {}
        alike = (
            models
            for models in shares
            if all(getattr(models.settings, n) == getattr(settings, n) for n in WEIGHTS_SETTINGS)
        )
        self._runtimes: dict[str, Runtime] = next((models._runtimes for models in alike), {})  # noqa: SLF001
        self._engines: dict[Route, Engine] = {}

    def card(self, route: Route) -> Card:
        """Return the card of a route, chosen at the first call.

        Raises ``CardError`` if the card of the settings does not serve the route.
        """
        if route not in self._cards:
            name = self.settings.card(route)
            taken = sum(card.weights_gib for card in self._cards.values())
            shared = {card.name for card in self._cards.values()}
            card = (
                self._named(name, route)
                if name
                else default_card(route, self.free.less(taken), self.settings, shared)
            )
            if route not in card.routes:
                raise CardError(
                    f"{card.name} does not serve the {route} route: `fimserver models` lists those that do"
                )
            self._cards[route] = card
        return self._cards[route]

    def _named(self, name: str, route: Route) -> Card:
        return card_of_url(name, route) if is_url(name) else find_card(name)

    def served(self) -> Mapping[Route, str]:
        """Return the name of each route's model."""
        return {route: self.card(route).name for route in ROUTES}

    def engine(self, route: Route) -> Engine:
        """Return the engine of a route; loads its model at the first call. Raises ``FimError``."""
        if route not in self._engines:
            card = self.card(route)
            usual = f"remote {route}" if card.remote else route
            if (kind := card.engine or usual) not in ENGINES:
                raise CardError(f"{card.name}: engine: there is no {kind!r}; use one of {', '.join(ENGINES)}")
            self._engines[route] = ENGINES[kind](card, self)
        return self._engines[route]

    @property
    def elsewhere(self) -> frozenset[Route]:
        """The routes of remote servers, where a request may cost money."""
        return frozenset(route for route in ROUTES if self.card(route).remote)

    @property
    def width(self) -> int:
        """How many requests may run side by side: the number of their KV buffers, 1 if none may share."""
        models = list(self._runtimes.values())
        if not any(runtime.is_shared for runtime in models):
            return 1
        return min(runtime.width for runtime in models)

    @property
    def width_elsewhere(self) -> int:
        """How many requests may wait for remote servers at a time."""
        return self.settings.batch or WIDTH_ELSEWHERE

    def clear(self) -> None:
        """Forget all prompts."""
        for runtime in self._runtimes.values():
            runtime.clear()

    def piece(self, route: Route) -> Callable[[int], str]:
        """Return the function that decodes one token of a route's model."""
        vocabulary = self.runtime(self.card(route)).loaded.vocabulary
        return lambda token: vocabulary.decode([token])

    def target(self, card: Card) -> DraftContext:
        """Return the model of a card with what its drafters may need."""
        return DraftContext(self.runtime(card), self.settings, lambda name: self.runtime(get_card(name)))

    def runtime(self, card: Card) -> Runtime:
        """Return the runtime of a card's model, loading it at the first call. Raises ``FimError``."""
        if card.remote:
            raise CardError(f"{card.name} is on a remote server: this needs a card with local weights")
        if card.name not in self._runtimes:
            folder = model_folder(card, self.settings.models_dir)
            loaded = load(card, folder, self.device, self.settings.quantize)
            self._runtimes[card.name] = _with_budget(make_runtime(loaded, self.settings), self.settings)
        return self._runtimes[card.name]
