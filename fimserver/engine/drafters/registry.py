"""Knows the drafters by name and puts them together for a target. Knows nothing of how they work.

``DRAFTERS`` is the place for another one; no loop names one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

from fimserver.cards import Card
from fimserver.engine.adapter import CanvasNetwork
from fimserver.engine.drafters.diffusion import DiffusionDrafter, DraftWindow
from fimserver.engine.drafters.failsafe import FailsafeDrafter
from fimserver.engine.drafters.heads import HeadsDrafter
from fimserver.engine.drafters.model import ModelDrafter, check_tokens
from fimserver.engine.drafters.nets import BlockNetwork, Heads, load_net
from fimserver.engine.drafters.ngram.drafter import NGramDrafter
from fimserver.engine.drafters.windows import AdapterWindow, BlockWindow, CanvasWindow, SelfWindow
from fimserver.engine.drafts import Drafter
from fimserver.engine.fused import FusedModel
from fimserver.engine.load import verify_file, weights_hash
from fimserver.engine.runtime import DraftContext
from fimserver.errors import FimError, InputError, LoadError

log = logging.getLogger("fimserver.engine")


def make_ngram(target: DraftContext, what: str) -> Drafter:  # noqa: ARG001 - the shape of DRAFTERS
    """From texts alone."""
    return NGramDrafter(target.runtime.loaded.vocabulary)


def make_model(target: DraftContext, what: str) -> Drafter:
    """``what``: the card of a small model; empty: as the card says."""
    name = what or target.runtime.loaded.card.drafters.get("model", "")
    if not name:
        raise LoadError(f"{target.runtime.loaded.card.name} has no draft model in its card: name one, `--drafter model:CARD`")
    return ModelDrafter(target.other(name), target.runtime)


def make_heads(target: DraftContext, what: str) -> Drafter:
    """``what``: a file in the model's folder; empty: as the card says."""
    loaded = target.runtime.loaded
    path = loaded.folder / verify_file(loaded, what or _named(loaded.card, "heads"))
    return HeadsDrafter(load_net(Heads, path, weights_hash(loaded.folder)), target.runtime.network)


def make_diffusion(target: DraftContext, what: str) -> Drafter:
    """``what``: ``self``, the file of a block drafter, or the card of a diffusion model; empty: as the card says."""
    settings, window = target.settings, _window(target, what or _named(target.runtime.loaded.card, "diffusion"))
    first = make(target, settings.draft_first) if settings.draft_first else None
    return DiffusionDrafter(window, settings.draft_tokens, settings.draft_steps, settings.drafts, first)


DRAFTERS: Mapping[str, Callable[[DraftContext, str], Drafter]] = {  # from cheap to dear
    "ngram": make_ngram,
    "heads": make_heads,
    "diffusion": make_diffusion,
    "model": make_model,
}


def make_drafters(target: DraftContext) -> list[Drafter]:
    """The drafters that the settings ask for, cheap ones first. What the card suggests and cannot be had is left out.

    Raises ``InputError`` on an unknown name, ``LoadError`` where a drafter that was asked for by name cannot be had.
    """
    asked, card = target.settings.drafter, target.runtime.loaded.card
    if target.runtime.rows == 1 or asked == "none":
        return []
    if asked not in {"auto", "mix"}:
        return [make(target, name) for name in _ordered(asked.split(","))]
    names = card.drafters.get("default", "ngram") if asked == "auto" else ",".join(("ngram", *card.drafters))
    made: list[Drafter] = []
    for name in _ordered([n for n in names.split(",") if n != "default"]):
        try:
            made.append(make(target, name))
        except FimError as error:
            log.warning("drafter %s is left out: %s", name, error)
    return made


def make(target: DraftContext, spec: str) -> Drafter:
    """One drafter from ``NAME`` or ``NAME:WHAT``, guarded."""
    name, _, what = spec.partition(":")
    if name not in DRAFTERS:
        raise InputError(f"no drafter named {name!r}: use {', '.join(DRAFTERS)} (several with commas), mix, auto or none")
    return FailsafeDrafter(DRAFTERS[name](target, what), spec)


def _ordered(names: Sequence[str]) -> list[str]:
    order = list(DRAFTERS)
    return sorted(dict.fromkeys(names), key=lambda n: order.index(n.split(":")[0]) if n.split(":")[0] in order else -1)


def _named(card: Card, kind: str) -> str:
    if kind not in card.drafters:
        raise LoadError(f"{card.name} has no {kind} drafter in its card (models/README.md, [drafters])")
    return card.drafters[kind]


def _window(target: DraftContext, what: str) -> DraftWindow:
    runtime = target.runtime
    card, network = runtime.loaded.card, runtime.network
    if what.endswith(".safetensors"):
        if runtime.cache is None or not isinstance(network, FusedModel):
            raise LoadError(f"{card.name}: a block drafter needs our own forward pass: use --network auto")
        path = runtime.loaded.folder / verify_file(runtime.loaded, what)
        return BlockWindow(load_net(BlockNetwork, path, weights_hash(runtime.loaded.folder)), network, runtime.cache.kv)
    if what == "self":
        if runtime.cache is None or card.canvas is None or card.canvas.attention != "cached":
            raise LoadError(f"{card.name} has no canvas on its own cache and cannot draft for itself")
        if isinstance(runtime.canvas_network, CanvasNetwork):
            return AdapterWindow(runtime.cache, runtime.canvas_network)
        mask = runtime.loaded.vocabulary.special(card.canvas.mask)
        return SelfWindow(runtime.cache, mask, card.canvas.block_tokens, runtime.canvas_network)
    other = target.other(what)
    if other.loaded.card.canvas is None or other.loaded.card.canvas.attention != "full":
        raise LoadError(f"{what} is no diffusion model with a canvas between prefix and suffix: it cannot draft")
    check_tokens(other, runtime)
    return CanvasWindow(other.network, other.loaded.card, other.loaded.vocabulary, network.size)
