"""Shared by all steps: the device, the sizes, the ceilings, random models and their caches."""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from bench.gpu.figures import Figure, Sheet
from bench.gpu.shapes import Ceilings, Shape
from fimserver.engine.capture import capture_decoding, decode_starts
from fimserver.engine.forward.cuda_graphs import CudaGraphs
from fimserver.engine.forward.fused import FusedModel, fuse
from fimserver.engine.forward.graphs import EagerGraphs, Graphs
from fimserver.engine.forward.pass_cost import PassCosts, measure_costs
from fimserver.engine.forward.prefix_cache import PrefixCache
from fimserver.engine.speculation.speculate import Speculation
from fimserver.engine.speculation.verify import GumbelMaxVerifier

ROWS = 8  # of a decoding pass, as on a GPU


@dataclass(frozen=True)
class Sizes:
    """Sizes of what is measured."""

    ar: tuple[Shape, ...]
    dllm: Shape
    prompts: tuple[int, ...]
    context: int  # tokens before the token whose time is taken
    tokens: int  # decoded in a row
    capacity: int
    chunk: int
    canvases: tuple[int, ...]
    repeats: int
    copy_mb: int
    product: int  # rows and columns of the matrices


class Decoder(NamedTuple):
    """A cache on captured passes, and the costs of the usable shapes."""

    cache: PrefixCache
    costs: PassCosts
    seconds: float  # to try and to capture them


@dataclass
class Bench:
    """One run. ``lost``: the device is unusable in this process."""

    device: torch.device
    sizes: Sizes
    sheet: Sheet
    until: float  # time.monotonic() at which no further step starts
    ceilings: Ceilings = field(default_factory=lambda: Ceilings(1.0, 1.0))
    models: dict[str, Any] = field(default_factory=dict)
    fused: dict[str, FusedModel] = field(default_factory=dict)
    decoders: dict[str, Decoder] = field(default_factory=dict)
    lost: bool = False

    @property
    def left_s(self) -> float:
        return self.until - time.monotonic()

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    def graphs(self) -> Graphs:
        return CudaGraphs() if self.device.type == "cuda" else EagerGraphs()

    def ids(self, count: int, shape: Shape, seed: int = 1) -> list[int]:
        """Random token ids."""
        return torch.randint(shape.vocab, (count,), generator=torch.Generator().manual_seed(seed)).tolist()

    def forget(self) -> None:
        """Free the current model."""
        self.models.clear()
        self.fused.clear()
        self.decoders.clear()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def model(self, shape: Shape) -> Any:
        """Return a random model, made on the device after freeing the last one."""
        if shape.name not in self.models:
            self.forget()
            self.models[shape.name] = make_model(shape, self.device, self.dtype, self.sizes.capacity)
        return self.models[shape.name]

    def network(self, shape: Shape) -> FusedModel:
        """Return the fused network of a shape, on the weights of ``model``."""
        model = self.model(shape)
        if shape.name not in self.fused:
            self.fused[shape.name] = fuse(model, self.sizes.capacity, ROWS)
        fused = self.fused[shape.name]
        return FusedModel(fused.weights, fused.capacity, fused.whole, pack=fused.pack)

    def cache(self, shape: Shape, *, graphs: bool = True, branches: int = 3) -> PrefixCache:
        """Return a new cache on the fused network."""
        network = self.network(shape)
        if graphs:
            network.use_graphs(self.graphs())
        return PrefixCache(network, self.sizes.capacity, self.sizes.chunk, branches)

    def decoder(self, shape: Shape) -> Decoder:
        """Return the decoding passes of a shape, tried and captured once for all steps."""
        self.model(shape)
        if shape.name not in self.decoders:
            started = time.perf_counter()
            cache = self.cache(shape)
            costs = costs_of(cache)
            self.decoders[shape.name] = Decoder(cache, costs, time.perf_counter() - started)
        return self.decoders[shape.name]


def make_model(shape: Shape, device: torch.device, dtype: torch.dtype, positions: int) -> Any:
    """transformers' Qwen2 with random weights, wide enough that its logits are far from uniform."""
    from transformers import Qwen2Config

    config = Qwen2Config(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=max(positions, 4096),
        tie_word_embeddings=shape.tied,
        initializer_range=0.05,
        use_cache=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    return on_device(config, device, dtype)


def on_device(config: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """transformers' class of a Qwen2 configuration, its random weights made on the device."""
    from transformers import Qwen2ForCausalLM

    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = Qwen2ForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    return model.eval().requires_grad_(False)


def uncaptured(cache: PrefixCache, name: str) -> Figure:
    """How many shapes of passes run without a graph, and why the first of them does."""
    static = getattr(cache.network, "static", None)
    failures = list(getattr(static.graphs, "failures", {}).values()) if static else []
    return Figure(f"{name} shapes without a graph", len(failures), "shapes", note="".join(failures[:1]))


def speculation(cache: PrefixCache, costs: PassCosts, drafters: tuple[Any, ...] = ()) -> Speculation:
    return Speculation(cache, drafters, GumbelMaxVerifier(at_once=True), costs)


def costs_of(cache: PrefixCache) -> PassCosts:
    """Usable shapes and their cost, as at a start of the program; captures them."""
    costs = measure_costs(cache, ROWS, starts=decode_starts(cache))
    capture_decoding(cache, costs.ms)
    return costs
