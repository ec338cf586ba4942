"""Examination of a machine: what it can run, a completion on each route, and the gain of each drafter."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING

from fimserver import __version__
from fimserver.cards import get_card, is_present, read_cards
from fimserver.commands.complete import complete
from fimserver.defaults import CPU_DEFAULTS, DEFAULTS, choose
from fimserver.engine.autoregressive import Autoregressive
from fimserver.engine.device import describe
from fimserver.engine.drafters.registry import DRAFTERS, make_drafters, split_specs
from fimserver.engine.engines import ModelPool, make_ar
from fimserver.engine.remote.engine import RemoteEngine
from fimserver.engine.runtime import DraftContext
from fimserver.errors import FimError
from fimserver.host.calibrate import calibrate, samples
from fimserver.host.keystroke import keystroke_ms
from fimserver.host.routing.latency import LatencyModel, ModelCost
from fimserver.host.routing.router import Router, cost_name
from fimserver.host.sockets import try_socket
from fimserver.keystrokes import keep_ms
from fimserver.paths import data_path, data_problem, latency_path, log_path, log_problem, socket_path
from fimserver.settings import Settings
from fimserver.store.advice import best_models
from fimserver.store.catalogue import fits
from fimserver.types import Deadline, Request, Route, Sampling

if TYPE_CHECKING:
    from fimserver.engine.engines import Engine

# Any model trained on Python completes this correctly.
KNOWN = Request(
    "class Box:\n    def __init__(self, width, height):\n        self.width = width\n        self.height = ",
    "\n\n    def area(self):\n        return self.width * self.height\n",
    sampling=Sampling(max_tokens=8),
)
KNOWN_ANSWER = "height"
ASK_MS = 2000.0  # limit for asking a remote server what it is
DRAFTED = 4  # samples that drafters are tried on


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    name: str
    value: str
    ok: bool = True


def examine(settings: Settings) -> Iterator[Finding]:
    """Examine the machine, the cards, and a completion on each present default model."""
    models = ModelPool(settings)
    yield Finding("fimserver", f"{__version__}, Python {platform.python_version()}, {sys.platform}")
    yield _socket(settings)
    yield _log()
    yield _data()
    yield Finding("device", describe(models.device))
    yield Finding("fits", ", ".join(c.name for c in read_cards().values() if fits(c, models.free)))
    for advice in best_models(settings, models.free):
        yield Finding(f"best {advice.route}", advice.text())
    yield Finding(
        "present", ", ".join(c.name for c in read_cards().values() if is_present(c, settings.models_dir))
    )
    for route in ("ar", "dllm"):
        yield _try_route(models, route)
    yield from examine_drafters(models)


def _socket(settings: Settings) -> Finding:
    """Whether a host could listen where editors look for it."""
    try:
        path = socket_path(settings)
        try_socket(path)
    except FimError as error:
        return Finding("socket", str(error), ok=False)
    return Finding("socket", str(path))


def _log() -> Finding:
    """Whether the host can write its log."""
    problem = log_problem("host.log")
    return Finding("log", problem or str(log_path("host.log")), ok=not problem)


def _data() -> Finding:
    """Whether statistics and measured costs can be kept."""
    problem = data_problem()
    return Finding("data", problem or str(data_path("")), ok=not problem)


def _try_route(models: ModelPool, route: Route) -> Finding:
    """Load the model, check a completion whose text is known, and measure the speed."""
    try:
        started = time.perf_counter()
        engine = models.engine(route)
        loaded_s = time.perf_counter() - started
        settings = models.settings.model_copy(update={"model": route, "deadline_ms": None})
        answer = complete(models, KNOWN, settings).text
        is_right = answer.startswith(KNOWN_ANSWER)
        verdict = "right answer" if is_right else f"WRONG answer {answer!r} to a known question"
        speed = _tokens_per_s(models, settings)
        keystroke = f", {_keystroke(models, engine):.0f} ms a keystroke" if route == "ar" else ""
        if isinstance(engine, RemoteEngine):
            about = f"{engine.remote.url}: {engine.server(Deadline.of_ms(ASK_MS)).about()}"
            return Finding(route, f"{about}: {verdict}, {speed:.0f} tokens/s{keystroke}", is_right)
        facts = f"{engine.card.name}: {verdict}, loaded in {loaded_s:.1f} s, {speed:.0f} tokens/s{keystroke}"
        return Finding(route, facts, is_right)
    except FimError as error:
        return Finding(route, str(error), ok=False)


def _keystroke(models: ModelPool, engine: Engine) -> float:
    """Measure the time of a keystroke and keep it for the choice of defaults."""
    ms = keystroke_ms(engine)
    keep_ms(models.device.type, engine.card.name, ms)
    return ms


def examine_drafters(models: ModelPool) -> Iterator[Finding]:
    """Measure the cost of rows on this device, and the tokens a pass of each drafter of the ar route."""
    try:
        if models.card("ar").remote:
            yield Finding("drafters", "the ar route is served elsewhere: that server makes its own drafts")
            return
        target = models.target(models.card("ar"))
        engine = make_ar(replace(target, settings=models.settings.model_copy(update={"drafter": "none"})))
    except FimError as error:
        yield Finding("drafters", str(error), ok=False)
        return
    costs = engine.speculation.policy.costs
    rows = costs.plain[1]
    ms = costs.ms
    more = (f"{r} {ms[b, r] / ms[costs.plain]:.2f}x" for b, r in sorted(ms) if b == 1 and r > rows)
    few = "1 row" if rows == 1 else f"{rows} rows"
    yield Finding("rows", f"a pass of {few} takes {ms[costs.plain]:.1f} ms; of more rows: {', '.join(more)}")
    for name in (*DRAFTERS, "auto"):
        yield _try_drafter(engine, target, name)


def _try_drafter(engine: Autoregressive, target: DraftContext, name: str) -> Finding:
    try:
        made = make_drafters(replace(target, settings=target.settings.model_copy(update={"drafter": name})))
    except FimError as error:
        return Finding(name, f"not used: {error}", ok=name not in _wanted(target))
    engine.speculation.drafters = tuple(made)
    settings = target.settings.model_copy(update={"model": "ar", "deadline_ms": None})
    requests = [request.with_sampling(max_tokens=48, stop="none") for request in samples()[-DRAFTED:]]
    usages = [complete(OneEngine(engine), request, settings).usage for request in requests]
    counts = [usage.drafting for usage in usages if usage.drafting]
    rounds = sum(count.rounds for count in counts)
    drafted = sum(count.drafted for count in counts)
    accepted = sum(sum(count.accepted) for count in counts)
    rate = (rounds + accepted) / rounds if rounds else 0.0
    return Finding(name, f"{accepted} of {drafted} drafted tokens accepted: {rate:.2f} tokens a pass")


def _wanted(target: DraftContext) -> list[str]:
    """Return the drafters that are asked for: those of the settings, or the default ones of the card."""
    asked = target.settings.drafter
    if asked == "auto":
        asked = target.runtime.loaded.card.drafters.get("default", "ngram")
    return split_specs(asked)


@dataclass(frozen=True)
class OneEngine:
    """The engine of the ar route alone."""

    ar: Autoregressive

    def engine(self, route: Route) -> Engine:  # noqa: ARG002 - the shape of an EngineSource
        return self.ar

    def served(self) -> Mapping[Route, str]:
        return {"ar": self.ar.card.name}


def calibrated(settings: Settings) -> Iterator[Finding]:
    """Measure what each model costs here, keep it for the route policy, and report it.

    The report has the error of the predictions.
    """
    models = ModelPool(settings)
    latency = LatencyModel(latency_path(settings))
    router = Router(costs=latency)
    for _ in range(2):  # the second time for the error
        for _ in calibrate(models, router):
            pass
    latency.save()
    yield from _keystrokes(models)
    for route, model in models.served().items():
        yield Finding(f"cost {route}", f"{model}: {_cost(latency.cost(cost_name(route, model)))}")


def _keystrokes(models: ModelPool) -> Iterator[Finding]:
    """The keystroke of every model that is here and could be the default of the ar route."""
    settings = models.settings
    names = CPU_DEFAULTS["ar"] if models.device.type == "cpu" else tuple(name for _, name in DEFAULTS["ar"])
    for name in names:
        if not is_present(get_card(name), settings.models_dir):
            continue
        try:
            pool = ModelPool(settings.model_copy(update={"ar_card": name}), (models,))
            yield Finding("keystroke", f"{name}: {_keystroke(pool, pool.engine('ar')):.0f} ms")
        except FimError as error:
            yield Finding("keystroke", str(error), ok=False)
    yield Finding(
        "default",
        f"{choose('ar', models.free, settings).card.name}, {choose('ar', models.free, settings).why}",
    )


def _cost(cost: ModelCost) -> str:
    """Median figures in one line."""
    row, step, tokens = (
        median(figures) if figures else 0.0 for figures in (cost.row_ms, cost.pass_ms, cost.pass_tokens)
    )
    error = ", ".join(f"{name} {ratio:.2f}" for name, ratio in cost.error().items())
    return (
        f"{row * 1000:.0f} us a prompt row, {step:.1f} ms a pass, {tokens:.1f} tokens a pass; actual /"
        f" predicted: {error}"
    )


def _tokens_per_s(models: ModelPool, settings: Settings) -> float:
    """Return the speed of a longer completion whose prompt is in the cache."""
    request = Request(
        "def fibonacci(n):\n    ", "\n", sampling=Sampling(max_tokens=48, stop="none", temperature=0.8)
    )
    middles = [complete(models, request.with_sampling(seed=seed), settings) for seed in range(4)]
    return sum(middle.usage.tokens for middle in middles) / (
        sum(middle.total_ms for middle in middles) / 1000
    )
