"""Memory plan: estimates the memory of a model on a GPU before its weights are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fimserver.cards import Card, get_card
from fimserver.defaults import DEFAULTS
from fimserver.engine.forward.network import kv_numbers
from fimserver.engine.forward.pass_cost import BRANCHES, MOST_ROWS
from fimserver.errors import LoadError

GIB = 2**30
BF16 = 2  # bytes of a number
# Bytes of a weight in a product, scales included; embeddings stay in bf16.
WEIGHT_BYTES: Mapping[str, float] = {"none": BF16, "bf16": BF16, "int8": 1.01, "int4": 0.57}
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")  # fields of mixtures of experts
GRAPHS_GIB = 0.3  # some 70 graphs and workspaces of products: an estimate, see bench/gpu/expected.md
LOGITS = 8  # times the logits of the largest pass: results, copies, and fp32 and fp64 forms in sampling


@dataclass(frozen=True)
class MemoryPlan:
    """Memory of one model on a device, in GiB."""

    weights_gib: float
    kv_gib: float
    passes_gib: float

    @property
    def total_gib(self) -> float:
        return self.weights_gib + self.kv_gib + self.passes_gib


def plan(card: Card, config: Any, arithmetic: str) -> MemoryPlan:
    """Estimate the memory of weights, KV cache, graphs and logits; ``config``: of transformers."""
    embedding = int(config.vocab_size) * int(config.hidden_size)
    kept = embedding * (BF16 if WEIGHT_BYTES[arithmetic] < BF16 else 0)  # beside a quantised head
    weights = card.parameters_m * 1e6 * WEIGHT_BYTES[arithmetic] + kept
    slots = card.canvas.max_tokens + card.canvas.block_tokens if card.canvas else 0
    positions = card.prompt_tokens + max(card.max_new_tokens, slots) + MOST_ROWS
    logits = LOGITS * MOST_ROWS * int(config.vocab_size) * BF16
    return MemoryPlan(
        weights / GIB,
        positions * max(BRANCHES) * BF16 * kv_numbers(config) / GIB,
        GRAPHS_GIB + logits / GIB,
    )


def has_experts(config: Any) -> bool:
    """Whether a network is a mixture of experts: these are not linear layers, and torchao skips them."""
    return any(getattr(config, name, None) for name in EXPERTS)


def require_memory(card: Card, config: Any, arithmetic: str, free_gib: Sequence[float]) -> None:
    """Raise ``LoadError`` with a choice that fits if a model does not.

    ``free_gib``: of each GPU; empty on a CPU. Unquantised weights may be split over several GPUs.
    """
    if not free_gib:
        return
    needed = plan(card, config, arithmetic)
    room = sum(free_gib) if WEIGHT_BYTES[arithmetic] == BF16 else free_gib[0]
    if needed.total_gib <= room:
        return
    here = "this card has" if len(free_gib) == 1 else "these cards have"
    raise LoadError(
        f"{card.name} needs {needed.total_gib:.1f} GiB ({needed.weights_gib:.1f} weights,"
        f" {needed.kv_gib:.1f} KV cache, {needed.passes_gib:.1f} passes), {here} {room:.1f} GiB free:"
        f" {_advice(card, config, arithmetic, free_gib[0])}"
    )


def _advice(card: Card, config: Any, arithmetic: str, room_gib: float) -> str:
    """Name settings or a model that would fit, in one clause."""
    fitting = [
        f"--quantize {name} ({total:.1f} GiB)"
        for name in ("int8", "int4")
        if WEIGHT_BYTES[name] < WEIGHT_BYTES[arithmetic] and not has_experts(config)
        for total in [plan(card, config, name).total_gib]
        if total <= room_gib
    ]
    smaller = _smaller(card, room_gib)
    choices = [*fitting[:1], *([smaller] if smaller else [])]
    return f"use {' or '.join(choices)}" if choices else "free some of its memory, or use --device cpu"


def _smaller(card: Card, room_gib: float) -> str | None:
    """Return the largest default model of the same route that is smaller and fits."""
    for route in card.routes:
        for _, name in DEFAULTS[route]:
            other = get_card(name)
            if other.parameters_m < card.parameters_m and other.weights_gib + 1 <= room_gib:
                return name
    return None
