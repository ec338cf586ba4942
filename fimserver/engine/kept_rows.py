"""Whether passes may join and chunks be split, kept between starts: trying takes 26 ms or more."""

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
from fimserver.kept_json import read_kept, write_kept

ROWS_FILE = platformdirs.user_cache_path("fimserver") / "rows_alike.json"
# What makes the libraries of matrix products use other kernels.
KERNEL_VARIABLES = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS")


def kept_rows_alike(
    loaded: Loaded,
    network: FusedModel,
    attempt: Callable[..., bool] = rows_alike,
    kept: Path | None = None,
) -> bool:
    """Return the kept result for the same weights, torch and processor, or try the products and keep it."""
    exact = loaded.weights is not None  # int8
    return _kept(_key(loaded, network), lambda: attempt(network, exact=exact), kept)


def kept_chunks_split(
    loaded: Loaded,
    network: FusedModel,
    chunk: int,
    attempt: Callable[[FusedModel, int], bool] = chunks_split,
    kept: Path | None = None,
) -> bool:
    """Return whether prompts may be read in other pieces than chunks: as kept, or as tried now.

    Only where products are exact sums, and rows are not padded to the shapes of graphs.
    """
    if loaded.weights is None or network.static is not None:
        return False
    return _kept(f"{_key(loaded, network)} split {chunk}", lambda: attempt(network, chunk), kept)


def _kept(key: str, attempt: Callable[[], bool], kept: Path | None) -> bool:
    path = kept or ROWS_FILE
    known = read_kept(path)
    if not isinstance(known.get(key), bool):
        known[key] = attempt()
        write_kept(path, known)
    return bool(known[key])


def _key(loaded: Loaded, network: FusedModel) -> str:
    variables = " ".join(os.environ.get(name, "-") for name in KERNEL_VARIABLES)
    kernels = f"{torch.backends.cpu.get_cpu_capability()} {variables}"
    made = f"{network.dtype} packed {network.pack} int8 {loaded.weights is not None} tried {TRIED_ROWS}"
    return f"{weights_hash(loaded.folder)} {made} {machine(loaded.device)} {kernels}"
