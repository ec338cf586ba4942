"""Markdown tables of rows of JSON.

A value of a span is what one request gave; where files repeat a span, the median of the repeats. All
intervals are 95 % bootstrap intervals over spans (``intervals.py``). The best arms are chosen on the very
spans that they are compared on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median as median_of
from typing import Any

from bench.intervals import (
    Interval,
    bootstrap,
    geometric_mean_ratio,
    mean_difference,
    median,
    ratio_of_rates,
)

SCHEMA = 1
PLAIN, GENERATE = "none", "transformers"
GROUPS = {
    "single": ("single",),
    "multi": ("multi",),
    "body": ("body",),
    "multi and body": ("multi", "body"),
    "all": ("single", "multi", "body"),
}
GOALS = {PLAIN: 2.0, "assisted": 1.75}  # for each of multi and body
Values = dict[str, float]  # the numbers of a row
Cells = dict[str, dict[str, Values]]  # by arm and span
Metric = Callable[[Values], float | None]  # None: the span does not say


def per_pass(row: Values) -> float | None:
    """Tokens a forward pass of the target, after what came first."""
    return (row["tokens"] - row["first_tokens"]) / row["passes"] if row["passes"] else None


def per_round(row: Values) -> float | None:
    """The same by passes that verify: those in which a target drafts for itself are not counted."""
    return (row["tokens"] - row["first_tokens"]) / row["rounds"] if row["rounds"] else None


def ms_per_token(row: Values) -> float | None:
    """After the first token.

    Where several came first, their time is not in it: this flatters transformers' assistants.
    """
    return (row["total_ms"] - row["ttft_ms"]) / (row["tokens"] - 1) if row["tokens"] > 1 else None


def field(name: str) -> Metric:
    return lambda row: row[name]


COLUMNS: Mapping[str, tuple[Metric, int]] = {
    "tokens a pass": (per_pass, 2),
    "ms a token": (ms_per_token, 2),
    "first token ms": (field("ttft_ms"), 1),
    "first line ms": (field("line_ms"), 1),
    "total ms": (field("total_ms"), 1),
}


def report(documents: Sequence[Mapping[str, Any]]) -> str:
    """Return all tables, a section per temperature. Raises ``ValueError`` for files of another schema."""
    if any(document.get("schema") != SCHEMA for document in documents):
        raise ValueError(f"these files are not of schema {SCHEMA}")
    temperatures = sorted({document["run"]["temperature"] for document in documents})
    return "\n\n".join(
        _section([d for d in documents if d["run"]["temperature"] == t], t) for t in temperatures
    )


def _section(documents: Sequence[Mapping[str, Any]], temperature: float) -> str:
    cells, kinds = read_cells(documents)
    parts = [
        f"# Speculative decoding, temperature {temperature}",
        *map(_machine, documents),
        identity(documents),
        _notes(documents),
    ]
    for group, members in GROUPS.items():
        spans = {span for span, kind in kinds.items() if kind in members}
        here = {
            arm: {span: row for span, row in rows.items() if span in spans} for arm, rows in cells.items()
        }
        here = {arm: rows for arm, rows in here.items() if rows}
        if here:
            parts += [
                f"## {group}",
                medians(here),
                ratios(here, "whole call"),
                ratios(here, "after the first token"),
            ]
            parts += [goals(here, group)] if group in {"multi", "body"} else []
    parts += ["## More drafts, more steps", questions(cells)]
    return "\n\n".join(part for part in parts if part)


def read_cells(documents: Iterable[Mapping[str, Any]]) -> tuple[Cells, dict[str, str]]:
    """Values by arm and span, arms in their order, and the kind of each span."""
    rows: dict[str, dict[str, list[Mapping[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    kinds: dict[str, str] = {}
    for document in documents:
        for row in document["rows"]:
            rows[row["arm"]][row["span"]].append(row)
            kinds[row["span"]] = row["kind"]
    cells = {arm: {span: _merge(repeats) for span, repeats in spans.items()} for arm, spans in rows.items()}
    return cells, kinds


def _merge(repeats: Sequence[Mapping[str, Any]]) -> Values:
    names = [
        name for name, value in repeats[0].items() if isinstance(value, int | float) and name != "differs_at"
    ]
    return {name: float(median_of([repeat[name] for repeat in repeats])) for name in names}


def medians(cells: Cells) -> str:
    """One line an arm: medians over its spans, then rates over all of them together."""
    head = [
        "arm",
        "spans",
        *COLUMNS,
        "ms a token, all together",
        "tokens a pass, all together",
        "accepted / drafted",
    ]
    lines = []
    for arm, rows in cells.items():
        line = [f"`{arm}`", str(len(rows))]
        for metric, digits in COLUMNS.values():
            values = [value for row in rows.values() if (value := metric(row)) is not None]
            line.append(bootstrap(median, values).text(digits) if values else "-")
        total, passes, accepted, drafted = (
            _sum(rows, n) for n in ("total_ms", "passes", "accepted", "drafted")
        )
        tokens = _sum(rows, "tokens")
        line += [
            f"{total / tokens:.2f}",
            f"{(tokens - _sum(rows, 'first_tokens')) / passes:.2f}" if passes else "-",
        ]
        lines.append([*line, f"{accepted:.0f} / {drafted:.0f}"])
    some = cells.get(PLAIN) or next(iter(cells.values()))
    full = sum(row["tokens"] >= row["limit"] for row in some.values())
    return f"Medians over spans; {full} of {len(some)} middles went on to the limit.\n\n{_table(head, lines)}"


def _sum(rows: Mapping[str, Values], name: str) -> float:
    return sum(row[name] for row in rows.values())


def ratios(cells: Cells, what: str) -> str:
    """How many times faster each arm is than the baselines: the typical span, and all spans together."""
    bases = {name: f"`{name}`" for name in (PLAIN, GENERATE, best_assisted(cells)) if name in cells}
    head = ["arm", *(f"{base}, {way}" for base in bases.values() for way in ("a span", "all together"))]
    lines = []
    for arm, rows in cells.items():
        pairs = [faster(rows, cells[base], what) for base in bases]
        lines.append(
            [f"`{arm}`", *(interval.text(2, "x") if interval else "-" for pair in pairs for interval in pair)]
        )
    return (
        f"Times faster, {what}: geometric mean over spans, and milliseconds a token of all spans"
        " together.\n\n" + _table(head, lines)
    )


def faster(
    rows: Mapping[str, Values], base: Mapping[str, Values], what: str
) -> tuple[Interval | None, Interval | None]:
    """Paired by span: how many times less time an arm takes than ``base``, a span and all together."""
    start, less = ("ttft_ms", 1.0) if what != "whole call" else ("", 0.0)
    columns: list[list[float]] = [[], [], [], []]
    for span in sorted(rows.keys() & base.keys()):
        pair = [
            (row["total_ms"] - (row[start] if start else 0.0), row["tokens"] - less)
            for row in (base[span], rows[span])
        ]
        if all(tokens > 0 and ms > 0 for ms, tokens in pair):
            for column, value in zip(columns, (*pair[0], *pair[1]), strict=True):
                column.append(value)
    if not columns[0]:
        return None, None
    each = [[ms / tokens for ms, tokens in zip(columns[i], columns[i + 1], strict=True)] for i in (0, 2)]
    return bootstrap(geometric_mean_ratio, *each), bootstrap(ratio_of_rates, *columns)


def best_assisted(cells: Cells) -> str:
    """Return the fastest assisted arm of transformers by time per token over all spans."""
    return _best([arm for arm in cells if arm.startswith(f"{GENERATE}+")], cells)


def best_ours(cells: Cells) -> str:
    """Return fimserver's fastest arm of those that run as in the product."""
    peers = (GENERATE, "llama.cpp")
    knobs = {arm: arm.partition("/")[2] for arm in cells if not arm.startswith(peers) and arm != PLAIN}
    return _best([arm for arm, said in knobs.items() if "F" not in said and "R" not in said], cells)


def _best(arms: Sequence[str], cells: Cells) -> str:
    rates = {arm: _sum(cells[arm], "total_ms") / _sum(cells[arm], "tokens") for arm in arms}
    return min(rates, key=rates.__getitem__) if rates else ""


def goals(cells: Cells, group: str) -> str:
    """State whether fimserver's best arm reaches its goals."""
    ours, assisted = best_ours(cells), best_assisted(cells)
    lines = []
    for base, goal in ((PLAIN, GOALS[PLAIN]), (assisted, GOALS["assisted"])):
        for what in ("whole call", "after the first token"):
            together = faster(cells[ours], cells[base], what)[1] if ours and base in cells else None
            lines += (
                [f"- {group}: `{ours}` against `{base}`, {what}: {_verdict(together, goal)}"]
                if together
                else []
            )
    return "\n".join(lines)


def _verdict(interval: Interval, goal: float) -> str:
    met = (
        "met"
        if interval.low >= goal
        else "met, but its interval reaches below"
        if interval.value >= goal
        else "NOT met"
    )
    return f"{interval.text(2, 'x')} of all tokens together; the goal is {goal}x: {met}"


def questions(cells: Cells) -> str:
    """SpecDiff-2: tokens a verifying pass of two joint drafts, and of two denoising steps, against one."""
    lines = []
    for arm in cells:
        for letter, title in (("K", "two drafts instead of one"), ("T", "two steps instead of one")):
            base = arm.replace(f"{letter}2", "", 1).rstrip("/")
            if f"{letter}2" not in arm.partition("/")[2] or base not in cells:
                continue
            pairs = [
                (per_round(cells[arm][s]), per_round(cells[base][s]))
                for s in sorted(cells[arm].keys() & cells[base].keys())
            ]
            both = [(more, less) for more, less in pairs if more is not None and less is not None]
            more_tokens = bootstrap(mean_difference, *map(list, zip(*both, strict=True))) if both else None
            time = faster(cells[arm], cells[base], "whole call")[1]
            if more_tokens and time:
                lines.append(
                    [f"`{arm}`", f"`{base}`", title, str(len(both)), more_tokens.text(3), time.text(2, "x")]
                )
    head = [
        "arm",
        "against",
        "what it has",
        "spans",
        "tokens a verifying pass, mean difference",
        "times faster, all together",
    ]
    note = (
        "An arm with F1 drafts always and as if every pass cost the same; the others draft only where it pays"
        " here."
    )
    return f"{note}\n\n{_table(head, lines)}" if lines else ""


def identity(documents: Sequence[Mapping[str, Any]]) -> str:
    """State whether arms wrote the same tokens; fimserver's must, at any temperature."""
    rows = [row for document in documents for row in document["rows"]]
    lines = []
    for arm in dict.fromkeys(row["arm"] for row in rows):
        mine = [row for row in rows if row["arm"] == arm]
        differ = [row for row in mine if row["differs_at"] is not None]
        looked = sum(row["tokens"] if row["differs_at"] is None else row["differs_at"] + 1 for row in mine)
        lines.append(
            [f"`{arm}`", str(len(mine)), str(len(differ)), f"{1000 * len(differ) / max(1, looked):.2f}"]
        )
    head = ["arm", "requests", "with other tokens than the reference", "first differences in 1000 tokens"]
    return (
        "The reference is the first arm of ours. All of ours must agree; transformers adds in another"
        " order.\n\n" + _table(head, lines)
    )


def _machine(document: Mapping[str, Any]) -> str:
    machine, run = document["machine"], document["run"]
    facts = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in machine.items())
    about = (
        f"{run['spans']} spans (seed {run['seed']}) of {', '.join(run['packages'])}; most tokens"
        f" {run['limits']}"
    )
    return f"{facts}\n\n{about}"


def _notes(documents: Sequence[Mapping[str, Any]]) -> str:
    skipped = {arm: why for document in documents for arm, why in document["skipped"].items()}
    warned = {
        a: about["warning"]
        for document in documents
        for a, about in document["arms"].items()
        if "warning" in about
    }
    drafters = {
        arm: about["drafters"]
        for document in documents
        for arm, about in document["arms"].items()
        if "drafters" in about
    }
    lines = [f"- `{arm}` was not run: {why}" for arm, why in skipped.items()]
    lines += [
        f"- `{arm}` had {', '.join(names) or 'no drafter'}"
        for arm, names in drafters.items()
        if arm in {"mix", "auto"}
    ]
    return "\n".join(lines + [f"- `{arm}` is not what it says: {why}" for arm, why in warned.items()])


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(rows + ["| " + " | ".join(line) + " |" for line in lines])
