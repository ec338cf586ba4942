"""Knows how a loaded model becomes something that runs: its forward pass, its cache, its row count. Knows no engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from fimserver.cards import adapter_path
from fimserver.engine import fused
from fimserver.engine.adapter import CanvasNetwork, load_adapter
from fimserver.engine.load import Loaded, weights_hash
from fimserver.engine.network import NativeNetwork, Network
from fimserver.engine.pass_cost import BRANCHES, MOST_ROWS
from fimserver.engine.prefix_cache import PrefixCache
from fimserver.errors import InputError, LoadError
from fimserver.settings import Settings


@dataclass(frozen=True)
class Runtime:
    """A loaded model ready to run: its network and, where its attention allows one, the cache both routes share.

    ``rows`` is the constant row count of a decoding pass.
    """

    loaded: Loaded
    network: Network
    cache: PrefixCache | None
    rows: int

    @cached_property
    def canvas_network(self) -> Network:
        """What runs the rows of a canvas, over the same cache. Raises ``LoadError`` where the card's adapter does not fit."""
        card = self.loaded.card
        if card.canvas is None or card.canvas.adapter is None:
            return self.network
        if not isinstance(self.network, fused.FusedModel):
            raise LoadError(f"{card.name}: a canvas adapter needs our own forward pass: use --network auto")
        path = adapter_path(self.loaded.folder, card.canvas.adapter)
        adapter = load_adapter(path, weights_hash(self.loaded.folder))
        adapter.check_block(card.canvas.block_tokens)
        return CanvasNetwork(self.network, adapter, self.loaded.vocabulary.special(card.canvas.mask))


def _no_other(name: str) -> Runtime:
    raise LoadError(f"{name} is not within reach: only the model itself was loaded")


@dataclass(frozen=True)
class DraftContext:
    """What a drafter can build on: the model that it drafts for, and a way to others."""

    runtime: Runtime
    settings: Settings
    other: Callable[[str], Runtime] = _no_other  # by the name of its card; raises ``FimError``


def make_runtime(loaded: Loaded, settings: Settings) -> Runtime:
    """Choose the forward pass and size the cache for one model."""
    card = loaded.card
    if card.canvas and card.canvas.attention == "full":
        return Runtime(loaded, NativeNetwork(loaded.model, loaded.device), None, 1)
    use_lean = settings.network != "native" and fused.fits(loaded.model)
    if settings.network == "lean" and not use_lean:
        raise InputError(f"--network lean does not fit {card.name} ({card.architecture}): use auto or native")
    on_cpu = loaded.device.type == "cpu"
    rows = settings.decode_rows or (1 if on_cpu and not use_lean else 8)
    chunk = settings.prefill_rows or (64 if on_cpu and use_lean else 128)
    longest = max(card.max_new_tokens, card.canvas.max_tokens + card.canvas.block_tokens if card.canvas else 0)
    drafts = MOST_ROWS if rows > 1 else 1
    capacity = -(-(card.prompt_tokens + longest + drafts) // chunk) * chunk
    positions = int(getattr(loaded.model.config, "max_position_embeddings", capacity))
    if card.prompt_tokens + longest > positions:
        raise LoadError(f"{card.name}: the card wants {card.prompt_tokens + longest} positions, the model has {positions}")
    network: Network = fused.fuse(loaded.model, capacity, rows) if use_lean else NativeNetwork(loaded.model, loaded.device)
    return Runtime(loaded, network, PrefixCache(network, capacity, chunk, max(BRANCHES) if rows > 1 else 1), rows)
