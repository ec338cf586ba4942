"""Spans that are timed, and how long their middles may get.

The cutting and the packages are those of the acceptance oracle (``oracle.py``): the reserved packages, which
no model here was trained on. Two spans are never of one file as long as files last, so that no arm remembers
a middle that it wrote beside the one it writes.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import platformdirs

from bench import oracle
from fimserver.engine.prompts.vocabulary import Vocabulary
from fimserver.types import Request

KINDS = ("single", "multi", "body")
LIMITS = {"single": 24, "multi": 64, "body": 128}  # tokens of a middle
# pydantic-ai itself is an empty wheel: its code is in the slim one.
PACKAGES = tuple("pydantic-ai-slim" if name == "pydantic-ai" else name for name in oracle.EVALUATION)
CACHE = platformdirs.user_cache_path("fimserver") / "evaluation"
_DRAWS = 40  # holes that are looked at for each span that is wanted, before files may repeat


@dataclasses.dataclass(frozen=True)
class Span:
    """A hole that every arm fills. ``name`` says where it is and is the same in every run that cuts it."""

    name: str
    kind: str
    request: Request


def read_packages(folder: Path = CACHE) -> dict[str, oracle.Files]:
    """The evaluation packages by file name of their wheel, version and all.

    Fetched by pip where they are not there yet.
    """
    wheels = oracle.fetch(PACKAGES, folder)
    return {"-".join(path.name.split("-")[:2]): oracle.wanted(oracle.read_wheel(path)) for path in wheels}


def read_folder(folder: Path) -> dict[str, oracle.Files]:
    """The Python files of a local folder, in place of packages."""
    files = {str(path.relative_to(folder)): path.read_text("utf-8") for path in sorted(folder.rglob("*.py"))}
    return {folder.resolve().name: oracle.wanted(files)}


def cut_spans(
    packages: Mapping[str, oracle.Files],
    count: int,
    seed: int,
    vocabulary: Vocabulary,
    fit: Callable[[str, Request], Request],
) -> list[Span]:
    """``count`` spans, the kinds in turn; the same spans for the same packages and seed.

    ``fit`` sets limits on a request.
    """
    chosen: list[Span] = []
    left = Counter(KINDS[number % len(KINDS)] for number in range(count))
    files, names = set[tuple[str, str]](), set[str]()
    for draw, case in enumerate(_cases(packages, seed, vocabulary)):
        span = Span(_name(case), case.kind, fit(case.kind, case.request))
        file = (case.package, case.path)
        if left[case.kind] and span.name not in names and (file not in files or draw > _DRAWS * count):
            chosen.append(span)
            left[case.kind] -= 1
            files.add(file)
            names.add(span.name)
        if not any(left.values()):
            break
    return sorted(chosen, key=lambda span: hashlib.sha256(span.name.encode()).digest())


def _cases(packages: Mapping[str, oracle.Files], seed: int, vocabulary: Vocabulary) -> Iterator[oracle.Case]:
    """Holes without end."""
    if not any(packages.values()):
        raise SystemExit(
            "no file to cut spans from: let pip reach an index, or give --source a folder with Python files"
        )
    return oracle.cases(dict(packages), 2**62, seed, vocabulary)


def _name(case: oracle.Case) -> str:
    where = hashlib.sha256(f"{case.request.prefix}\0{case.request.suffix}".encode()).hexdigest()[:10]
    return f"{case.package}/{case.path}/{case.kind}/{where}"
