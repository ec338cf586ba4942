"""Benchmark of route policies.

Kept characters per second, simulated on three machines, and on measured spans.

Usage: ``python -m bench.policy [--report DIR/report.json --repo DIR] [--out FILE.json]``.

Simulated: requests draw a true length and what the length model says of it from the model's own held-out
confusion counts; a route keeps all of the middle with its keep rate for the true length, else nothing; an
answer takes what the machine's latency model says, with 15 % of lognormal noise, and reading it takes 300 ms.
Every policy sees the same requests, learns times and keep rates from its own answers only, and starts with
the published keep rates.

Measured: rows of a ``fimserver ab --a dllm --b ar`` report, where both routes did every span. Half of the
files teach keep rates and times; on the other half each policy picks a row's route. The spans are cut again
for their features.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

from fimserver.ab.analysis.statistics import Bootstrap, Interval, bootstrap
from fimserver.ab.arms.arm import body_of
from fimserver.ab.items.spans import cut_spans
from fimserver.ab.schema import PairedRow, read_report
from fimserver.ab.schema import Result as Outcome
from fimserver.host.request import request_of
from fimserver.host.routing.latency import LatencyModel, LatencySample
from fimserver.host.routing.length_model import LengthPrediction, mean_chars, mean_lexemes
from fimserver.host.routing.policies import POLICIES, READING_MS
from fimserver.host.routing.router import (
    NO_DEADLINE_MS,
    PUBLISHED,
    KeepCounts,
    Router,
    RoutingRequest,
    cost_name,
)
from fimserver.lengths import BUCKETS, bucket_of, lexemes
from fimserver.paths import latency_path
from fimserver.reasons import Reason
from fimserver.settings import Settings
from fimserver.types import ROUTES, Request, Route, Sampling

NOISE = 0.15
TOKENS_PER_LEXEME = 1.2
MODEL = "simulated"
REQUEST = Request("", "", sampling=Sampling(max_tokens=1024))


@dataclass(frozen=True)
class Costs:
    """One route on one machine.

    Milliseconds of a prompt row and of a pass, passes by bucket, fresh rows of a request.
    """

    row_ms: float
    pass_ms: float
    passes: Sequence[float]
    rows: int


@dataclass(frozen=True)
class Machine:
    """Both routes on one machine, and the share of a middle that each keeps, by true length."""

    name: str
    costs: Mapping[Route, Costs]
    keep: Mapping[Route, Sequence[float]]


def passes(tokens_per_pass: float) -> tuple[float, ...]:
    """Passes by bucket at a constant pace."""
    return tuple(max(1.0, count * TOKENS_PER_LEXEME / tokens_per_pass) for count in mean_lexemes())


def cost_model(name: str, terabytes_s: float, teraflops: float) -> Machine:
    """A 7.6B model in bf16: 14 GB read in each pass, 13.1 GFLOP for each row of a prompt.

    ar: 64 rows are fresh while typing; 1.85 tokens a pass, as the ``ngram`` drafter gives on one file
    (bench/oracle.py). dllm: the whole context of 1,024 rows is run once per request, since its cache is only
    approximate; 2.88 tokens a step (d3LLM on HumanEval). Derived from public figures, not measured.
    """
    pass_ms, row_ms = 14 / terabytes_s, 13.1 / teraflops
    costs: dict[Route, Costs] = {
        "ar": Costs(row_ms, pass_ms, passes(1.85), 64),
        "dllm": Costs(row_ms, pass_ms, passes(2.88), 1024),
    }
    return Machine(name, costs, PUBLISHED)


def measured(path: Path) -> Machine:
    """This machine with nano, as ``fimserver doctor --calibrate`` measured it. Keep rates as published."""
    latency, costs = LatencyModel(path), dict[Route, Costs]()
    for route in ROUTES:
        cost = latency.cost(cost_name(route, "nano"))
        if not cost.known or not cost.row_ms:
            raise SystemExit("this machine is not measured yet: run fimserver doctor --calibrate")
        row_ms, pass_ms = (
            sorted(cost.row_ms)[len(cost.row_ms) // 2],
            sorted(cost.pass_ms)[len(cost.pass_ms) // 2],
        )
        by_bucket = cost.by_length(0, mean_lexemes())
        costs[route] = Costs(row_ms, pass_ms, tuple(ms / pass_ms for ms in by_bucket), 64)
    return Machine("this machine, nano", costs, PUBLISHED)


class Sums:
    """Sums of one policy over a simulation."""

    def __init__(self) -> None:
        self.kept = self.ms = 0.0
        self.routes = dict.fromkeys(ROUTES, 0)
        self.prices: dict[Route, list[float]] = {
            route: [] for route in ROUTES
        }  # of a pass, after each request

    def per_s(self) -> float:
        return 1000 * self.kept / self.ms


def simulate(
    machine: Machine,
    policy: str | Route,
    confusion: Sequence[Sequence[int]],
    count: int,
    seed: int,
    pace: Callable[[int], float] = lambda _number: 1.0,
) -> Sums:
    """``policy``: one of ``POLICIES``, or a route that is pinned.

    ``pace(i)``: how many times slower the device is then.
    """
    draw, result = random.Random(seed), Sums()
    kept = {route: [KeepCounts(0.0, 0.0)] * len(BUCKETS) for route in ROUTES}
    lengths, said = _lengths(confusion), 0
    name = policy if policy in POLICIES else "always_ar"
    router = Router(
        name,
        kept=lambda route, _model: kept[route],
        seed=seed,
        expect=lambda _features, _request: lengths[said],
    )
    cells = [(true, said) for true in BUCKETS for said in BUCKETS]
    weights = [confusion[true][said] for true, said in cells]
    for route in ROUTES:  # the calibration of a first start
        for bucket in BUCKETS:
            router.costs.learn(cost_name(route, MODEL), _seen(machine.costs[route], bucket, 1.0))
    for number in range(count):
        true, said = draw.choices(cells, weights)[0]
        luck, noise = draw.random(), draw.lognormvariate(0, NOISE) * pace(number)
        pin = policy if policy in ROUTES else "auto"
        models = dict.fromkeys(ROUTES if pin == "auto" else (pin,), MODEL)
        rows = {route: machine.costs[route].rows for route in models}
        decision = router.decide(RoutingRequest(REQUEST, pin, NO_DEADLINE_MS, models, rows))
        seen = _seen(machine.costs[decision.route], true, noise)
        router.learn(decision, MODEL, seen)
        for route in models:
            result.prices[route].append(median(router.costs.cost(cost_name(route, MODEL)).pass_ms))
        share = float(luck < machine.keep[decision.route][true])
        old = kept[decision.route][true]
        kept[decision.route][true] = KeepCounts(old.answers + 1, old.kept + share)
        result.kept += share * mean_chars()[true]
        result.ms += seen.total_ms + READING_MS
        result.routes[decision.route] += 1
    return result


def _lengths(confusion: Sequence[Sequence[int]]) -> list[LengthPrediction]:
    """What the length model says when it says a bucket: how true lengths are spread then."""
    lengths = []
    for said in BUCKETS:
        column = [confusion[true][said] + 0.5 for true in BUCKETS]
        shares = tuple(value / sum(column) for value in column)
        lexemes, chars = (
            sum(p * x for p, x in zip(shares, xs, strict=True)) for xs in (mean_lexemes(), mean_chars())
        )
        lengths.append(LengthPrediction(shares, lexemes, chars, 0.5))
    return lengths


def _seen(costs: Costs, true: int, noise: float) -> LatencySample:
    prefill, count = costs.rows * costs.row_ms * noise, max(1, round(costs.passes[true]))
    tokens = round(mean_lexemes()[true] * TOKENS_PER_LEXEME)
    return LatencySample(
        costs.rows, prefill, count, tokens, prefill + count * costs.pass_ms * noise, Reason.END
    )


def confusion_counts() -> list[list[int]]:
    """Held-out confusion of the shipped length model: rows are true buckets."""
    data = json.loads((Path(__file__).parents[1] / "models" / "length.json").read_text("utf-8"))
    return data["confusion"]


@dataclass(frozen=True)
class Pick:
    """A row, and what the route that a policy picked for it gave."""

    item: str
    route: Route
    kept: float
    ms: float


def by_route(row: PairedRow) -> Mapping[Route, Outcome]:
    return {row.a.route: row.a, row.b.route: row.b}


def picks(rows: Sequence[PairedRow], requests: Mapping[str, Request], policy: str, seed: int) -> list[Pick]:
    """The route of every row, by a router that has learned from the other half of the files."""
    groups = sorted({row.group for row in rows})
    random.Random(seed).shuffle(groups)
    half = set(groups[: len(groups) // 2])
    halves = [row for row in rows if row.group in half], [row for row in rows if row.group not in half]
    return [
        pick
        for here, there in (halves, halves[::-1])
        for pick in _picked(here, _taught(there, policy), requests)
    ]


def _taught(rows: Sequence[PairedRow], policy: str) -> Router:
    kept = {route: [KeepCounts(0.0, 0.0)] * len(BUCKETS) for route in ROUTES}
    router = Router(policy, kept=lambda route, _model: kept[route])
    for row in rows:
        for route, result in by_route(row).items():
            bucket = bucket_of(lexemes(result.text))
            old = kept[route][bucket]
            kept[route][bucket] = KeepCounts(
                old.answers + 1, old.kept + min(1.0, result.saved_keys / max(1, len(row.gold)))
            )
            seen = LatencySample(
                result.fresh_tokens,
                result.prefill_ms,
                result.passes,
                result.tokens,
                result.answer_ms,
                Reason.END,
            )
            router.costs.learn(cost_name(route, result.model), seen)
    return router


def _picked(rows: Sequence[PairedRow], router: Router, requests: Mapping[str, Request]) -> list[Pick]:
    chosen = []
    for row in rows:
        results = by_route(row)
        models = {route: results[route].model for route in ROUTES}
        fresh = {route: results[route].fresh_tokens for route in ROUTES}
        decision = router.decide(RoutingRequest(requests[row.item], "auto", NO_DEADLINE_MS, models, fresh))
        result = results[decision.route]
        chosen.append(Pick(row.item, decision.route, result.saved_keys, result.answer_ms))
    return chosen


def per_s(chosen: Sequence[Pick], reading_ms: float) -> float:
    """Kept characters per second over all rows together."""
    return 1000 * sum(pick.kept for pick in chosen) / sum(pick.ms + reading_ms for pick in chosen)


def pinned(rows: Sequence[PairedRow], route: Route) -> list[Pick]:
    return [
        Pick(row.item, route, by_route(row)[route].saved_keys, by_route(row)[route].answer_ms) for row in rows
    ]


def oracle(rows: Sequence[PairedRow], rate: float) -> list[Pick]:
    """The better route of every row in hindsight, time priced at ``rate`` kept characters per millisecond."""
    both = zip(pinned(rows, "dllm"), pinned(rows, "ar"), strict=True)
    return [max(pair, key=lambda pick: pick.kept - rate * (pick.ms + READING_MS)) for pair in both]


def settles(machine: Machine, policy: str, confusion: Sequence[Sequence[int]], seed: int) -> int:
    """Requests until a device twice as slow as before is priced so on every route in use."""
    turn, count = 500, 200
    sums = simulate(
        machine, policy, confusion, turn + count, seed, lambda number: 2.0 if number >= turn else 1.0
    )
    used = [route for route in ROUTES if sums.routes[route] >= (turn + count) / 10]
    late = [_priced(sums.prices[route], turn, machine.costs[route].pass_ms) for route in used]
    return max(late)


def _priced(prices: Sequence[float], turn: int, before: float) -> int:
    return next((i for i, price in enumerate(prices[turn:]) if price >= 1.8 * before), len(prices) - turn)


def simulated(machines: Sequence[Machine], count: int, seeds: int) -> list[dict[str, object]]:
    """A row for each machine and policy: kept characters per second, the mean of some seeds."""
    confusion, rows = confusion_counts(), list[dict[str, object]]()
    for machine in machines:
        for policy in (*ROUTES, *POLICIES):
            sums = [simulate(machine, policy, confusion, count, seed) for seed in range(seeds)]
            row: dict[str, object] = {
                "machine": machine.name,
                "policy": f"{policy} alone" if policy in ROUTES else policy,
                "kept_per_s": mean(each.per_s() for each in sums),
                "kept_per_s_unread": mean(1000 * e.kept / (e.ms - READING_MS * count) for e in sums),
                "dllm_share": mean(each.routes["dllm"] / count for each in sums),
            }
            if policy in POLICIES:
                row["settles_after"] = max(settles(machine, policy, confusion, seed) for seed in range(seeds))
            rows.append(row)
    return rows


def on_rows(rows: Sequence[PairedRow], requests: Mapping[str, Request], seed: int) -> list[dict[str, object]]:
    """A row for each policy.

    Kept characters per second, against the better route alone, and against the oracle.
    """
    alone = {route: pinned(rows, route) for route in ROUTES}
    best = max(ROUTES, key=lambda route: per_s(alone[route], READING_MS))
    perfect = oracle(rows, per_s(alone[best], READING_MS) / 1000)
    chosen = {f"{route} alone": alone[route] for route in ROUTES}
    chosen |= {policy: picks(rows, requests, policy, seed) for policy in POLICIES} | {"oracle": perfect}
    drawn = bootstrap([row.group for row in rows])
    return [
        _line(name, _in_order(rows, picked), alone[best], perfect, drawn) for name, picked in chosen.items()
    ]


def _in_order(rows: Sequence[PairedRow], picked: Sequence[Pick]) -> list[Pick]:
    """Picks in the order of their rows."""
    by_item = {pick.item: pick for pick in picked}
    return [by_item[row.item] for row in rows]


def _line(
    name: str, picked: Sequence[Pick], best: Sequence[Pick], perfect: Sequence[Pick], drawn: Bootstrap
) -> dict[str, object]:
    def speed(them: Sequence[Pick]) -> Any:
        return drawn.totals([p.kept for p in them]) / drawn.totals([p.ms + READING_MS for p in them])

    return {
        "policy": name,
        "kept_per_s": per_s(picked, READING_MS),
        "kept_per_s_unread": per_s(picked, 0.0),
        "dllm_share": mean(pick.route == "dllm" for pick in picked),
        "of_best_route": drawn.interval(speed(picked) / speed(best)),
        "of_oracle": drawn.interval(speed(picked) / speed(perfect)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--latency", type=Path, help="costs of this machine; default: what doctor --calibrate has written"
    )
    parser.add_argument("--report", type=Path, help="report.json of fimserver ab --a dllm --b ar --repo REPO")
    parser.add_argument("--repo", type=Path)
    parser.add_argument("--count", type=int, default=4000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    machines = [measured(args.latency or latency_path(Settings())), WORKSTATION, H200]
    found: dict[str, object] = {"simulated": simulated(machines, args.count, args.seeds)}
    if args.report:
        report = read_report(args.report)
        spans = cut_spans(args.repo, int(report.source["limit"]), int(report.source["seed"])).spans
        requests = {span.item: request_of(body_of(span, Settings()), Settings()) for span in spans}
        rows = [row for row in report.rows if not row.warm and row.item in requests]
        found |= {"spans": len(rows), "measured": on_rows(rows, requests, 0)}
    for name, lines in found.items():
        print(f"\n{name}")
        for line in lines if isinstance(lines, list) else [lines]:
            print(_text(line) if isinstance(line, dict) else line)
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


def _text(line: Mapping[str, object]) -> str:
    def one(value: object) -> str:
        if isinstance(value, Interval):
            return f"{value.value:.3f} [{value.low:.3f}, {value.high:.3f}]"
        return f"{value:.3f}" if isinstance(value, float) else str(value)

    return " | ".join(one(value) for value in line.values())


WORKSTATION = cost_model("24 GB workstation GPU (cost model)", 1.0, 120)
H200 = cost_model("H200 (cost model)", 4.3, 790)

if __name__ == "__main__":
    main()
