"""Arms of the speculation benchmark: the measurements of one arm on one span, and fimserver's own arms.

An arm is an engine with its own cache and drafters over weights that all arms share; its cache is cleared
before every request. fimserver's times include tokenising and decoding the text; peers get and return ids.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import time
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from bench.spans import Span
from fimserver.cards import Card, get_card
from fimserver.engine.autoregressive import Autoregressive
from fimserver.engine.drafters.failsafe import FailsafeDrafter
from fimserver.engine.engines import ModelPool, make_ar
from fimserver.engine.forward.pass_cost import PassCosts, Shape
from fimserver.engine.forward.prefix_cache import PrefixCache
from fimserver.engine.load import Loaded
from fimserver.engine.runtime import DraftContext, Runtime, make_runtime
from fimserver.lengths import common_prefix
from fimserver.settings import Settings
from fimserver.types import Deadline, Request, Round

_SPEC = re.compile(r"(?P<name>[^/]+)(/(?P<knobs>([A-Z]\d+)+))?")
_KNOBS = {"K": "drafts", "T": "draft_steps", "N": "draft_tokens", "R": "decode_rows"}
FLAT = "F"  # the knob of an arm for which a pass of any shape costs the same and drafting nothing


class Skipped(Exception):  # noqa: N818 - nothing went wrong
    """Raised if an arm cannot run here; the text says why."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """The output of an arm for one span. ``said``: pairs of ms since the start and the ids that came then."""

    said: Sequence[tuple[float, Sequence[int]]]
    total_ms: float  # of the whole call
    passes: int  # forward passes of the target after the one that gave the first token
    rounds: int  # those of them that verified; fewer where the target drafts for itself
    drafted: int


@dataclasses.dataclass(frozen=True)
class Row:
    """One arm on one span, as it is written to JSON. The token that ends a middle is one of ``tokens``."""

    arm: str
    span: str
    kind: str
    prompt_tokens: int
    limit: int  # most tokens
    tokens: int
    first_tokens: int  # that came with the first ones
    ttft_ms: float
    line_ms: float  # until a line was complete, or the middle
    last_ms: float  # until the last token; what follows it until ``total_ms`` is for the next request
    total_ms: float
    passes: int
    rounds: int
    drafted: int
    accepted: int
    ids: str  # a hash of them
    differs_at: int | None = None  # the first token that is not the reference's


class Arm(Protocol):
    """Anything that can be timed on a span. ``ours``: its ids must be the reference's."""

    name: str
    ours: bool

    def answer(self, span: Span, prompt: Sequence[int]) -> Answer:
        """Fill the span with empty caches."""
        ...

    def about(self) -> dict[str, Any]:
        """Return its options, for the report; ``warning`` if it did not run as its name says."""
        ...

    def close(self) -> None: ...


@dataclasses.dataclass(frozen=True)
class Spec:
    """A parsed name of an arm: ``ngram+heads/K2`` is (``ngram+heads``, {``K``: 2})."""

    text: str
    name: str
    knobs: dict[str, int]

    @classmethod
    def of(cls, text: str) -> Spec:
        match = _SPEC.fullmatch(text)
        if match is None:
            raise Skipped(f"{text!r} is no arm: NAME or NAME/K2T1, see python -m bench.speculation --help")
        knobs = re.findall(r"([A-Z])(\d+)", match["knobs"] or "")
        return cls(text, match["name"], {letter: int(number) for letter, number in knobs})


class Fleet:
    """The target, loaded once, and an engine on it for each arm of fimserver."""

    def __init__(self, card: str = "nano") -> None:
        defaults = {
            name: field.default for name, field in Settings.model_fields.items() if name != "models_dir"
        }
        self.settings = Settings(**defaults | {"device": "cpu"})  # whatever the user's config.toml has
        self.models = ModelPool(self.settings)
        self.card: Card = get_card(card)
        self.loaded: Loaded = self.models.runtime(self.card).loaded
        self.reference = make_ar(
            DraftContext(
                _own(self.models.runtime(self.card)), self.settings.model_copy(update={"drafter": "none"})
            )
        )
        self.stops = self.reference.stops

    def prompt(self, request: Request) -> list[int]:
        return self.reference.prompt(request)

    def text(self, ids: Sequence[int]) -> str:
        return self.loaded.vocabulary.decode(ids)

    def draft_card(self) -> Card:
        """The model that drafts for the target as peers know it: autoregressive, with the same tokens."""
        name = self.card.drafters.get("model", "")
        if not name:
            raise Skipped(f"{self.card.name} has no draft model in its card")
        return get_card(name)

    def arm(self, spec: Spec) -> Ours:
        """Make an arm. Raises ``Skipped``, or ``FimError`` or ``ImportError`` if its drafter is missing."""
        unknown = set(spec.knobs) - set(_KNOBS) - {FLAT}
        if unknown:
            raise Skipped(f"no knob {', '.join(sorted(unknown))}: there are {_KNOBS} and {FLAT}1")
        changes: dict[str, Any] = {
            _KNOBS[knob]: value for knob, value in spec.knobs.items() if knob in _KNOBS
        }
        changes["drafter"] = spec.name.replace("+", ",")
        settings = self.settings.model_copy(update=changes)
        base = (
            make_runtime(self.loaded, settings) if "R" in spec.knobs else _own(self.models.runtime(self.card))
        )
        caches = [base.cache]

        def other(name: str) -> Runtime:
            runtime = _own(self.models.runtime(get_card(name)))
            caches.append(runtime.cache)
            return runtime

        engine = make_ar(DraftContext(base, settings, other))
        if FLAT in spec.knobs:
            engine.speculation.policy.costs = _Flat(engine.speculation.policy.costs.ms)
        return Ours(spec.text, engine, [cache for cache in caches if cache], ours="R" not in spec.knobs)


class _Flat(PassCosts):
    """Constant, equal cost of all usable shapes, so that the plan with most tokens per pass is chosen."""

    def __init__(self, shapes: Iterable[Shape]) -> None:
        super().__init__(dict.fromkeys(shapes, 1e6))

    def observe(self, shape: Shape, ms: float) -> None:
        """Do nothing: costs are constant."""


def _own(runtime: Runtime) -> Runtime:
    """The same network with another cache."""
    cache = runtime.cache
    if cache is None:
        return runtime
    return dataclasses.replace(
        runtime, cache=PrefixCache(runtime.network, cache.capacity, cache.chunk, cache.kv.branches)
    )


class Ours:
    """The ar route with some drafters. ``caches``: of the target and of draft models."""

    def __init__(self, name: str, engine: Autoregressive, caches: list[PrefixCache], *, ours: bool) -> None:
        self.name, self.engine, self.caches, self.ours = name, engine, caches, ours

    def answer(self, span: Span, prompt: Sequence[int]) -> Answer:  # noqa: ARG002 - it makes its own
        for cache in self.caches:
            cache.clear()
        chunks = []
        started = time.perf_counter()
        for chunk in self.engine.complete(span.request, Deadline()):
            # The clock is asked each time.
            chunks.append((1000 * (time.perf_counter() - started), chunk))  # noqa: PERF401
        total_ms = 1000 * (time.perf_counter() - started)
        rounds = [chunk.round for _, chunk in chunks if chunk.round]
        said = [(ms, _tokens(chunk.round)) for ms, chunk in chunks if chunk.round]
        passes = chunks[-1][1].forwards - chunks[0][1].forwards
        return Answer(said, total_ms, passes, len(rounds) - 1, sum(made.drafted for made in rounds))

    def about(self) -> dict[str, Any]:
        drafters, policy = self.engine.speculation.drafters, self.engine.speculation.policy
        failed = [
            drafter.name for drafter in drafters if isinstance(drafter, FailsafeDrafter) and drafter.failures
        ]
        costs = {f"{branches}x{rows}": round(ms, 3) for (branches, rows), ms in policy.costs.ms.items()}
        about = {
            "drafters": [drafter.name for drafter in drafters],
            "not_asked": policy.switched_off,
            "pass_ms": costs,
        }
        return about | ({"warning": f"failed while it drafted: {', '.join(failed)}"} if failed else {})

    def close(self) -> None:
        """Do nothing: there is nothing to release."""


def _tokens(made: Round) -> tuple[int, ...]:
    return (*made.draft[: made.accepted], made.token)


def row_of(
    arm: Arm, span: Span, prompt: Sequence[int], answer: Answer, fleet: Fleet
) -> tuple[Row, list[int]]:
    """Return the row of an answer, and its ids, cut after the first stop token and at the limit."""
    ids: list[int] = []
    first = 0
    line_ms: float | None = None
    for ms, new in answer.said:
        ids = _cut([*ids, *new], fleet.stops, span.request.sampling.max_tokens)
        first = first or len(ids)
        if line_ms is None and "\n" in fleet.text(ids).lstrip():
            line_ms = ms
    first_ms, last_ms = answer.said[0][0], answer.said[-1][0]
    row = Row(
        arm=arm.name,
        span=span.name,
        kind=span.kind,
        prompt_tokens=len(prompt),
        limit=span.request.sampling.max_tokens,
        tokens=len(ids),
        first_tokens=first,
        ttft_ms=first_ms,
        line_ms=last_ms if line_ms is None else line_ms,
        last_ms=last_ms,
        total_ms=answer.total_ms,
        passes=answer.passes,
        rounds=answer.rounds,
        drafted=answer.drafted,
        accepted=max(0, len(ids) - 1 - answer.rounds),
        ids=hashlib.sha256(repr(ids).encode()).hexdigest()[:12],
    )
    return row, ids


def _cut(ids: list[int], stops: frozenset[int], limit: int) -> list[int]:
    end = next((place + 1 for place, token in enumerate(ids) if token in stops), len(ids))
    return ids[: min(end, limit)]


def first_difference(ids: Sequence[int], reference: Sequence[int]) -> int | None:
    """Return the index of the first difference of two lists; ``None`` if they are equal."""
    same = common_prefix(ids, reference)
    return None if same == len(ids) == len(reference) else same
