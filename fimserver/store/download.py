"""Downloads a model: tries sources in order, file by file, resumable, checked by hash, one process at a time.

An incomplete file is `FILE.part` in the folder `NAME.part`. It is always a prefix of the file, whichever
source it came from. The folder is renamed when all files are there and their hashes are correct.
"""

from __future__ import annotations

import errno
import fcntl
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from fimserver.cards import Card, is_present, model_folder
from fimserver.errors import DiskFullError, DownloadError, InputError, SourceError
from fimserver.hashing import git_blob_id, sha256
from fimserver.store.sizes import size_text
from fimserver.store.sources import ModelFile, Received, Source
from fimserver.store.transfer import ask, listen

ATTEMPTS = 5  # per file and source, as long as each one makes progress
SPARE_BYTES = 64 << 20  # left free on the disk
Sources = Callable[[Card, Path], Sequence[Source]]


class Watch(Protocol):
    """Observer of a download: a progress bar, or a fake."""

    def say(self, line: str) -> None:
        """Show one line to the user."""
        ...

    def start(self, total_bytes: int) -> None:
        """Begin, with the size that a source announced."""
        ...

    def at(self, done_bytes: int) -> None:
        """Show how much has been fetched."""
        ...


def get_model(card: Card, models_dir: Path, sources: Sources, watch: Watch) -> Path:
    """Fetch the files of a model into its folder below ``models_dir``; valid files there are kept.

    Raises ``InputError`` for a shipped model, ``DiskFullError``, and ``DownloadError`` with each source and
    its error.
    """
    folder = models_dir / card.name
    if model_folder(card, models_dir) != folder:
        raise InputError(f"{card.name} is shipped with fimserver: nothing to download")
    with _alone(models_dir, card, watch), _room(models_dir):
        if is_present(card, models_dir) and _is_sound(folder, watch):
            return folder
        part = folder.with_name(f"{card.name}.part")
        _take_apart(folder, part)
        work = part / ".work"
        try:
            _get_from_one(card, part, sources(card, work), watch)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        part.replace(folder)
    return folder


@contextmanager
def _alone(models_dir: Path, card: Card, watch: Watch) -> Iterator[None]:
    """Hold the lock of one model: a second process waits until the first is done."""
    models_dir.mkdir(parents=True, exist_ok=True)
    with (models_dir / f".{card.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            watch.say(f"another process is getting {card.name}: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _room(models_dir: Path) -> Iterator[None]:
    """Convert an ``OSError`` such as a full disk to a ``DownloadError``."""
    try:
        yield
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise DownloadError(f"{error.filename or models_dir}: {error.strerror or error}") from None
        raise DiskFullError(
            f"the disk of {models_dir} is full; what was fetched is kept: free some space and run the command"
            " again"
        ) from None


def _is_sound(folder: Path, watch: Watch) -> bool:
    """Whether the files match the manifest. A folder without one was made by the user and is not checked."""
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        return True
    expected: dict[str, str] = json.loads(manifest.read_text("utf-8"))["files"]
    damaged = [name for name, digest in expected.items() if not _has_hash(folder / name, digest)]
    if damaged:
        watch.say(f"{folder / damaged[0]} is damaged: it is fetched again")
    return not damaged


def _take_apart(folder: Path, part: Path) -> None:
    """Move the files of an incomplete or damaged model to the download folder, to resume from them.

    A link is only removed.
    """
    if folder.is_symlink():
        folder.unlink()
    elif folder.is_dir() and not part.exists():
        folder.replace(part)
    elif folder.is_dir():
        shutil.rmtree(folder)
    part.mkdir(parents=True, exist_ok=True)


def _get_from_one(card: Card, part: Path, sources: Sequence[Source], watch: Watch) -> None:
    problems: list[str] = []
    for source in sources:
        try:
            _get_from(card, source, part, watch)
        except SourceError as error:
            problems.append(str(error))
            watch.say(f"this source failed: {error}")
        else:
            return
    raise DownloadError(
        f"{card.name}: {'; '.join(problems)}. What was fetched is kept: run the command again, or give"
        " --from URL"
    )


def _get_from(card: Card, source: Source, part: Path, watch: Watch) -> None:
    watch.say(f"asking {source.label}")
    files = ask(source.files, lambda: source.label)
    _check_names(card, files, source)
    _drop_others(part, files)
    total = sum(file.size_bytes for file in files)
    here = _here_bytes(part, files)
    free = shutil.disk_usage(part).free
    watch.say(
        f"{card.name}: {size_text(total)} to {part.with_suffix('')}, {size_text(here)} here,"
        f" {size_text(free)} free"
    )
    if total - here + source.extra_bytes + SPARE_BYTES > free:
        raise DiskFullError(
            f"{card.name} needs {size_text(total - here + source.extra_bytes)} in {part.parent}, where"
            f" {size_text(free)} are free: free some space, or give another folder with --models-dir"
        )
    watch.start(total)
    done = 0
    hashes: dict[str, str] = {}
    for file in files:
        hashes[file.name] = _get_file(source, file, part, _counted_from(done, watch))
        done += (part / file.name).stat().st_size
    _write_manifest(part, source, hashes)


def _counted_from(base: int, watch: Watch) -> Callable[[int], None]:
    """Return a function that reports the bytes of all files, given those of the current one."""
    return lambda at: watch.at(base + at)


def _get_file(source: Source, file: ModelFile, part: Path, at: Callable[[int], None]) -> str:
    """Fetch what is missing of a file and return its SHA-256."""
    target = part / file.name
    partial = part / f"{file.name}.part"
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_file():
        if digest := _digest(target, file):
            at(target.stat().st_size)
            return digest
        target.unlink()
    for is_fresh in (_size(partial) == 0, True):
        _append(source, file, partial, at)
        if digest := _digest(partial, file):
            partial.replace(target)
            return digest
        partial.unlink(missing_ok=True)
        if is_fresh:  # otherwise the bytes from before may be the wrong ones
            break
    raise SourceError(
        f"{source.label} gave another {file.name} than the one that is pinned (its hash differs)"
    )


def _append(source: Source, file: ModelFile, partial: Path, at: Callable[[int], None]) -> None:
    """Resume a file. If the source breaks off, it is asked again as long as it makes progress."""
    for attempt in range(1, ATTEMPTS + 1):
        before = _size(partial)
        if file.size_bytes and before >= file.size_bytes:
            return
        try:
            _read_on(source, file, partial, at)
        except SourceError:
            if attempt == ATTEMPTS or _size(partial) == before:
                raise
        else:
            if not file.size_bytes or _size(partial) >= file.size_bytes:
                return
    raise SourceError(f"{source.label} ends {file.name} early")


def _read_on(source: Source, file: ModelFile, partial: Path, at: Callable[[int], None]) -> None:
    with partial.open("ab") as out:
        written = out.tell()
        received = 0
        at(written)
        for event in listen(source.read(file, written), lambda: source.label):
            if isinstance(event, Received):
                received += event.bytes
            else:
                out.write(event)
                written = written + len(event)
                received = 0
            at(min(written + received, file.size_bytes or written))


def _digest(path: Path, file: ModelFile) -> str:
    """Return the SHA-256 of a file, or an empty string if it does not match the pinned hash."""
    digest = sha256(path)
    if file.sha256 and digest != file.sha256:
        return ""
    return "" if file.git_blob_id and git_blob_id(path) != file.git_blob_id else digest


def _check_names(card: Card, files: Sequence[ModelFile], source: Source) -> None:
    """Check that the source has all pinned files and weights in a supported format."""
    names = {file.name for file in files}
    if missing := next((name for name in card.files if name not in names), None):
        raise SourceError(f"{source.label} has no {missing}: the card needs a newer fimserver")
    if not any(name.endswith((".safetensors", ".gguf")) for name in names):
        raise SourceError(
            f"{source.label} has no weights in safetensors or GGUF, and others are never loaded"
        )


def _drop_others(part: Path, files: Sequence[ModelFile]) -> None:
    """Delete files left over from another revision."""
    names = {file.name for file in files}
    for path in [path for path in part.rglob("*") if path.is_file()]:
        if path.relative_to(part).as_posix().removesuffix(".part") not in names:
            path.unlink()


def _here_bytes(part: Path, files: Sequence[ModelFile]) -> int:
    return sum(_size(part / file.name) + _size(part / f"{file.name}.part") for file in files)


def _write_manifest(part: Path, source: Source, hashes: dict[str, str]) -> None:
    text = json.dumps({"source": source.label, "files": hashes}, indent=1)
    (part / "manifest.json").write_text(text, "utf-8")


def _has_hash(path: Path, digest: str) -> bool:
    return path.is_file() and sha256(path) == digest


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
