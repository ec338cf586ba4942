"""Whether passes may join and chunks may be split, stored between starts: the check takes 26 ms or more."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import platformdirs
import torch

from fimserver.engine.forward.fused import FusedModel
from fimserver.engine.forward.passes import TRIED_ROWS, rows_alike
from fimserver.engine.forward.split_chunks import chunks_split
from fimserver.engine.load import Loaded, weights_hash
from fimserver.engine.weights.arithmetic import machine
from fimserver.kept_json import change_kept, read_kept

ROWS_FILE = platformdirs.user_cache_path("fimserver") / "rows_alike.json"
# Environment variables that make the libraries of matrix products use other kernels.
KERNEL_VARIABLES = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS")


def kept_rows_alike(
    loaded: Loaded,
    network: FusedModel,
    attempt: Callable[..., bool] = rows_alike,
    kept: Path | None = None,
) -> bool:
    """Return the stored result of ``rows_alike`` for these weights, torch and CPU, or run and store it."""
    exact = loaded.weights is not None  # int8
    return _kept(_key(loaded, network), lambda: attempt(network, exact=exact), kept)


def kept_chunks_split(
    loaded: Loaded,
    network: FusedModel,
    chunk: int,
    attempt: Callable[[FusedModel, int], bool] = chunks_split,
    kept: Path | None = None,
) -> bool:
    """Return the stored result of ``chunks_split``, or run and store it.

    It is false for inexact products (not int8) and for static buffers, whose rows are padded.
    """
    if loaded.weights is None or network.static is not None:
        return False
    return _kept(f"{_key(loaded, network)} split {chunk}", lambda: attempt(network, chunk), kept)


def _kept(key: str, attempt: Callable[[], bool], kept: Path | None) -> bool:
    path = kept or ROWS_FILE
    known = read_kept(path).get(key)
    if isinstance(known, bool):
        return known
    found = attempt()
    change_kept(path, key, lambda _: found)
    return found


def _key(loaded: Loaded, network: FusedModel) -> str:
    variables = " ".join(os.environ.get(name, "-") for name in KERNEL_VARIABLES)
    kernels = f"{torch.backends.cpu.get_cpu_capability()} {variables}"
    made = f"{network.dtype} packed {network.pack} int8 {loaded.weights is not None} tried {TRIED_ROWS}"
    return f"{weights_hash(loaded.folder)} {made} {machine(loaded.device)} {kernels}"
