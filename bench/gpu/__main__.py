"""Measure everything that the README promises of a GPU, in order of worth, within some minutes.

Usage: ``python -m bench.gpu --minutes 8 --out DIR`` on a machine with torch and transformers and nothing
else, without network. Weights are random and made on the
device. ``--toy`` runs every step at toy sizes on the CPU.
``figures.json`` is written after every figure; a table of all is printed last. What is expected, and why:
``bench/gpu/expected.md``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench.gpu.needs import missing


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8.0, help="no step starts after so many minutes")
    parser.add_argument("--out", type=Path, required=True, help="folder of figures.json")
    parser.add_argument("--toy", action="store_true", help="every step at toy sizes on the CPU")
    parser.add_argument("--only", default="", help="steps whose name contains this")
    asked = parser.parse_args(arguments)
    if lacks := missing(toy=asked.toy):
        print("\n".join(f"missing: {what}" for what in lacks), file=sys.stderr)
        return 2
    from bench.gpu.steps import run  # torch and transformers are known to be there from here on

    return run(asked.out, minutes=asked.minutes, toy=asked.toy, only=asked.only)


if __name__ == "__main__":
    sys.exit(main())
