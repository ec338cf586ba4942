"""Spans of a comparison, cut from a folder of source files or read from a file."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from fimserver.ab.items.cuts import KINDS, Hole, holes
from fimserver.errors import InputError
from fimserver.front.context.privacy import Privacy
from fimserver.front.syntax import parser
from fimserver.reasons import Reason
from fimserver.spans import ID, MIDDLE, PREFIX

FILE_BYTES = 2**20
GIT_S = 60.0
_SKIPPED_FOLDERS = frozenset({"node_modules", "__pycache__"})  # besides hidden ones
_GIT_OWN = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")  # set if we run in a hook of another repository
_JUDGED: Mapping[Reason, str] = {
    Reason.EXCLUDED: "private or ignored",
    Reason.GENERATED: "generated or minified",
}


class Span(NamedTuple):
    """A hole in a file: ``prefix + middle + suffix`` is the file."""

    item: str  # unique among spans
    group: str  # the file's path, from the folder
    kind: str
    language: str  # our name of it; empty: not supported
    prefix: str
    middle: str
    suffix: str


class Cut(NamedTuple):
    """Spans, and the number of files or rows without one, by reason."""

    spans: tuple[Span, ...]
    skipped: Mapping[str, int]


def cut_spans(folder: Path, limit: int, seed: int, kinds: Sequence[str] = KINDS) -> Cut:
    """Cut up to ``limit`` spans, the kinds in turn; deterministic for the same files and seed.

    In a git work tree the tracked files are used; if there are none (an installed package) or elsewhere, all
    files that are not hidden. Each kind visits all other files before it returns to one. Raises
    ``InputError``.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: give one with source files")
    if unknown := sorted(set(kinds) - set(KINDS)):
        raise InputError(f"no kind of span is named {unknown[0]!r}: give some of {', '.join(KINDS)}")
    files = _Files(folder, seed)
    names = sorted(name for name in _tracked(folder) or _walk(folder) if files.has_language(name))
    random.Random(seed).shuffle(names)
    queues = {kind: deque(names) for kind in kinds}
    for turn, queue in enumerate(queues.values()):
        queue.rotate(-turn * len(names) // len(queues))  # so that even a few spans come from many files
    spans: list[Span] = []
    turns = deque(queues)
    while turns and len(spans) < limit:
        span = files.take(turns[0], queues[turns[0]])
        if span is None:
            turns.popleft()
        else:
            spans.append(span)
            turns.rotate(-1)
    if not spans:
        raise InputError(
            f"{folder} has no source file in a language that fimserver parses: give another"
            f" folder{_why(files)}"
        )
    return Cut(tuple(spans), dict(files.skipped))


class _Source(NamedTuple):
    language: str
    text: str
    holes: Mapping[str, list[Hole]]  # not taken yet


class _Files:
    """Files of a folder, read on first use."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.seed = seed
        self.skipped: Counter[str] = Counter()
        self._privacy = Privacy([folder])
        self._sources: dict[str, _Source | None] = {}
        self._taken: set[str] = set()

    def has_language(self, name: str) -> bool:
        known = parser.language_of("", name) is not None
        self.skipped.update(() if known else ["no language that fimserver parses"])
        return known

    def take(self, kind: str, queue: deque[str]) -> Span | None:
        """Take a span of the first file that has one left, and move that file to the end of the queue.

        Files without spans are removed from the queue.
        """
        while queue:
            name = queue.popleft()
            if name not in self._sources:
                self._sources[name] = self._read(name)
            source = self._sources[name]
            while source and source.holes[kind]:
                span = _span(name, kind, source, source.holes[kind].pop())
                if (cut := span.item.rsplit(":", 1)[1]) not in self._taken:  # else of a copy of another file
                    self._taken.add(cut)
                    queue.append(name)
                    return span
        return None

    def _read(self, name: str) -> _Source | None:
        text = self._text(name)
        language = parser.language_of("", name)
        if language is None or text is None:
            return None
        found = holes(language, text, random.Random(f"{self.seed}:{name}"))
        if not any(found.values()):
            self.skipped["nothing to cut"] += 1
            return None
        return _Source(language, text, found)

    def _text(self, name: str) -> str | None:
        """Return the text of a file, or ``None`` if it must not or cannot be used."""
        path = self.folder / name
        reason = self._privacy.by_name(path)
        text = ""
        why = _JUDGED[reason] if reason else ""
        try:
            if not why:
                why, text = _decoded(path)
        except OSError:
            why = "cannot be read"
        if not why and (reason := self._privacy.verdict(path, text.splitlines(keepends=True))):
            why = _JUDGED[reason]
        self.skipped.update([why] if why else ())
        return None if why else text


def _decoded(path: Path) -> tuple[str, str]:
    """Return why a file is not used, and its text."""
    if path.is_symlink() or not path.is_file():
        return "no file, or a link", ""
    if path.stat().st_size > FILE_BYTES:
        return "larger than 1 MiB", ""
    data = path.read_bytes()
    if b"\0" in data:
        return "binary", ""
    try:
        return "", data.decode("utf-8")
    except UnicodeDecodeError:
        return "not UTF-8", ""


def _span(name: str, kind: str, source: _Source, hole: Hole) -> Span:
    start, end = hole
    parts = source.text[:start], source.text[start:end], source.text[end:]
    return Span(f"{name}:{kind}:{_digest(*parts)}", name, kind, source.language, *parts)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "replace")).hexdigest()[:12]


def _why(files: _Files) -> str:
    return (
        f" ({', '.join(f'{count} {why}' for why, count in files.skipped.most_common())})"
        if files.skipped
        else ""
    )


def _tracked(folder: Path) -> list[str]:
    """Return the files that git tracks below a folder; empty outside of a work tree."""
    whole = folder.resolve()
    if not any((place / ".git").exists() for place in (whole, *whole.parents)):
        return []
    command = [shutil.which("git") or "git", "-c", "core.fsmonitor=false", "ls-files", "-z"]
    env = {name: value for name, value in os.environ.items() if name not in _GIT_OWN}
    try:
        done = subprocess.run(  # noqa: S603 - a fixed command
            command, cwd=whole, env=env, capture_output=True, check=True, timeout=GIT_S
        )
    except subprocess.CalledProcessError as error:
        message = error.stderr.decode("utf-8", "replace").strip().split("\n")[0]
        raise InputError(
            f"git cannot list {folder} ({message}): fix that, or give a copy without .git"
        ) from None
    except (OSError, subprocess.TimeoutExpired):
        raise InputError(
            f"git does not run, and {folder} is a git work tree: install git, or give a copy without .git"
        ) from None
    names = (raw.decode("utf-8", "replace") for raw in done.stdout.split(b"\0") if raw)
    return list(dict.fromkeys(names))


def _walk(folder: Path) -> list[str]:
    """Return all files below a folder, without hidden ones and those of tools."""
    found: list[str] = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in _SKIPPED_FOLDERS]
        paths = (Path(place, name) for name in names if not name.startswith("."))
        found += [path.relative_to(folder).as_posix().encode("utf-8", "replace").decode() for path in paths]
    return found


class _Row(BaseModel):
    """One line of a file of spans, also with HumanEval-Infilling's names. Other fields are ignored."""

    model_config = ConfigDict(frozen=True)

    prefix: str = Field(validation_alias=AliasChoices(*PREFIX))
    middle: str = Field(validation_alias=AliasChoices(*MIDDLE))
    suffix: str
    id: str = Field("", validation_alias=AliasChoices(*ID))
    group: str = ""
    path: str = ""
    kind: str = "span"
    language: str = ""


def read_spans(path: Path, limit: int) -> Cut:
    """Read the first ``limit`` spans of a JSONL file.

    Fields: ``prefix``, ``middle``, ``suffix``; optional ``id``, ``path``, ``group``, ``kind``, ``language``.
    Unusable rows are counted by reason, with the first line number. Raises ``InputError``.
    """
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    spans: dict[str, Span] = {}
    bad: dict[str, list[int]] = {}
    for number, line in enumerate(lines, 1):
        if len(spans) == limit:
            break
        span = _row_span(line, path.name) if line.strip() else None
        why = (
            span
            if isinstance(span, str)
            else "has an id that came before"
            if span and span.item in spans
            else ""
        )
        if why:
            bad.setdefault(why, []).append(number)
        elif isinstance(span, Span):
            spans[span.item] = span
    skipped = {f"{why} (first in line {numbers[0]})": len(numbers) for why, numbers in bad.items()}
    if not spans:
        first = f": {next(iter(skipped))}" if skipped else ""
        raise InputError(f"{path} has no row with the texts prefix, middle and suffix{first}")
    return Cut(tuple(spans.values()), skipped)


def _row_span(line: bytes, file: str) -> Span | str:
    """Return the span of a row, or what is wrong with it."""
    try:
        row = _Row.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        return ": ".join([*map(str, first["loc"]), first["msg"].split(" at line")[0]])
    if not row.middle.strip():
        return "middle: is empty"
    group = row.group or row.path or row.id or file
    item = row.id or f"{group}:{row.kind}:{_digest(row.prefix, row.middle, row.suffix)}"
    language = parser.language_of(row.language, row.path or row.group) or ""
    return Span(item, group, row.kind, language, row.prefix, row.middle, row.suffix)
