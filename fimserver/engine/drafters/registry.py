"""Registry of drafters, and construction from a spec such as ``ngram`` or ``diffusion:self,steps=2``.

A spec is ``NAME[:WHAT][,option=value]``; the options of a drafter are the keyword parameters of its maker.
Several specs are separated by commas.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from fimserver.cards import Card
from fimserver.engine.capture import capture_masks
from fimserver.engine.drafters.diffusion import DiffusionDrafter
from fimserver.engine.drafters.each_prompt import EachPrompt
from fimserver.engine.drafters.failsafe import FailsafeDrafter
from fimserver.engine.drafters.heads import HeadsDrafter
from fimserver.engine.drafters.model import ModelDrafter
from fimserver.engine.drafters.nets import Heads, load_net
from fimserver.engine.drafters.ngram.drafter import NGramDrafter
from fimserver.engine.drafters.ngram.history import MiddleHistory
from fimserver.engine.drafters.ngram.index_cache import IndexCache
from fimserver.engine.drafters.ngram.scoring import MAX_NODES
from fimserver.engine.drafters.window_kinds import make_window
from fimserver.engine.forward.adapter import CanvasNetwork
from fimserver.engine.forward.pass_cost import ROWS
from fimserver.engine.kept_costs import kept_mask_costs
from fimserver.engine.load import drafter_file, weights_hash
from fimserver.engine.options import read_options
from fimserver.engine.runtime import DraftContext
from fimserver.engine.speculation.drafts import Drafter
from fimserver.engine.speculation.lookahead import MOST_MASKED_ROWS, MOST_MASKS, Lookahead, measure_masks
from fimserver.errors import FimError, InputError, LoadError

log = logging.getLogger("fimserver.engine")


# The shape of DRAFTERS.
def make_ngram(context: DraftContext, what: str, *, window: int = MAX_NODES) -> Drafter:  # noqa: ARG001
    """Make the n-gram drafter; ``window``: most tokens of a draft."""
    vocabulary = context.runtime.loaded.vocabulary
    index_cache = IndexCache(vocabulary)
    recents = MiddleHistory()
    return EachPrompt(
        "ngram", context.runtime.cache, lambda: NGramDrafter(vocabulary, index_cache, window, recents)
    )


# The arguments are those of every maker in DRAFTERS.
def make_lookahead(context: DraftContext, what: str, *, masks: int = MOST_MASKS) -> Drafter:  # noqa: ARG001
    """Make the drafter that runs the model's canvas in verifying passes; ``masks``: most of a draft."""
    runtime = context.runtime
    if runtime.cache is None or not isinstance(runtime.canvas_network, CanvasNetwork):
        raise LoadError(
            f"{runtime.loaded.card.name} has no canvas adapter in its card, so lookahead cannot draft:"
            " use another drafter"
        )
    cache, network = runtime.cache, runtime.canvas_network
    rows = [rows for rows in ROWS if rows <= MOST_MASKED_ROWS]
    mask_costs = kept_mask_costs(runtime, lambda: measure_masks(cache, network, rows))
    capture_masks(cache, network, rows, masks)
    return Lookahead(cache, network, masks, mask_costs)


def make_model(context: DraftContext, what: str) -> Drafter:
    """Make a drafter of a small model; ``what``: its card; empty: the one that the target's card names."""
    card = context.runtime.loaded.card
    name = what or card.drafters.get("model", "")
    if not name:
        raise LoadError(f"{card.name} has no draft model in its card: name one, `--drafter model:CARD`")
    return ModelDrafter(context.other(name), context.runtime)


def make_heads(context: DraftContext, what: str) -> Drafter:
    """``what``: a file among adapters or in the model's folder; empty: as the card says."""
    loaded = context.runtime.loaded
    name = what or _named(loaded.card, "heads")
    net = load_net(Heads, drafter_file(loaded, name), weights_hash(loaded.folder))
    return HeadsDrafter(net, context.runtime.network)


def make_diffusion(
    context: DraftContext, what: str, *, tokens: int = 16, steps: int = 1, drafts: int = 1, first: str = ""
) -> Drafter:
    """Make the diffusion drafter; ``what``: a window (``window_kinds.py``); empty: the one of the card.

    ``tokens``: most slots of the window; ``steps``: denoising steps; ``drafts``: joint drafts verified
    together; ``first``: spec of a drafter for the first tokens of the window.
    """
    window = make_window(context, what or _named(context.runtime.loaded.card, "diffusion"))
    return DiffusionDrafter(window, tokens, steps, drafts, make(context, first) if first else None)


DRAFTERS: Mapping[str, Callable[..., Drafter]] = {  # from cheap to costly
    "ngram": make_ngram,
    "lookahead": make_lookahead,
    "heads": make_heads,
    "diffusion": make_diffusion,
    "model": make_model,
}


def make_drafters(context: DraftContext) -> list[FailsafeDrafter]:
    """Make the drafters of the settings, cheap ones first.

    Drafters of the card that cannot be loaded are left out. Raises ``InputError`` for an unknown name or
    option, ``LoadError`` if a drafter that the settings name cannot be loaded.
    """
    asked = context.settings.drafter
    card = context.runtime.loaded.card
    if not context.runtime.can_draft or asked == "none":
        return []
    if asked not in {"auto", "mix"}:
        return [make(context, spec) for spec in _ordered(split_specs(asked))]
    specs = (
        split_specs(card.drafters.get("default", "ngram")) if asked == "auto" else ["ngram", *card.drafters]
    )
    made: list[FailsafeDrafter] = []
    for spec in _ordered([spec for spec in specs if spec != "default"]):
        try:
            made.append(make(context, spec))
        except FimError as error:
            log.warning("drafter %s is left out: %s", spec, error)
    return made


def make(context: DraftContext, spec: str) -> FailsafeDrafter:
    """Make one drafter from its spec, in a failsafe wrapper. Raises ``InputError`` or ``LoadError``."""
    name, _, rest = spec.partition(":")
    name, _, options = name.partition(",")
    if name not in DRAFTERS:
        raise InputError(
            f"no drafter named {name!r}: use {', '.join(DRAFTERS)} (several with commas), mix, auto or none"
        )
    what, _, more = rest.partition(",") if "=" not in rest.partition(",")[0] else ("", "", rest)
    defaults = _defaults(context, DRAFTERS[name])
    given = read_options(
        f"drafter {name}", ",".join(filter(None, (options, more))), partial(DRAFTERS[name], context, what)
    )
    return FailsafeDrafter(DRAFTERS[name](context, what, **defaults | given), spec)


def split_specs(text: str) -> list[str]:
    """Split specs at commas; a part with ``=`` and no name is an option of the spec before it."""
    specs: list[str] = []
    for part in (part.strip() for part in text.split(",")):
        if specs and "=" in part and ":" not in part.partition("=")[0]:
            specs[-1] += f",{part}"
        else:
            specs.append(part)
    return specs


def _defaults(context: DraftContext, maker: Callable[..., Drafter]) -> dict[str, object]:
    """Return the options of the diffusion drafter that the settings set."""
    settings = context.settings
    known = {
        "tokens": settings.draft_tokens,
        "steps": settings.draft_steps,
        "drafts": settings.drafts,
        "first": settings.draft_first,
    }
    parameters = inspect.signature(maker).parameters
    return {name: value for name, value in known.items() if name in parameters}


def _ordered(specs: Sequence[str]) -> list[str]:
    """Return each spec once, cheap drafters first."""
    order = list(DRAFTERS)
    names = {spec: spec.partition(":")[0].partition(",")[0] for spec in specs}
    return sorted(names, key=lambda spec: order.index(names[spec]) if names[spec] in order else -1)


def _named(card: Card, kind: str) -> str:
    if kind not in card.drafters:
        raise LoadError(f"{card.name} has no {kind} drafter in its card (models/README.md, [drafters])")
    return card.drafters[kind]
