"""The steps of the benchmark in order of importance, with their time limits; runs them, also if one fails."""

from __future__ import annotations

import functools
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from bench.gpu import ar, ceilings, dllm, exactness, mishaps, quantised
from bench.gpu.figures import Figure, Sheet
from bench.gpu.setup import Bench, Sizes
from bench.gpu.shapes import QWEN_05B, QWEN_7B, QWEN_15B, TOY, TOY_WIDE, Shape
from fimserver.engine.faults import DeviceFault, fault_of, free_memory

REAL = Sizes(
    ar=(QWEN_05B, QWEN_15B, QWEN_7B),
    dllm=QWEN_7B,
    prompts=(256, 1024, 2048),
    context=1024,
    tokens=48,
    capacity=2304,
    chunk=256,
    canvases=(16, 32, 64),
    repeats=20,
    copy_mb=1024,
    product=8192,
)
SMALL = Sizes(
    ar=(TOY, TOY_WIDE),
    dllm=TOY_WIDE,
    prompts=(64, 160),
    context=128,
    tokens=6,
    capacity=576,
    chunk=64,
    canvases=(8, 16),
    repeats=3,
    copy_mb=4,
    product=128,
)
SPARE = 1.3  # memory that a step may need beyond weights, keys and values


@dataclass(frozen=True)
class Step:
    """One measurement, which may take ``seconds``; ``shape``: the model that it needs."""

    name: str
    run: Callable[[Bench], Iterator[Figure]]
    seconds: float
    shape: Shape | None = None


def steps(sizes: Sizes) -> list[Step]:
    """Return all steps, the most important first."""

    def of(name: str, run: Callable[[Bench, Shape], Iterator[Figure]], shape: Shape, seconds: float) -> Step:
        return Step(f"{name} {shape.name}", functools.partial(run, shape=shape), seconds, shape)

    small, large = sizes.ar[0], sizes.ar[-1]
    return [
        Step("ceilings", ceilings.measure, 0),
        of("exactness", exactness.measure, small, 10),
        *(of("ar", ar.measure, shape, 15) for shape in sizes.ar),
        of("exactness", exactness.measure, large, 15),
        of("mishaps", mishaps.measure, large, 10),
        of("dllm", dllm.measure, sizes.dllm, 15),
        of("quantised", quantised.measure, large, 30),
        *(of("variants", ar.measure_variants, shape, 60) for shape in (large, small)),
        *(of("compiled", ar.measure_compiled, shape, 60) for shape in reversed(sizes.ar)),
    ]


def run(out: Path, *, minutes: float, toy: bool, only: str = "") -> int:
    """Run the steps that fit into the time, and print the table; returns 0 if none of them failed."""
    sheet = Sheet(out)
    device = torch.device("cpu" if toy else "cuda")
    sizes = SMALL if toy else REAL
    bench = Bench(device, sizes, sheet, time.monotonic() + 60 * minutes)
    machine = describe(device)
    print(machine, flush=True)
    failed = 0
    for step in steps(sizes):
        if only and only not in step.name and step.name != "ceilings":
            continue
        if reason := unfit(bench, step):
            sheet.add([Figure(step.name, None, "", note=reason)])
            continue
        failed += not _measured(bench, step)
    table = f"{machine}, {'toy sizes' if toy else 'random weights'}\n\n{sheet.table()}"
    (out / "figures.md").write_text(table, "utf-8")
    print("\n" + table)
    return int(failed > 0)


def unfit(bench: Bench, step: Step) -> str:
    """Why a step is left out; empty where it is run."""
    if bench.left_s < step.seconds:
        return f"no time left: it may take {step.seconds:.0f} s"
    if bench.device.type == "cuda" and step.shape is not None:
        needed = SPARE * (step.shape.weight_bytes + bench.sizes.capacity * step.shape.kv_bytes) / 2**30
        total = torch.cuda.mem_get_info()[1] / 2**30
        if needed > total:
            return f"needs {needed:.1f} GiB, this card has {total:.1f}"
    return ""


def _measured(bench: Bench, step: Step) -> bool:
    """Measure a step; one that fails is a line of the table, unless nothing can be measured after it."""
    started = time.monotonic()
    try:
        with torch.no_grad():
            bench.sheet.add(step.run(bench))
    except Exception as error:  # noqa: BLE001 - the steps after it are still run
        if fault_of(error) is DeviceFault.DEVICE and bench.device.type == "cuda":
            print(f"{step.name}: the device is unusable from here on", flush=True)
        text = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:160]}"
        bench.sheet.add([Figure(step.name, None, "", note=f"failed: {text}")])
        free_memory()
        return False
    print(f"-- {step.name}: {time.monotonic() - started:.1f} s", flush=True)
    return True


def describe(device: torch.device) -> str:
    """Card, driver and versions in one line."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU"
    memory = f", {torch.cuda.mem_get_info()[1] / 2**30:.0f} GiB" if device.type == "cuda" else ""
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    return f"{name}{memory}, {versions}, Python {platform.python_version()}"
