"""Default models: the installed model that serves a route by default, and the best one for this machine."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from fimserver.cards import Card, get_card, is_present
from fimserver.keystrokes import measured_ms
from fimserver.machine import Machine
from fimserver.settings import Settings
from fimserver.types import Route

# Longest time from a keystroke to a single-line answer, without a deadline: a larger model must be fast to be
# preferred; the smallest coder only has to meet the deadline of editors (fimserver/front/config.py), as nano
# is much weaker.
KEYSTROKE_MS = 1000.0
SLOWEST_MS = 2000.0
UNMEASURED_M = 500.0  # millions of parameters that any CPU can run; larger models must be measured first
CPU_GIB = 4.0  # free memory for the smallest coder; larger ones need proportionally more

# Defaults of each route, with the free GPU memory in GiB that they need; the first one that fits and is
# installed is used. Only models with OSI-approved licences and pinned revisions (tests/test_defaults.py).
DEFAULTS: Mapping[Route, tuple[tuple[float, str], ...]] = {
    "ar": (
        (72, "qwen2.5-coder-32b"),
        (34, "qwen2.5-coder-14b"),
        (18, "qwen2.5-coder-7b"),
        (5, "qwen2.5-coder-1.5b"),
        (5, "qwen2.5-coder-1.5b-instruct"),
        (2, "qwen2.5-coder-0.5b"),
        (2, "qwen2.5-coder-0.5b-instruct"),
        (0, "nano"),
    ),
    "dllm": ((20, "dreamon-7b"), (0, "nano")),
}
# The same without a GPU, largest first.
CPU_DEFAULTS: Mapping[Route, tuple[str, ...]] = {
    "ar": ("qwen2.5-coder-1.5b-instruct", "qwen2.5-coder-0.5b-instruct", "nano"),
    # Its canvas writes what its ar route writes, on the same weights: one copy in memory serves both.
    "dllm": ("qwen2.5-coder-0.5b-instruct", "nano"),
}


@dataclass(frozen=True)
class Choice:
    """A chosen model and the reason."""

    card: Card
    why: str


def default_card(route: Route, machine: Machine, settings: Settings, shared: Collection[str] = ()) -> Card:
    """Return the largest installed default that fits this machine; nano is always installed.

    ``shared``: names of models that another route has in memory.
    """
    return choose(route, machine, settings, shared=shared).card


def choose(
    route: Route, machine: Machine, settings: Settings, *, wanted: bool = False, shared: Collection[str] = ()
) -> Choice:
    """Return the default and why. ``wanted``: as if all models were installed."""
    reasons: list[str] = []
    for name in _candidates(route, machine):
        card = get_card(name)
        if not wanted and not is_present(card, settings.models_dir):
            continue
        if complaint := _complaint(card, machine, settings, shared=name in shared):
            reasons.append(f"{name} {complaint}")
        else:
            return Choice(card, "; ".join([_praise(card, machine), *reasons]))
    return Choice(get_card("nano"), "; ".join(["shipped with fimserver", *reasons]))


def _candidates(route: Route, machine: Machine) -> tuple[str, ...]:
    if machine.gpu_gib <= 0:
        return CPU_DEFAULTS[route]
    return tuple(name for needed_gib, name in DEFAULTS[route] if machine.gpu_gib >= needed_gib)


def _complaint(card: Card, machine: Machine, settings: Settings, *, shared: bool) -> str:
    """Return why a model is not used on a CPU, or an empty string. ``shared``: it needs no more memory."""
    if machine.gpu_gib > 0 or card.name == "nano":
        return ""
    needed_gib = cpu_gib(card)
    if machine.ram_gib < needed_gib and not shared:
        return f"needs {needed_gib:.0f} GiB of free memory, here are {machine.ram_gib:.1f}"
    is_small = card.parameters_m <= UNMEASURED_M
    known_ms = measured_ms("cpu").get(card.name)
    limit_ms = settings.deadline_ms or (SLOWEST_MS if is_small else KEYSTROKE_MS)
    if known_ms is None:
        return "" if is_small else "is used once its speed here is measured: fimserver doctor --calibrate"
    return (
        ""
        if known_ms <= limit_ms
        else f"takes {known_ms:.0f} ms a keystroke here, {limit_ms:.0f} are allowed"
    )


def _praise(card: Card, machine: Machine) -> str:
    if machine.gpu_gib > 0:
        return f"the largest that fits into {machine.gpu_gib:.0f} GiB of free GPU memory"
    known_ms = measured_ms("cpu").get(card.name)
    if card.name == "nano":
        return "shipped with fimserver"
    speed = f"{known_ms:.0f} ms a keystroke, measured here" if known_ms else "not measured here yet"
    return f"the largest for a CPU with {machine.ram_gib:.0f} GiB of free memory ({speed})"


def cpu_gib(card: Card) -> float:
    """Free memory in GiB that a model needs on a CPU, including loading."""
    return max(CPU_GIB, CPU_GIB * card.parameters_m / UNMEASURED_M / 1.5)
