"""Makes up a report that looks like a real one; every number is drawn from a seed."""

import random
from collections.abc import Iterator

from fimserver.ab.schema import Arm, Mark, PairedRow, Report, Result, Side, Timeline
from fimserver.lengths import lexemes

KINDS = ("line_rest", "line", "block", "body")
LINES = (
    "return total / len(items)",
    "for name, value in sorted(pairs.items()):",
    "raise ValueError(f'no such folder: {path!r}')",
    'self.names["größe"] = "日本語 🎉"',
    "result.append((left, right, depth + 1))",
    "if not isinstance(value, (int, float)):",
)


def gold_of(rng: random.Random, kind: str) -> str:
    line = rng.choice(LINES)
    if kind == "line_rest":
        return line[rng.randrange(len(line) // 2) :]
    count = {"line": 1, "block": rng.randint(2, 4), "body": rng.randint(3, 9)}[kind]
    return "\n    ".join([line, *rng.choices(LINES, k=count - 1)])


def result_of(rng: random.Random, side: Side, gold: str) -> Result:
    """Side A takes a canvas at once and is flat in length, side B pays for every token."""
    tokens = max(1, int(lexemes(gold) * rng.uniform(0.8, 1.3)))
    exact = rng.random() < (0.42 if side == "a" else 0.36) / (1 + tokens / 60)
    kept = len(gold) if exact else rng.randrange(len(gold) // 2 + 1)
    text = gold if exact else gold[:kept] + rng.choice(("", "None\n", "pass  # 未", "\tx = [1, 2]"))
    forwards = 6 + tokens // 8 if side == "a" else tokens
    answer_ms = forwards * (14.0 if side == "a" else 5.2) * rng.lognormvariate(0, 0.25) + 11
    return Result(
        text=text,
        route="dllm" if side == "a" else "ar",
        model="made-up-canvas" if side == "a" else "made-up-drafted",
        reason="end" if text else "empty",
        tokens=tokens,
        forwards=forwards,
        fresh_tokens=rng.randrange(400),
        first_ms=answer_ms * (0.9 if side == "a" else 0.35),
        answer_ms=answer_ms,
        shown=rng.random() < 0.93,
        exact=exact,
        first_line=exact or kept > 20,
        prefix_chars=kept,
        similarity=1.0 if exact else rng.uniform(0.1, 0.9),
        parses=None if rng.random() < 0.1 else exact or rng.random() < 0.6,
        saved_keys=max(0.0, kept - 1.0),
        predicted_ms={
            "dllm": answer_ms * rng.lognormvariate(0, 0.2),
            "ar": answer_ms * rng.lognormvariate(0.1, 0.3),
        },
    )


def row_of(rng: random.Random, number: int) -> PairedRow:
    kind = rng.choice(KINDS)
    gold = gold_of(rng, kind)
    group = f"made_up/{'abcdefghijklmnopqrst'[number % 20]}.py"
    return PairedRow(
        item=f"{group}:{number}",
        group=group,
        kind=kind,
        language=rng.choice(("python", "python", "typescript")),
        lexemes=lexemes(gold),
        first=rng.choice(("a", "b")),
        before=f"def made_up_{number}(items, pairs, path):\n    total = sum(items)\n    ",
        after="\n\n\ndef next_one():\n",
        gold=gold,
        at_ms=number * 700.0,
        a=result_of(rng, "a", gold),
        b=result_of(rng, "b", gold),
    )


def pauses_of(rng: random.Random, length_s: float) -> list[float]:
    pauses: list[float] = []
    while sum(pauses) < length_s * 1000:
        pauses.append(rng.lognormvariate(5.0, 0.8))
    return pauses


def marks_of(rng: random.Random, delay_ms: float, pauses: list[float]) -> Iterator[Mark]:
    now = 0.0
    for pause in pauses:
        yield Mark(at_ms=now, what="key", chars=1)
        yield Mark(at_ms=now + 40, what="request")
        if pause > delay_ms / 2:
            answered = now + 40 + delay_ms * rng.uniform(0.4, 1.2)
            yield Mark(at_ms=answered, what="answer", chars=12)
            if answered < now + pause:
                yield Mark(at_ms=answered + 3, what="shown", chars=12)
                if rng.random() < 0.3:
                    yield Mark(at_ms=answered + 40, what="accept", chars=12)
        now += pause


def make_timelines(seed: int, length_s: float) -> tuple[Timeline, ...]:
    pauses = pauses_of(random.Random(seed), length_s)
    marks = {
        side: tuple(marks_of(random.Random(seed), delay, pauses))
        for side, delay in (("a", 190.0), ("b", 90.0))
    }
    keys = {side: sum(mark.what == "key" for mark in found) for side, found in marks.items()}
    return tuple(
        Timeline(group=f"trace-{seed}", side=side, marks=found, keys=keys[side], cancelled=4, superseded=2)
        for side, found in marks.items()
    )


def make_report(rows: int = 300, seed: int = 0, traces: int = 1, **fields) -> Report:
    """A synthetic report: ``rows`` pairs over at most twenty groups, and ``traces`` timelines of each side."""
    rng = random.Random(seed)
    return Report(
        version="0.0.0+synthetic",
        created="2026-01-01T00:00:00+00:00",
        command="fimserver ab --a dllm --b ar --repo made-up --limit 300 --out out",
        source={
            "kind": "repo",
            "name": "made-up",
            "seed": seed,
            "limit": rows,
            "left_out": {"too large": 3, "generated": 1},
        },
        environment={"device": "none: synthetic numbers", "python": "3.11", "torch": "-", "threads": 1},
        arms={
            "a": Arm(
                spec="dllm", models={"dllm": "made-up-canvas"}, version="0.0.0", settings={"threads": 1}
            ),
            "b": Arm(spec="ar,drafter=none", models={"ar": "made-up-drafted"}, version="0.0.0"),
        },
        rows=tuple(row_of(rng, number) for number in range(rows)),
        timelines=tuple(line for number in range(traces) for line in make_timelines(number, 45 + number)),
        **fields,
    )
