"""Drafters by name, built for a target from a spec such as ``ngram`` or ``diffusion:self,steps=2``.

``DRAFTERS`` is the place for another one; no loop names one. A spec is ``NAME[:WHAT][,option=value]``; the
options of a drafter are the keyword parameters of its maker. Several specs are separated by commas.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from fimserver.cards import Card
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
from fimserver.engine.load import verify_file, weights_hash
from fimserver.engine.options import read_options
from fimserver.engine.runtime import DraftContext
from fimserver.engine.speculation.drafts import Drafter
from fimserver.engine.speculation.lookahead import MOST_MASKED_ROWS, MOST_MASKS, Lookahead, measure_masks
from fimserver.errors import FimError, InputError, LoadError

log = logging.getLogger("fimserver.engine")


# The shape of DRAFTERS.
def make_ngram(context: DraftContext, what: str, *, window: int = MAX_NODES) -> Drafter:  # noqa: ARG001
    """From texts alone; ``window``: tokens of a draft at most."""
    vocabulary = context.runtime.loaded.vocabulary
    shelf = IndexCache(vocabulary)
    recents = MiddleHistory()
    return EachPrompt(
        "ngram", context.runtime.cache, lambda: NGramDrafter(vocabulary, shelf, window, recents)
    )


# The arguments are those of every maker in DRAFTERS.
def make_lookahead(context: DraftContext, what: str, *, masks: int = MOST_MASKS) -> Drafter:  # noqa: ARG001
    """The model's own canvas, run in the pass that verifies a draft; ``masks``: of a draft at most."""
    runtime = context.runtime
    if runtime.cache is None or not isinstance(runtime.canvas_network, CanvasNetwork):
        raise LoadError(f"{runtime.loaded.card.name} has no canvas adapter in its card: it cannot look ahead")
    cache, network = runtime.cache, runtime.canvas_network
    rows = [rows for rows in ROWS if rows <= MOST_MASKED_ROWS]
    dearer = kept_mask_costs(runtime, lambda: measure_masks(cache, network, rows))
    return Lookahead(cache, network, masks, dearer)


def make_model(context: DraftContext, what: str) -> Drafter:
    """``what``: the card of a small model; empty: as the card says."""
    card = context.runtime.loaded.card
    name = what or card.drafters.get("model", "")
    if not name:
        raise LoadError(f"{card.name} has no draft model in its card: name one, `--drafter model:CARD`")
    return ModelDrafter(context.other(name), context.runtime)


def make_heads(context: DraftContext, what: str) -> Drafter:
    """``what``: a file in the model's folder; empty: as the card says."""
    loaded = context.runtime.loaded
    path = loaded.folder / verify_file(loaded, what or _named(loaded.card, "heads"))
    return HeadsDrafter(load_net(Heads, path, weights_hash(loaded.folder)), context.runtime.network)


def make_diffusion(
    context: DraftContext, what: str, *, tokens: int = 16, steps: int = 1, drafts: int = 1, first: str = ""
) -> Drafter:
    """``what``: a window (``window_kinds.py``), such as ``self``; empty: as the card says.

    ``tokens``: of the window at most; ``steps``: denoising steps; ``drafts``: joint drafts that are verified
    together; ``first``: another drafter that gives the first tokens of the window.
    """
    window = make_window(context, what or _named(context.runtime.loaded.card, "diffusion"))
    return DiffusionDrafter(window, tokens, steps, drafts, make(context, first) if first else None)


DRAFTERS: Mapping[str, Callable[..., Drafter]] = {  # from cheap to dear
    "ngram": make_ngram,
    "lookahead": make_lookahead,
    "heads": make_heads,
    "diffusion": make_diffusion,
    "model": make_model,
}


def make_drafters(context: DraftContext) -> list[FailsafeDrafter]:
    """The drafters that the settings ask for, cheap ones first.

    What the card suggests and cannot be had is left out.

    Raises ``InputError`` on an unknown name or option, ``LoadError`` where a drafter that was asked for
    cannot be had.
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
    """One drafter from its spec, guarded against its failures."""
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
    """The specs in a list with commas.

    A part with ``=`` and no name before it is an option of the spec before it.
    """
    specs: list[str] = []
    for part in (part.strip() for part in text.split(",")):
        if specs and "=" in part and ":" not in part.partition("=")[0]:
            specs[-1] += f",{part}"
        else:
            specs.append(part)
    return specs


def _defaults(context: DraftContext, maker: Callable[..., Drafter]) -> dict[str, object]:
    """Values that the settings have for options of the diffusion drafter."""
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
    """Each spec once, cheap drafters first."""
    order = list(DRAFTERS)
    names = {spec: spec.partition(":")[0].partition(",")[0] for spec in specs}
    return sorted(names, key=lambda spec: order.index(names[spec]) if names[spec] in order else -1)


def _named(card: Card, kind: str) -> str:
    if kind not in card.drafters:
        raise LoadError(f"{card.name} has no {kind} drafter in its card (models/README.md, [drafters])")
    return card.drafters[kind]
