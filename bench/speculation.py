"""Speculative decoding on nano.

Our drafters beside plain decoding, transformers' assisted generation and llama.cpp.

    python -m bench.speculation [--spans 200] [--seed 0] [--arms a,b,…] [--temperature 0] [--out FILE.json]
    python -m bench.speculation --report FILE.json …      tables of files that were written before, put
    together

Spans of the evaluation packages (``spans.py``), each filled by every arm in turn, one after the other, with
nothing cached; the order rotates from span to span. All arms get the same prompt ids, limits and stop ids. It
ends with 1 if any arm of ours said another token than the others.

Arms of ours are what ``--drafter`` takes, with + for the comma: ``none``, ``ngram``, ``heads``,
``diffusion``, ``diffusion:self``, ``model``, ``ngram+heads``, ``mix``, ``auto``; after a slash K drafts, T
steps, N tokens of a window, R1: rows of a pass as without drafts, F1: as if every pass cost the same (tokens
a pass as on a machine where it does; its times mean nothing). Peers: ``transformers``,
``transformers+model/K5`` (K drafted tokens; without: its defaults), ``transformers+lookup/K16N5`` (n-grams of
up to N), ``llama.cpp`` (``llama.py`` says how to have it and what else it can). What cannot be had is left
out with a line that says why. Above temperature 0 only ours run: others draw other tokens, so that there is
nothing to compare.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime as dt
import gc
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from bench.arms import Answer, Arm, Fleet, Row, Skipped, Spec, first_difference, row_of
from bench.llama import Llamas
from bench.peers import Peers
from bench.spans import CACHE, KINDS, LIMITS, Span, cut_spans, read_folder, read_packages
from bench.tables import SCHEMA, report
from fimserver.cards import PACKAGE
from fimserver.engine.load import weights_hash
from fimserver.errors import FimError
from fimserver.types import Request

ARMS = (
    "none", "none/R1", "ngram", "heads", "model", "diffusion", "diffusion/K2", "diffusion/T2",
    "diffusion/K2T2",
    "diffusion:self",
    "ngram+heads", "ngram+diffusion", "mix", "auto",
    "ngram/F1", "diffusion/F1", "diffusion/K2F1", "diffusion/T2F1", "diffusion:self/F1",
    "diffusion:self/K2F1",
    "diffusion:self/T2F1",
    "transformers", "transformers+model", "transformers+model/K3", "transformers+model/K5",
    "transformers+model/K8",
    "transformers+lookup", "transformers+lookup/K5N3", "transformers+lookup/K10N5",
    "transformers+lookup/K16N5",
    "llama.cpp", "llama.cpp+lookup/K8N3", "llama.cpp+model",
)  # fmt: skip
_PEERS = ("transformers", "llama.cpp")


def make_arms(names: Sequence[str], fleet: Fleet, temperature: float) -> tuple[list[Arm], dict[str, str]]:
    """Return the arms that can run, and the reasons of the others."""
    made: list[Arm] = []
    skipped: dict[str, str] = {}
    peers, llamas = Peers(fleet), Llamas(fleet)
    for name in dict.fromkeys(names):
        try:
            made.append(
                _make_arm(Spec.of(name), fleet, llamas if name.startswith("llama") else peers, temperature)
            )
        except (Skipped, FimError, ImportError) as error:
            skipped[name] = str(error)
            print(f"{name} is left out: {error}", file=sys.stderr)
    return made, skipped


def _make_arm(spec: Spec, fleet: Fleet, peers: Peers | Llamas, temperature: float) -> Arm:
    if not spec.name.startswith(_PEERS):
        return fleet.arm(spec)
    if temperature > 0:
        raise Skipped("it draws other tokens than ours do, so that there is nothing to compare")
    return peers.arm(spec)


def measure(arms: Sequence[Arm], spans: Sequence[Span], fleet: Fleet) -> list[Row]:
    """Run every arm on every span, one at a time; the order rotates from span to span."""
    rows: list[Row] = []
    for number, span in enumerate(spans):
        prompt, shift = fleet.prompt(span.request), number % len(arms)
        answers: dict[str, Answer] = {}
        for arm in [*arms[shift:], *arms[:shift]]:
            gc.collect()
            answers[arm.name] = arm.answer(span, prompt)
        rows += rows_of(arms, span, prompt, answers, fleet)
        if (number + 1) % 10 == 0:
            print(f"{number + 1} of {len(spans)} spans", file=sys.stderr)
    return rows


def rows_of(
    arms: Sequence[Arm], span: Span, prompt: list[int], answers: dict[str, Answer], fleet: Fleet
) -> list[Row]:
    """Return one row per arm, with its ids compared with those of fimserver's first arm."""
    said = {arm.name: row_of(arm, span, prompt, answers[arm.name], fleet) for arm in arms}
    reference = said[next((arm.name for arm in arms if arm.ours), arms[0].name)][1]
    return [
        dataclasses.replace(row, differs_at=first_difference(ids, reference)) for row, ids in said.values()
    ]


def machine() -> dict[str, Any]:
    """Return the machine and versions, on which the figures depend."""
    root, info = Path(__file__).parents[1], Path("/proc/cpuinfo")
    names = [
        line.partition(":")[2].strip()
        for line in (info.read_text().splitlines() if info.exists() else [])
        if "model name" in line
    ]
    git = ["git", "-C", str(root)]
    commit = subprocess.run(
        [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    changed = subprocess.run(
        [*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=False
    ).stdout
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="minutes"),
        "commit": commit + ("+changes" if changed else ""),
    }


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Cut, warm up, measure. The document that is written to JSON."""
    limits = {kind: getattr(args, f"tokens_{kind}") for kind in KINDS}
    fleet = Fleet()

    def fit(kind: str, request: Request) -> Request:
        limit = min(limits[kind], fleet.card.max_new_tokens)
        return request.with_sampling(
            max_tokens=limit, temperature=args.temperature, seed=args.seed, stop="none"
        )

    packages = read_folder(args.source) if args.source else read_packages(args.cache)
    spans = cut_spans(packages, args.spans, args.seed, fleet.loaded.vocabulary, fit)
    warm_up = cut_spans(read_folder(PACKAGE), args.warmup, args.seed, fleet.loaded.vocabulary, fit)
    arms, skipped = make_arms(args.arms, fleet, args.temperature)
    if not arms:
        raise SystemExit("no arm is left to run")
    gc.freeze()  # what stays is not looked at again
    try:
        measure(arms, warm_up, fleet)
        load, started = os.getloadavg(), time.perf_counter()
        rows = measure(arms, spans, fleet)
        minutes = round((time.perf_counter() - started) / 60, 1)
        about = {arm.name: arm.about() for arm in arms}
    finally:
        gc.unfreeze()
        for arm in arms:
            arm.close()
    loads = {
        "load_before": [round(x, 2) for x in load],
        "load_after": [round(x, 2) for x in os.getloadavg()],
        "minutes": minutes,
    }
    facts = {
        "seed": args.seed,
        "spans": len(spans),
        "temperature": args.temperature,
        "limits": limits,
        "warm_up": len(warm_up),
    }
    facts |= {
        "packages": sorted(packages),
        "model": fleet.card.name,
        "weights": weights_hash(fleet.loaded.folder)[:12],
    }
    return {
        "schema": SCHEMA,
        "machine": machine() | loads,
        "run": facts,
        "arms": about,
        "skipped": skipped,
        "rows": [dataclasses.asdict(row) for row in rows],
    }


def strangers(document: dict[str, Any]) -> list[str]:
    """Return the names of fimserver's arms that wrote other tokens.

    Arms with another number of rows are left out: they run other kernels and may differ.
    """
    ours = [
        arm for arm in document["arms"] if not arm.startswith(_PEERS) and "R" not in arm.partition("/")[2]
    ]
    return [
        arm
        for arm in ours
        if any(row["arm"] == arm and row["differs_at"] is not None for row in document["rows"])
    ]


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--spans", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--arms", type=lambda text: text.split(","), default=ARMS, help=f"default: {','.join(ARMS)}"
    )
    for kind in KINDS:
        parser.add_argument(
            f"--tokens-{kind}", type=int, default=LIMITS[kind], help=f"longest middle; default {LIMITS[kind]}"
        )
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--warmup", type=int, default=3, help="spans of our own files first, not counted")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of the evaluation packages' wheels")
    parser.add_argument("--source", type=Path, help="a folder with Python files in place of the packages")
    parser.add_argument("--out", type=Path, help="write the rows there as JSON")
    parser.add_argument("--report", type=Path, nargs="+", help="only print the tables of these files")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """Run or report; 1 where ours do not agree."""
    args = parse(words)
    if args.report:
        documents = [json.loads(path.read_text("utf-8")) for path in args.report]
    else:
        documents = [run(args)]
        if args.out:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(documents[0], indent=1) + "\n", "utf-8")
    print(report(documents))
    differing = sorted({arm for document in documents for arm in strangers(document)})
    if differing:
        print(f"NOT the same tokens as the first arm of ours: {', '.join(differing)}", file=sys.stderr)
    return int(bool(differing))


if __name__ == "__main__":
    sys.exit(main())
