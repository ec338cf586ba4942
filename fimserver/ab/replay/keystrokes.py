"""Keystrokes that the suggestions of a replay would have saved.

The gold text of a request is what the user typed there (``gold``). A suggestion is compared with the gold
text and the characters after it that the suggestion replaces; scores compare as many lines as the suggestion
has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from fimserver.ab.analysis.metrics import saved_keys, score
from fimserver.ab.replay.gold import GoldText, settle
from fimserver.ab.replay.outcome import Replayed, ReplayedText, RequestOutcome
from fimserver.ab.schema import Mark, PairedRow, Result, Side, Timeline
from fimserver.errors import InputError
from fimserver.lengths import common_prefix, lexemes
from fimserver.reasons import Reason
from fimserver.types import ROUTES, Route, unix_lines

ANSWERED = frozenset({"shown", "late", "empty"})
ENDED = {"cancelled": Reason.CANCELLED, "superseded": Reason.SUPERSEDED, "failed": Reason.FAILED}


class Accept(NamedTuple):
    """An accepted suggestion: the number of its correct characters, and of the keys that it saves."""

    right: int
    saved: float


@dataclass(frozen=True)
class KeystrokeTotals:
    """Totals of one replay. ``keys`` counts changes; ``saved_keys`` counts characters."""

    keys: int
    typed_chars: int
    requests: int
    shown: int
    late: int
    cancelled: int
    superseded: int
    empty: int
    failed: int
    accepted: int
    saved_keys: float
    kept_share: float  # of the shown characters, those in the common prefix with the gold text
    seconds: float  # of the replay


def rows(trace_name: str, a: Replayed, b: Replayed, first: Side = "a") -> list[PairedRow]:
    """Pair the requests of two replays of one trace. ``first``: the arm that was replayed first.

    ``first_ms`` is from the key to the shown suggestion, 0 if nothing was shown; ``answer_ms`` is 0 for a
    cancelled or superseded request. Without an answer the route is the arm's pinned or most frequent one.
    Raises ``InputError`` for replays of different requests.
    """
    if [shot.request for shot in a.shots] != [shot.request for shot in b.shots]:
        raise InputError(
            f"{trace_name}: the arms replayed different requests: replay one trace, with the same client"
        )
    golds = settle(a.trace, [shot.request for shot in a.shots])
    results = [_results(replayed, golds) for replayed in (a, b)]
    return [
        PairedRow(
            item=f"{trace_name}:{shot.request.number}",
            group=trace_name,
            kind="request",
            language=gold.language,
            lexemes=lexemes(gold.text),
            first=first,
            warm=True,
            before=gold.before,
            after=gold.after,
            gold=gold.text,
            at_ms=a.trace.events[shot.request.event].t_ms,
            a=result_a,
            b=result_b,
        )
        for shot, gold, result_a, result_b in zip(a.shots, golds, *results, strict=True)
    ]


def timelines(trace_name: str, a: Replayed, b: Replayed) -> list[Timeline]:
    """Return the timelines of both arms for one trace."""
    return [timeline(trace_name, "a", a), timeline(trace_name, "b", b)]


def timeline(trace_name: str, side: Side, replayed: Replayed) -> Timeline:
    """Convert a replay to a timeline, in milliseconds of the replay."""
    accepted = accepts(replayed, settle(replayed.trace, [shot.request for shot in replayed.shots]))
    marks = [Mark(at_ms=at_ms, what="key", chars=chars) for at_ms, chars in replayed.keys]
    for shot in replayed.shots:
        marks.append(Mark(at_ms=shot.asked_ms, what="request"))
        if shot.ending in ANSWERED:
            marks.append(Mark(at_ms=shot.answered_ms, what="answer", chars=len(_first(shot).text)))
        if shot.ending == "shown":
            marks.append(Mark(at_ms=shot.answered_ms, what="shown", chars=len(_first(shot).text)))
        if shot.request.number in accepted:
            marks.append(
                Mark(at_ms=shot.answered_ms, what="accept", chars=accepted[shot.request.number].right)
            )
    endings = Counter(shot.ending for shot in replayed.shots)
    return Timeline(
        group=trace_name,
        side=side,
        marks=tuple(sorted(marks, key=lambda mark: mark.at_ms)),
        keys=len(replayed.keys),
        cancelled=endings["cancelled"],
        superseded=endings["superseded"],
    )


def totals(replayed: Replayed) -> KeystrokeTotals:
    """Compute the totals of a replay."""
    golds = settle(replayed.trace, [shot.request for shot in replayed.shots])
    accepted = accepts(replayed, golds)
    endings = Counter(shot.ending for shot in replayed.shots)
    shown = [
        (_first(shot), gold)
        for shot, gold in zip(replayed.shots, golds, strict=True)
        if shot.ending == "shown"
    ]
    kept = sum(common_prefix(unix_lines(text.text), _target(gold, text)) for text, gold in shown)
    return KeystrokeTotals(
        keys=len(replayed.keys),
        typed_chars=sum(chars for _, chars in replayed.keys),
        requests=len(replayed.shots),
        shown=endings["shown"],
        late=endings["late"],
        cancelled=endings["cancelled"],
        superseded=endings["superseded"],
        empty=endings["empty"],
        failed=endings["failed"],
        accepted=len(accepted),
        saved_keys=sum(accept.saved for accept in accepted.values()),
        kept_share=kept / max(1, sum(len(text.text) for text, _ in shown)),
        seconds=replayed.seconds,
    )


def accepts(replayed: Replayed, golds: Sequence[GoldText]) -> Mapping[int, Accept]:
    """Return the accepted suggestions by request number: greedily, each one that saves keys.

    Accepted text is not typed, so requests inside it accept nothing. See ``metrics.saved_keys``.
    """
    accepted: dict[int, Accept] = {}
    for shot, gold in zip(replayed.shots, golds, strict=True):
        is_written = any(
            at < accepted[number].right for number, at in gold.inside.items() if number in accepted
        )
        if shot.ending != "shown" or is_written:
            continue
        accept = _worth(_first(shot), gold)
        if accept.saved > 0:
            accepted[shot.request.number] = accept
    return accepted


def _worth(text: ReplayedText, gold: GoldText) -> Accept:
    """Return what a suggestion saves. Characters that were there before were not typed: they save nothing."""
    suggested = unix_lines(text.text)
    target = _target(gold, text)
    right = common_prefix(suggested, target)
    untyped = max(0, right - len(gold.text))
    return Accept(right - untyped, max(0.0, saved_keys(suggested, target) - untyped))


def _target(gold: GoldText, text: ReplayedText) -> str:
    """Return the gold text with the part of the rest of its line that the suggestion replaces."""
    return gold.text + gold.rest[: text.replace]


def _results(replayed: Replayed, golds: Sequence[GoldText]) -> list[Result]:
    accepted = accepts(replayed, golds)
    route = _usual_route(replayed)
    return [
        _result(shot, gold, accepted.get(shot.request.number), route)
        for shot, gold in zip(replayed.shots, golds, strict=True)
    ]


def _result(shot: RequestOutcome, gold: GoldText, accept: Accept | None, usual: Route) -> Result:
    text = _first(shot)
    facts = shot.facts
    suggested = unix_lines(text.text)
    scores = score(suggested, _as_long(_target(gold, text), suggested))
    is_answered = shot.ending in ANSWERED
    return Result(
        text=suggested,
        route=facts.get("route", usual),
        model=facts.get("model", ""),
        reason=facts.get("reason", ENDED.get(shot.ending, "")),
        why=facts.get("why", ""),
        tokens=facts.get("tokens", 0),
        forwards=facts.get("forwards", 0),
        first_ms=shot.answered_ms - shot.key_ms if shot.ending == "shown" else 0.0,
        answer_ms=shot.answered_ms - shot.asked_ms if is_answered else 0.0,
        shown=shot.ending == "shown",
        exact=scores.exact,
        first_line=scores.first_line,
        prefix_chars=scores.prefix_chars,
        similarity=scores.similarity,
        saved_keys=accept.saved if accept else 0.0,
    )


def _as_long(gold: str, suggested: str) -> str:
    """Cut the gold text to as many lines as the suggestion has."""
    return "\n".join(gold.split("\n")[: suggested.rstrip().count("\n") + 1])


def _first(shot: RequestOutcome) -> ReplayedText:
    """Return the suggestion that an editor shows."""
    return shot.texts[0] if shot.texts else ReplayedText("", 0)


def _usual_route(replayed: Replayed) -> Route:
    took: Counter[Any] = Counter(shot.facts["route"] for shot in replayed.shots if "route" in shot.facts)
    usual = replayed.route if replayed.route in ROUTES else next(iter(took.most_common(1)), (ROUTES[0], 0))[0]
    return next(route for route in ROUTES if route == usual)
