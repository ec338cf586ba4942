"""The steps of the benchmark by group, in order of importance; runs them, also if one fails."""

from __future__ import annotations

import functools
import platform
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import transformers

from bench.gpu import ar, ceilings, coder, dllm, exactness, mishaps, quantised, together
from bench.gpu.figures import Figure, Sheet
from bench.gpu.needs import without_device
from bench.gpu.setup import Bench, Sizes
from bench.gpu.shapes import QWEN_05B, QWEN_7B, QWEN_15B, TOY, TOY_WIDE, Shape
from fimserver.engine.faults import DeviceFault, fault_of, free_memory

if TYPE_CHECKING:
    from bench.gpu.processes import Plan

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
UNFIT = 2  # exit status where the machine lacks something


@dataclass(frozen=True)
class Step:
    """One measurement, which may take ``seconds``; ``shape``: the model that it needs."""

    name: str
    run: Callable[[Bench], Iterator[Figure]]
    seconds: float
    shape: Shape | None = None


def groups(sizes: Sizes, plan: Plan) -> dict[str, list[Step]]:
    """Return the steps of each group of ``processes.GROUPS``, the most important first."""

    def of(name: str, run: Callable[[Bench, Shape], Iterator[Figure]], shape: Shape, seconds: float) -> Step:
        return Step(f"{name} {shape.name}", functools.partial(run, shape=shape), seconds, shape)

    small, *middle, large = sizes.ar
    real = functools.partial(coder.measure, packed=plan.packed, adapter=plan.adapter, toy=plan.toy)
    return {
        "small": [
            of("exactness", exactness.measure, small, 5),
            of("ar", ar.measure, small, 5),
            of("variants", ar.measure_variants, small, 2),
            of("together", together.measure, small, 8),
        ],
        "coder": [Step("coder", real, 15)],
        "large": [
            of("ar", ar.measure, large, 10),
            of("dllm", dllm.measure, sizes.dllm, 10),
            of("exactness", exactness.measure, large, 8),
            of("mishaps", mishaps.measure, large, 4),
            of("variants", ar.measure_variants, large, 2),
            of("together", together.measure, large, 20),
        ],
        "middle": [of("ar", ar.measure, shape, 8) for shape in middle],
        "compiled": [
            of("compiled", ar.measure_compiled, small, 20),
            of("compiled pass", ar.measure_compiled_pass, small, 20),
            of("compiled", ar.measure_compiled, large, 30),
            of("compiled pass", ar.measure_compiled_pass, large, 30),
        ],
        "quantised": [of("quantised", quantised.measure, large, 30)],
    }


def prepare(plan: Plan, names: Sequence[str]) -> None:
    """Do what some groups can before they have the device."""
    if "coder" in names:
        coder.prepare(plan.packed, torch.bfloat16 if plan.device == "cuda" else torch.float32)


def measure(plan: Plan, names: Sequence[str], until: float) -> int:
    """Run the steps of some groups that fit into the time; returns 0, 1 if one failed, 2 without a device."""
    if lacks := without_device(plan.device):
        print(f"missing: {lacks}", flush=True)
        return UNFIT
    device = torch.device(plan.device)
    sizes = SMALL if plan.toy else REAL
    bench = Bench(device, sizes, Sheet(plan.out, resume=True), until)
    machine = describe(device)
    if not bench.sheet.figures:
        print(machine, flush=True)
        (plan.out / "machine.txt").write_text(machine, "utf-8")
    failed = 0
    every = [step for name in names for step in groups(sizes, plan)[name]]
    wanted = [step for step in every if plan.only in step.name]
    for step in [Step("ceilings", ceilings.measure, 0), *wanted]:
        if reason := unfit(bench, step):
            bench.sheet.add([Figure(step.name, None, "", note=reason)])
        elif not measured(bench, step):
            failed += 1
            if bench.lost:
                break
    return int(failed > 0)


def unfit(bench: Bench, step: Step) -> str:
    """Why a step is left out; empty where it is run."""
    if bench.left_s < step.seconds:
        return f"no time left: it takes {step.seconds:.0f} s or more"
    if bench.device.type == "cuda" and step.shape is not None:
        needed = SPARE * (step.shape.weight_bytes + bench.sizes.capacity * step.shape.kv_bytes) / 2**30
        total = torch.cuda.mem_get_info()[1] / 2**30
        if needed > total:
            return f"needs {needed:.1f} GiB, this card has {total:.1f}"
    return ""


def measured(bench: Bench, step: Step) -> bool:
    """Measure a step; one that fails is a line of the table, and sets ``bench.lost`` if it was the last."""
    started = time.monotonic()
    try:
        with torch.no_grad():
            bench.sheet.add(step.run(bench))
    except Exception as error:  # noqa: BLE001 - the steps after it are still run
        bench.lost = fault_of(error) is DeviceFault.DEVICE and bench.device.type == "cuda"
        text = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:160]}"
        where = " (nothing of its group can be measured after it)" if bench.lost else ""
        bench.sheet.add([Figure(step.name, None, "", note=f"failed: {text}{where}")])
        traceback.print_exc()
        if not bench.lost:
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
