"""Measures the device's peak rates: bytes read and written in copies, and bf16 products."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch

from bench.gpu.clock import median_ms
from bench.gpu.figures import Figure
from bench.gpu.setup import Bench
from bench.gpu.shapes import Ceilings


def measure(bench: Bench) -> Iterator[Figure]:
    device, dtype = bench.device, bench.dtype
    source = torch.randn(bench.sizes.copy_mb * 2**20 // 4, device=device)
    target = torch.empty_like(source)
    copy_ms = median_ms(device, functools.partial(target.copy_, source), bench.sizes.repeats)
    moved = 2 * source.numel() * 4
    read_ms = median_ms(device, source.sum, bench.sizes.repeats)
    size = bench.sizes.product
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    product_ms = median_ms(device, functools.partial(torch.matmul, a, b), bench.sizes.repeats)
    flops = 2 * size**3
    # A pass writes next to nothing: where reading alone is faster than copying, it is the ceiling.
    read_rate = moved / 2 / read_ms
    bench.ceilings = Ceilings(max(moved / copy_ms, read_rate), flops / product_ms)
    if "copy bandwidth" in bench.sheet:  # from the process of an earlier group
        return
    yield Figure("copy bandwidth", moved / copy_ms / 1e6, "GB/s", note="bytes read and written")
    yield Figure("read bandwidth", read_rate / 1e6, "GB/s", note="a sum over fp32")
    yield Figure(f"{str(dtype).removeprefix('torch.')} product", flops / product_ms / 1e9, "TFLOP/s")
