"""Kinds of window that the diffusion drafter can draft in, by name, and how each is built for a target.

``WINDOWS`` is the place for another kind. In ``diffusion:WHAT``, ``WHAT`` is the name of a kind, or a file of
weights for the kind ``block``, or a model card for the kind ``canvas``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fimserver.engine.drafters.diffusion import DraftWindow
from fimserver.engine.drafters.model import check_tokens
from fimserver.engine.drafters.nets import BlockNetwork, load_net
from fimserver.engine.drafters.windows import AdapterWindow, BlockWindow, CanvasWindow, SelfWindow
from fimserver.engine.forward.adapter import CanvasNetwork
from fimserver.engine.forward.fused import FusedModel
from fimserver.engine.load import verify_file, weights_hash
from fimserver.engine.runtime import DraftContext
from fimserver.errors import LoadError


def make_block(context: DraftContext, what: str) -> DraftWindow:
    """A network that was trained for the target: ``what`` is its file in the model's folder."""
    runtime = context.runtime
    if runtime.cache is None or not isinstance(runtime.network, FusedModel):
        raise LoadError(
            f"{runtime.loaded.card.name}: a block drafter needs our own forward pass: use --network auto"
        )
    path = runtime.loaded.folder / verify_file(runtime.loaded, what)
    net = load_net(BlockNetwork, path, weights_hash(runtime.loaded.folder))
    return BlockWindow(net, runtime.network, runtime.cache)


def make_self(context: DraftContext, what: str) -> DraftWindow:  # noqa: ARG001 - the shape of WINDOWS
    """The target's own canvas on the shared cache."""
    runtime = context.runtime
    card = context.runtime.loaded.card
    if runtime.cache is None or card.canvas is None or card.canvas.attention != "cached":
        raise LoadError(f"{card.name} has no canvas on its own cache and cannot draft for itself")
    if isinstance(runtime.canvas_network, CanvasNetwork):
        return AdapterWindow(runtime.cache, runtime.canvas_network)
    mask = runtime.loaded.vocabulary.special(card.canvas.mask)
    return SelfWindow(runtime.cache, mask, card.canvas.block_tokens, runtime.canvas_network)


def make_canvas(context: DraftContext, what: str) -> DraftWindow:
    """The canvas of another diffusion model with the same tokens: ``what`` is its card."""
    other = context.other(what)
    if other.loaded.card.canvas is None or other.loaded.card.canvas.attention != "full":
        raise LoadError(
            f"{what} is no diffusion model with a canvas between prefix and suffix: it cannot draft"
        )
    check_tokens(other, context.runtime)
    return CanvasWindow(
        other.network, other.loaded.card, other.loaded.vocabulary, context.runtime.network.vocab_size
    )


WINDOWS: Mapping[str, Callable[[DraftContext, str], DraftWindow]] = {
    "self": make_self,
    "block": make_block,
    "canvas": make_canvas,
}


def make_window(context: DraftContext, what: str) -> DraftWindow:
    """The window that ``what`` means. Raises ``LoadError`` where it cannot be had."""
    if what in WINDOWS:
        return WINDOWS[what](context, what)
    return WINDOWS["block" if what.endswith(".safetensors") else "canvas"](context, what)
