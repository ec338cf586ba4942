"""Measure everything that the README promises of a GPU, in order of worth, within some minutes.

Usage: ``python -m bench.gpu --minutes 8 --out DIR`` on a machine with torch and transformers and nothing
else, without network. Weights are random and made on the device; ``--packed FOLDER`` adds a real coder, in
the form that ``models/training/packed.py`` writes, and ``--adapter FILE`` its canvas adapter. ``--toy`` runs
every step at toy sizes, on the CPU unless ``--device`` names another.
``figures.json`` is written after every figure; a table of all is printed last. What is expected, and why:
``bench/gpu/expected.md``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.gpu.needs import missing
from bench.gpu.processes import Plan, run


def plan(arguments: Sequence[str]) -> Plan:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8.0, help="the run ends after so many minutes")
    parser.add_argument("--out", type=Path, required=True, help="folder of figures.json")
    parser.add_argument("--toy", action="store_true", help="every step at toy sizes")
    parser.add_argument("--device", default="", help="cuda or cpu; without it cuda, or cpu with --toy")
    parser.add_argument("--only", default="", help="steps whose name contains this")
    parser.add_argument("--packed", type=Path, help="folder of a coder and of held-out texts")
    parser.add_argument("--adapter", type=Path, help="canvas adapter of that coder")
    parser.add_argument("--here", action="store_true", help="all steps in this process")
    parser.add_argument("--group", default="", help=argparse.SUPPRESS)  # of steps, in a process of its own
    asked = parser.parse_args(arguments)
    device = asked.device or ("cpu" if asked.toy else "cuda")
    return Plan(
        asked.out,
        asked.minutes,
        device,
        asked.packed,
        asked.adapter,
        toy=asked.toy,
        only=asked.only,
        here=asked.here,
        group=asked.group,
    )


def main(arguments: list[str] | None = None) -> int:
    asked = plan(sys.argv[1:] if arguments is None else arguments)
    if lacks := missing():
        print("\n".join(f"missing: {what}" for what in lacks), file=sys.stderr)
        return 2
    return run(asked)


if __name__ == "__main__":
    sys.exit(main())
