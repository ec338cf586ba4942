"""Registry of the diffusion drafter's windows.

In ``diffusion:WHAT``, ``WHAT`` is the name of a kind, a file of weights for the kind ``block``, or a model
card for the kind ``canvas``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fimserver.engine.drafters.block_window import BlockWindow
from fimserver.engine.drafters.diffusion import DraftWindow
from fimserver.engine.drafters.model import check_tokens
from fimserver.engine.drafters.nets import BlockNetwork, load_net
from fimserver.engine.drafters.windows import AdapterWindow, CanvasWindow, SelfWindow
from fimserver.engine.forward.adapter import CanvasNetwork
from fimserver.engine.forward.fused import FusedModel
from fimserver.engine.load import drafter_file, weights_hash
from fimserver.engine.runtime import DraftContext
from fimserver.errors import LoadError


def make_block(context: DraftContext, what: str) -> DraftWindow:
    """Make the window of a block network trained for the target.

    ``what``: its file, among the adapters or in the model's folder.
    """
    runtime = context.runtime
    if runtime.cache is None or not isinstance(runtime.network, FusedModel):
        raise LoadError(
            f"{runtime.loaded.card.name}: a block drafter does not run with --network native: use --network"
            " auto"
        )
    path = drafter_file(runtime.loaded, what)
    net = load_net(BlockNetwork, path, weights_hash(runtime.loaded.folder))
    return BlockWindow(net, runtime.network, runtime.cache)


def make_self(context: DraftContext, what: str) -> DraftWindow:  # noqa: ARG001 - the shape of WINDOWS
    """Make the window of the target's own canvas on the shared cache."""
    runtime = context.runtime
    card = context.runtime.loaded.card
    if runtime.cache is None or card.canvas is None or card.canvas.attention != "cached":
        raise LoadError(f"{card.name} has no canvas on its own cache, which diffusion:self needs")
    if isinstance(runtime.canvas_network, CanvasNetwork):
        return AdapterWindow(runtime.cache, runtime.canvas_network)
    mask = runtime.loaded.vocabulary.special(card.canvas.mask)
    return SelfWindow(runtime.cache, mask, card.canvas.block_tokens, runtime.canvas_network)


def make_canvas(context: DraftContext, what: str) -> DraftWindow:
    """Make the window of another diffusion model with the same tokens; ``what``: its card."""
    other = context.other(what)
    if other.loaded.card.canvas is None or other.loaded.card.canvas.attention != "full":
        raise LoadError(
            f"{what} is not a diffusion model with full attention and cannot draft: name another card"
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
    """Make the window that ``what`` names. Raises ``LoadError``."""
    if what in WINDOWS:
        return WINDOWS[what](context, what)
    return WINDOWS["block" if what.endswith(".safetensors") else "canvas"](context, what)
