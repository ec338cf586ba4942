"""A loaded model ready to run: chooses its forward pass, cache size and number of rows per pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch

from fimserver.canvas_card import Canvas
from fimserver.cards import adapter_path
from fimserver.engine.denoising.dual_cache import DualCache
from fimserver.engine.denoising.dual_caches import DualCaches
from fimserver.engine.denoising.length_probe import LengthProbe, load_probe
from fimserver.engine.device import free_gib
from fimserver.engine.forward import fused
from fimserver.engine.forward.adapter import CanvasNetwork, load_adapter
from fimserver.engine.forward.cuda_graphs import CudaGraphs
from fimserver.engine.forward.joined_shapes import product_rows
from fimserver.engine.forward.kv import make_buffers
from fimserver.engine.forward.network import NativeNetwork, Network
from fimserver.engine.forward.pass_cost import BRANCHES, MOST_ROWS
from fimserver.engine.forward.prefix_cache import PrefixCache
from fimserver.engine.kept_rows import kept_chunks_split, kept_rows_alike
from fimserver.engine.load import Loaded, weights_hash
from fimserver.engine.prompts.prompt_budget import CPU_TOKENS, PromptBudget
from fimserver.errors import InputError, LoadError
from fimserver.machine import free_ram_gib
from fimserver.settings import Settings

KV_SHARE = 0.25  # of free memory, for KV buffers
MOST_PROMPTS = 8
CANVAS_ROWS = 64  # for which products are packed, where passes have the rows of a canvas or a whole text
ALIKE_ROWS = 4  # query heads per key head from which one row attends with the bits of many


@dataclass(frozen=True)
class Runtime:
    """A loaded model ready to run.

    ``cache``: shared by both routes; ``None`` with full attention. ``rows``: number of rows in a pass of
    plain decoding. ``budget``: limits its prompts.
    """

    loaded: Loaded
    network: Network
    cache: PrefixCache | None
    rows: int
    budget: PromptBudget
    texts: int = 1  # number of texts whose keys and values fit in memory, if there is no ``cache``

    @property
    def width(self) -> int:
        """Number of requests whose keys and values fit in memory."""
        return self.cache.prompts.most if self.cache else self.texts

    @property
    def is_shared(self) -> bool:
        """Whether its requests run side by side: passes join, or are of canvases with full attention."""
        static = getattr(self.network, "static", None)
        joins = static.joins_any if static else getattr(self.network, "joins", False)
        return self.width > 1 and (joins or self.cache is None)

    @property
    def can_draft(self) -> bool:
        """Whether a pass may have several rows with the bits of plain decoding."""
        return self.rows > 1 or self.loaded.weights is not None

    @cached_property
    def canvas_network(self) -> Network:
        """The network for the rows of a canvas, over the same cache: with the card's adapter, if it has one.

        Raises ``LoadError`` if the adapter does not fit.
        """
        card = self.loaded.card
        if card.canvas is None or card.canvas.adapter is None:
            return self.network
        if not isinstance(self.network, fused.FusedModel):
            raise LoadError(
                f"{card.name}: a canvas adapter does not run with --network native: use --network auto"
            )
        path = adapter_path(self.loaded.folder, card.canvas.adapter)
        adapter = load_adapter(path, weights_hash(self.loaded.folder))
        adapter.check_block(card.canvas.block_tokens)
        network = CanvasNetwork(self.network, adapter, self.loaded.vocabulary.special(card.canvas.mask))
        if self.network.static is not None:
            network.use_graphs(self.network.static.graphs)
        return network

    @cached_property
    def length_probe(self) -> LengthProbe | None:
        """The card's predictor of the length of a middle; ``None`` if it names none.

        Raises ``LoadError`` if the file does not fit the model.
        """
        canvas = self.loaded.card.canvas
        if canvas is None or canvas.length_probe is None:
            return None
        path = adapter_path(self.loaded.folder, canvas.length_probe)
        token = torch.zeros(1, dtype=torch.long, device=self.network.device)
        return load_probe(path, weights_hash(self.loaded.folder), self.network.embed(token).shape[-1])

    @cached_property
    def dual_caches(self) -> DualCaches:
        """The caches of canvases with full attention.

        Raises ``LoadError`` for other than plain rotary positions, as keys could not be moved.
        """
        card = self.loaded.card
        rotary = self.loaded.model.model.rotary_emb
        if card.canvas is None or rotary.rope_type != "default":
            raise LoadError(f"{card.name}: its positions allow no canvas cache: use --canvas-cache none")
        room = self.budget.limit + card.canvas.max_tokens + card.canvas.block_tokens
        pooled = getattr(self.network, "static", None) is not None
        make_kv = make_buffers(room, 1, self.texts, pooled=pooled)
        return DualCaches(lambda: DualCache(self.network, room, rotary.inv_freq, make_kv()), self.texts)

    def clear(self) -> None:
        """Forget all prompts."""
        if self.cache is not None:
            self.cache.clear()
        if "dual_caches" in self.__dict__:
            self.dual_caches.clear()


def _no_other(name: str) -> Runtime:
    raise LoadError(f"{name}: a drafter cannot use another model here")


@dataclass(frozen=True)
class DraftContext:
    """What drafters are built from: the target model, the settings, and access to other models."""

    runtime: Runtime
    settings: Settings
    other: Callable[[str], Runtime] = _no_other  # name of a card -> its runtime; raises ``FimError``


def make_runtime(loaded: Loaded, settings: Settings) -> Runtime:
    """Choose the forward pass of a model and size its cache. Raises ``InputError`` or ``LoadError``."""
    card = loaded.card
    if card.canvas and card.canvas.attention == "full":
        return _both_ways(loaded, card.canvas, settings)
    use_lean = loaded.weights is not None or (settings.network != "native" and fused.fits(loaded.model))
    if settings.network == "lean" and not use_lean:
        raise InputError(f"--network lean does not fit {card.name} ({card.architecture}): use auto or native")
    on_cpu = loaded.device.type == "cpu"
    one_row = attends_alike(loaded.weights) if loaded.weights is not None else on_cpu and not use_lean
    rows = settings.decode_rows or (1 if one_row else 8)
    block = card.canvas.block_tokens if card.canvas and card.canvas.attention == "block" else 1
    chunk = settings.prefill_rows or _chunk(loaded.device, fused_pass=use_lean)
    chunk = -(-chunk // block) * block
    longest = max(
        card.max_new_tokens, card.canvas.max_tokens + card.canvas.block_tokens if card.canvas else 0
    )
    drafts = MOST_ROWS if rows > 1 or loaded.weights is not None else 1
    prompt = prompt_limit(loaded, settings)
    capacity = -(-(prompt + longest + drafts) // chunk) * chunk
    if prompt + longest > loaded.positions:
        wanted = "--prompt-tokens" if settings.prompt_tokens else "the card"
        raise LoadError(
            f"{card.name}: the prompt ({wanted}) and the answer need {prompt + longest} positions, the model"
            f" has {loaded.positions}: use fewer --prompt-tokens"
        )
    network = _network(loaded, capacity, rows, settings, fused_pass=use_lean)
    splits = False
    if isinstance(network, fused.FusedModel):
        splits = block == 1 and kept_chunks_split(loaded, network, chunk)
        network.joins = _joins(loaded, network, settings)
    branches = max(BRANCHES) if drafts > 1 else 1
    prompts = most_prompts(network, capacity * branches, settings.batch)
    cache = PrefixCache(network, capacity, chunk, branches, block, prompts, splits=splits)
    return Runtime(loaded, network, cache, rows, PromptBudget(prompt))


def _both_ways(loaded: Loaded, canvas: Canvas, settings: Settings) -> Runtime:
    """Return a model with full attention: fused (with CUDA graphs on a GPU) if it can be, else native."""
    limit = settings.prompt_tokens or loaded.card.prompt_tokens
    capacity = limit + canvas.max_tokens + canvas.block_tokens
    own = settings.network != "native" and fused.fits(loaded.model)
    network = _network(loaded, capacity, CANVAS_ROWS, settings, fused_pass=own)
    if isinstance(network, fused.FusedModel):
        network.joins = _joins(loaded, network, settings)
    texts = most_prompts(network, capacity, settings.batch)
    return Runtime(loaded, network, None, 1, PromptBudget(limit), texts)


def _joins(loaded: Loaded, network: fused.FusedModel, settings: Settings) -> bool:
    """Whether passes of several requests may run as one."""
    return settings.batch != 1 and network.static is None and kept_rows_alike(loaded, network)


def most_prompts(network: Network, rows: int, wanted: int) -> int:
    """Return the number of KV buffers of ``rows`` rows: ``wanted``, or if that is 0, what memory allows.

    Raises ``LoadError`` if ``wanted`` buffers do not fit where they are allocated at once (``KVPool``).
    """
    if not isinstance(network, fused.FusedModel | NativeNetwork):
        return 1
    free = free_ram_gib() if network.device.type == "cpu" else free_gib(network.device)
    needed = wanted * rows * network.kv_bytes / 2**30
    if getattr(network, "static", None) is not None and 0 < free < needed:
        raise LoadError(
            f"--batch {wanted} needs {needed:.1f} GiB for keys and values, {free:.1f} GiB are free: use a"
            " smaller --batch, or 0 for as many as fit"
        )
    room = free * 2**30 * KV_SHARE
    return wanted or max(1, min(MOST_PROMPTS, int(room / (rows * network.kv_bytes))))


def prompt_limit(loaded: Loaded, settings: Settings) -> int:
    """Return the longest prompt in tokens: that of the settings, else of the card, with a cap on a CPU."""
    most = loaded.card.prompt_tokens
    return settings.prompt_tokens or (min(most, CPU_TOKENS) if loaded.device.type == "cpu" else most)


def _chunk(device: torch.device, *, fused_pass: bool) -> int:
    """Return the number of rows in a prefill pass.

    A GPU computes some 150 to 260 rows in the time in which it reads the weights (bench/gpu/expected.md).
    """
    if device.type == "cuda":
        return 256
    return 64 if fused_pass else 128


def attends_alike(weights: fused.FusedWeights) -> bool:
    """Whether one row attends with the bits of many, assumed from the number of query heads per key head.

    These are folded into rows, and few rows run other kernels. ``pass_cost.py`` then compares the bits.
    """
    sizes = weights.stack.sizes
    return sizes.heads // sizes.kv_heads >= ALIKE_ROWS


def _network(loaded: Loaded, capacity: int, rows: int, settings: Settings, *, fused_pass: bool) -> Network:
    if loaded.weights is not None:
        return fused.FusedModel(loaded.weights, capacity)
    if not fused_pass:
        return NativeNetwork(loaded.model, loaded.device)
    network = fused.fuse(loaded.model, capacity, rows)
    if loaded.device.type == "cuda":
        network.use_graphs(CudaGraphs()).product_rows = product_rows(network) if settings.batch != 1 else 0
    return network
