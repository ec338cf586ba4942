"""Examination of the canvas cache on given files: its error against exact passes, and the rows it saves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from math import inf
from pathlib import Path
from random import Random
from statistics import fmean, median
from typing import NamedTuple

from fimserver.ab.items.cuts import holes
from fimserver.ab.items.spans import cut_spans
from fimserver.commands.doctor import Finding
from fimserver.engine.cache_check import CacheCheck, check_cache, check_prompt_cache
from fimserver.engine.denoising.refresh import Refresh, checked
from fimserver.engine.diffusion import Diffusion
from fimserver.engine.engines import ModelPool
from fimserver.errors import InputError
from fimserver.front.syntax import parser
from fimserver.host.calibrate import samples
from fimserver.settings import Settings
from fimserver.types import Request, Sampling

PLACES = 4  # of one file
FOLDER_PLACES = 12  # of one folder
SEED = 1


class Place(NamedTuple):
    """Text before and after a hole in a file."""

    prefix: str
    suffix: str


def examine_canvas(settings: Settings, paths: Sequence[Path]) -> Iterator[Finding]:
    """Fill holes of files and folders with the canvas cache and without; by default, of fimserver's samples.

    Raises ``InputError`` where a path cannot be used, and what loading a model raises.
    """
    found = [place for path in paths for place in read_places(path)] or _own_places()
    models = ModelPool(settings)
    engine = _diffusion(models)
    limit = engine.canvas_card.max_tokens
    sampling = Sampling(limit, 0.0, seed=SEED, stop="none")
    requests = [Request(place.prefix, place.suffix, sampling=sampling) for place in found]
    if engine.cache is not None:
        yield from _exact(engine, requests)
    elif engine.rules is not None:
        yield from _approximate(engine, requests)
    else:
        checking = settings.model_copy(update={"canvas_cache": "checked"})
        yield from _approximate(_diffusion(ModelPool(checking, (models,))), requests, ", which is not in use")


def _diffusion(models: ModelPool) -> Diffusion:
    engine = models.engine("dllm")
    if not isinstance(engine, Diffusion):
        raise InputError(f"{engine.card.name} is served elsewhere: examine its canvas on that machine")
    return engine


def read_places(path: Path) -> list[Place]:
    """Some holes of a file or of a folder, the same at every call. Raises ``InputError``."""
    if path.is_dir():
        spans = cut_spans(path, FOLDER_PLACES, SEED).spans
        return [Place(span.prefix, span.suffix) for span in spans]
    language = parser.language_of("", path.name)
    if language is None:
        raise InputError(f"{path}: no language that fimserver parses")
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    cuts = [hole for kind in holes(language, text, Random(SEED)).values() for hole in kind[:1]]
    if not cuts:
        raise InputError(f"{path} has no line to cut out")
    return [Place(text[:start], text[end:]) for start, end in cuts[:PLACES]]


def _own_places() -> list[Place]:
    return [Place(request.prefix, request.suffix) for request in samples()]


def _exact(engine: Diffusion, requests: Sequence[Request]) -> Iterator[Finding]:
    """Check a cache whose context does not see the canvas: all tokens have to be equal."""
    yield Finding("canvas", f"{engine.card.name}: its context does not see the canvas, so its cache is exact")
    checks = [check_prompt_cache(engine, request) for request in requests]
    equal = _equal(checks)
    yield replace(equal, ok=all(check.equal == check.tokens for check in checks))
    warm = sum(check.cached.rows for check in checks)
    cold = sum(check.exact.rows for check in checks)
    yield Finding("rows", f"{warm} of prompts are computed where they are in the cache, {cold} where not")


def _approximate(engine: Diffusion, requests: Sequence[Request], unused: str = "") -> Iterator[Finding]:
    rules = engine.rules
    assert rules is not None
    spec = spec_of(rules)
    yield Finding("canvas", f"{engine.card.name}: {spec}{unused}, against no cache, {len(requests)} places")
    checks = [check_cache(engine, request) for request in requests]
    yield _equal(checks)
    drifts = [check.drift for check in checks]
    yield Finding(
        "drift",
        f"tokens are likelier by {fmean(drifts):.3f} nats than in an exact pass,"
        f" at most by {max(drifts):.3f}",
    )
    yield _vetoes(drifts, rules.bound)
    yield from _savings(checks, inf if rules.bound is None else rules.bound)


def _vetoes(drifts: Sequence[float], bound: float | None) -> Finding:
    """Count the middles that a bound in nats refuses; without one, those that the default would."""
    limit = bound if bound is not None else checked().bound
    assert limit is not None
    count = sum(drift > limit for drift in drifts)
    verb = "are decoded again" if bound is not None else "would be with the cache `checked`"
    return Finding("veto", f"{count} of {len(drifts)} middles {verb}, above {limit:g} nats")


def _equal(checks: Sequence[CacheCheck]) -> Finding:
    tokens = sum(check.tokens for check in checks)
    share = 100 * sum(check.equal for check in checks) / max(tokens, 1)
    whole = sum(check.equal == check.tokens for check in checks)
    return Finding(
        "equal", f"{share:.1f} % of {tokens} tokens, {whole} of {len(checks)} middles in all of them"
    )


def _savings(checks: Sequence[CacheCheck], bound: float) -> Iterator[Finding]:
    """Rows and time; a middle with a drift above ``bound`` costs both ways."""
    spent = [check.spent(bound) for check in checks]
    rows = sum(rows for rows, _ in spent)
    exact = sum(check.exact.rows for check in checks)
    advice = "" if rows < exact else ": nothing is saved, use --canvas-cache none"
    text = f"{rows} instead of {exact}, {exact / max(rows, 1):.1f} times fewer{advice}"
    yield Finding("rows", text, ok=not advice)
    cached = median(ms for _, ms in spent)
    uncached = median(check.exact.ms for check in checks)
    ratio = uncached / max(cached, 1e-3)
    yield Finding("time", f"{cached:.0f} ms a middle instead of {uncached:.0f} (medians), {ratio:.1f} times")


def spec_of(rules: Refresh) -> str:
    """The rules in the syntax of ``--canvas-cache``."""
    fields = {name: value for name, value in asdict(rules).items() if name != "steps" and value}
    options = ",".join(f"{name}={value:g}" for name, value in fields.items())
    return f"{'dual' if rules.bound is None else 'checked'}:{rules.steps},{options}"
