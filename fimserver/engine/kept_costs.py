"""Stores pass costs and prefill speed between starts, as measuring a large model takes seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import platformdirs

from fimserver.engine.forward.pass_cost import PassCosts
from fimserver.engine.forward.prefix_cache import PrefixCache
from fimserver.engine.load import weights_hash
from fimserver.engine.prompts.prompt_budget import PrefillSpeed, as_kept, from_kept, measure_speed
from fimserver.engine.runtime import Runtime
from fimserver.engine.weights.arithmetic import machine
from fimserver.kept_json import change_kept, read_kept

T = TypeVar("T")
MEASUREMENT = 2  # version of the measurement; costs of another version are measured again
COSTS_FILE = platformdirs.user_cache_path("fimserver") / "pass_costs.json"
SPEEDS_FILE = platformdirs.user_cache_path("fimserver") / "prefill_speeds.json"
MEASURED_STARTS = 3  # starts that measure the speed of prefill, which takes 0.2 s each for a small coder
LARGE_M = 100.0  # million parameters; smaller models are measured in milliseconds, at every start


def kept_costs(
    runtime: Runtime,
    measure: Callable[[], PassCosts],
    kept: Path | None = None,
    outdated: Callable[[PassCosts], bool] = lambda _: False,
) -> PassCosts:
    """Return the stored costs of the same model, machine and buffer, or measure and store them.

    The shapes that have the bits of plain decoding are stored with them. If stored costs are ``outdated``,
    they are measured again, and the lower cost of each shape is stored.
    """
    if runtime.loaded.card.parameters_m < LARGE_M or runtime.cache is None:
        return measure()

    def measured() -> dict[str, float]:
        return {f"{branches}x{tokens}": ms for (branches, tokens), ms in measure().ms.items()}

    def made(known: dict[str, float]) -> PassCosts:
        return PassCosts({_shape(name): ms for name, ms in known.items()})

    key = f"{_key(runtime)} measurement {MEASUREMENT}"
    costs = _kept(key, measured, made, kept)
    if not outdated(costs):
        return costs
    before = costs.ms
    numbers = {name: min(ms, before.get(_shape(name), ms)) for name, ms in measured().items()}
    _keep(kept or COSTS_FILE, key, numbers)
    return made(numbers)


def kept_mask_costs(
    runtime: Runtime, measure: Callable[[], dict[int, float]], kept: Path | None = None
) -> dict[int, float]:
    """Return the stored costs of masks (``measure_masks``) by rows of a pass, or measure and store them."""
    if runtime.loaded.card.parameters_m < LARGE_M:
        return measure()

    def measured() -> dict[str, float]:
        return {str(rows): share for rows, share in measure().items()}

    key = f"{_key(runtime)} masks {MEASUREMENT}"
    return _kept(key, measured, lambda known: {int(rows): share for rows, share in known.items()}, kept)


def _kept(
    key: str,
    measured: Callable[[], dict[str, float]],
    made: Callable[[dict[str, float]], T],
    kept: Path | None,
) -> T:
    """Return ``made`` of the stored numbers by name, or of those that are measured and stored now."""
    path = kept or COSTS_FILE
    try:
        return made({name: float(number) for name, number in read_kept(path)[key].items()})
    except (KeyError, ValueError, AttributeError, TypeError):
        numbers = measured()
    _keep(path, key, numbers)
    return made(numbers)


def _keep(path: Path, key: str, numbers: dict[str, float]) -> None:
    change_kept(path, key, lambda _: {name: round(number, 3) for name, number in numbers.items()})


def kept_speed(
    runtime: Runtime, measure: Callable[[PrefixCache], PrefillSpeed] = measure_speed, kept: Path | None = None
) -> PrefillSpeed:
    """Return the fastest prefill speed that the first starts measured for the same model and machine.

    It is measured at several starts, as the machine may be busy at the first.
    """
    assert runtime.cache is not None
    if runtime.loaded.card.parameters_m < LARGE_M:
        return measure(runtime.cache)
    path = kept or SPEEDS_FILE
    key = f"{_key(runtime)} passes of {runtime.cache.longest_pass}"
    known = read_kept(path).get(key)
    before = from_kept(known)
    if before and _starts(known) >= MEASURED_STARTS:
        return before
    speed = measure(runtime.cache)
    change_kept(path, key, lambda now: _with_start(now, speed))
    return speed.faster(before) if before else speed


def _with_start(kept: object, speed: PrefillSpeed) -> dict[str, float]:
    """Return a stored speed after one more start, which measured ``speed``."""
    before = from_kept(kept)
    starts = _starts(kept) if before else 0
    return as_kept(speed.faster(before) if before else speed) | {"starts": starts + 1}


def _starts(kept: object) -> int:
    """Return the number of starts that measured a stored speed."""
    starts = kept.get("starts") if isinstance(kept, dict) else None
    return starts if isinstance(starts, int) else 1


def _key(runtime: Runtime) -> str:
    cache = runtime.cache
    assert cache is not None
    buffer = f"{runtime.rows} {cache.capacity} {cache.chunk} {cache.kv.branches}"
    if static := getattr(runtime.network, "static", None):
        buffer += f" prompts {cache.prompts.most} products {static.product_rows}"
    arithmetic = (
        f"{runtime.loaded.dtype} {runtime.loaded.weights is not None} {type(runtime.network).__name__}"
    )
    return f"{weights_hash(runtime.loaded.folder)} {buffer} {arithmetic} {machine(runtime.loaded.device)}"


def _shape(name: str) -> tuple[int, int]:
    branches, _, tokens = name.partition("x")
    return int(branches), int(tokens)
