"""Arithmetic of matrix products: fp32, bf16 or int8, chosen by a short measurement whose result is stored."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import platformdirs
import torch
from torch.nn import functional as F

from fimserver.engine.forward.attention import multiplies_bf16
from fimserver.engine.forward.int8 import Int8Linear, is_exact, quantize_weight
from fimserver.kept_json import change_kept, read_kept

Arithmetic = Literal["none", "bf16", "int8", "int4"]
log = logging.getLogger("fimserver.engine")
CHOICE_FILE = platformdirs.user_cache_path("fimserver") / "arithmetic.json"
SMALL_M = 100.0  # million parameters: in smaller models, products are not what takes time
_SIZE = (2048, 1024)
_MATRICES = 8
_PASSES = ((1, 4.0), (64, 1.0))  # rows, weight: a completion decodes more often than it prefills


def choose(wanted: str, parameters_m: float, device: torch.device, kept: Path | None = None) -> Arithmetic:
    """Return the arithmetic of ``--quantize``; for ``auto``, the fastest on this machine.

    ``none`` is the device's default dtype.
    """
    if wanted in {"none", "bf16", "int8", "int4"}:
        return wanted  # type: ignore[return-value]
    if device.type != "cpu" or parameters_m < SMALL_M:
        return "none"
    path = kept or CHOICE_FILE
    key = f"torch {torch.__version__}, {torch.get_num_threads()} threads, {processor()}"
    known = read_kept(path)
    if known.get(key) not in {"none", "bf16", "int8"}:
        known[key] = measure()
        change_kept(path, key, lambda _: known[key])
    return known[key]  # type: ignore[no-any-return]


def measure() -> Arithmetic:
    """Measure the fastest arithmetic of those that this processor computes exactly or natively."""
    costs = {name: _cost(make) for name, make in _candidates().items()}
    log.info("milliseconds of products by arithmetic: %s", {name: round(ms, 2) for name, ms in costs.items()})
    return min(costs, key=lambda name: costs[name])


Product = Callable[[torch.Tensor], torch.Tensor]


def _candidates() -> dict[Arithmetic, Callable[[torch.Tensor], Product]]:
    made: dict[Arithmetic, Callable[[torch.Tensor], Product]] = {"none": lambda w: lambda x: F.linear(x, w)}
    if multiplies_bf16():
        made["bf16"] = _bf16
    if is_exact():
        made["int8"] = lambda w: Int8Linear(*quantize_weight([w]))
    return made


def _bf16(weight: torch.Tensor) -> Product:
    half = weight.bfloat16()
    return lambda x: F.linear(x.bfloat16(), half)


def _cost(make: Callable[[torch.Tensor], Product]) -> float:
    """Measure weighted milliseconds of passes over matrices that together exceed the processor's caches."""
    products = [make(torch.randn(_SIZE)) for _ in range(_MATRICES)]
    total = 0.0
    with torch.inference_mode():
        for rows, weight in _PASSES:
            x = torch.randn(rows, _SIZE[1])
            total += weight * min(_once(products, x) for _ in range(4))
    return total


def _once(products: list[Product], x: torch.Tensor) -> float:
    started = time.perf_counter()
    for product in products:
        product(x)
    return 1000 * (time.perf_counter() - started)


def machine(device: torch.device) -> str:
    """Return the key of stored measurements: torch, its threads, the processor and the device."""
    return f"torch {torch.__version__} {torch.get_num_threads()} threads {processor()} {device}"


def processor() -> str:
    """Return the processor's name, as the system reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return "unknown processor"
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        "unknown processor",
    )
