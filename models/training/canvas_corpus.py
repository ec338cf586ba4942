"""JavaScript and TypeScript sources of the canvas adapter's corpus: permissively licensed npm packages.

Usage: ``cd FOLDER; xargs -n1 npm pack < …/models/training/npm.txt``, then ``python -m
models.training.canvas_corpus --packages FOLDER``. The Python part is that of ``models.training.corpus``.
"""

from __future__ import annotations

import argparse
import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from models.training.corpus import (
    CACHE,
    SEPARATOR,
    Document,
    NearDuplicates,
    Source,
    at_most,
    check_source,
    clean,
    wanted,
)

NAMES = re.compile(r"\.(ts|tsx|js|jsx|mjs|cjs)$")
SKIP = re.compile(
    r"(\.min\.|\.d\.(m|c)?ts$|/(dist|umd|bundles?|fesm[0-9]*|node_modules|compiled)/|/_?(cjs|commonjs)/)"
)
PACKAGE_CHARS = 3_000_000


def read_package(path: Path) -> tuple[Source, list[Document]]:
    """Open one npm package. Raises ``ValueError`` when its licence is not permissive."""
    with tarfile.open(path) as package:
        members = {m.name.partition("/")[2]: m for m in package.getmembers() if m.isfile()}
        about = json.loads(_text(package, members["package.json"]))
        name, licence = str(about["name"]), str(about.get("license"))
        check_source(name, licence)
        names = [n for n in sorted(members) if NAMES.search(n) and not SKIP.search(f"/{n}")]
        sources = [n for n in names if n.startswith(("src/", "lib/"))] or names
        documents = [Document(name, n, _text(package, members[n])) for n in sources]
    return Source(name, str(about["version"]), licence, "train"), documents


def read_all(folder: Path) -> Iterator[tuple[Source, list[Document]]]:
    """Every package of a folder that may be learned from."""
    for path in sorted(folder.glob("*.tgz")):
        try:
            yield read_package(path)
        except ValueError as error:
            print("skipped:", error)


def main() -> None:
    """Write ``typescript.txt`` (documents joined by NUL) and ``typescript.json`` (sources)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packages", type=Path, default=CACHE / "npm")
    parser.add_argument("--out", type=Path, default=CACHE)
    args = parser.parse_args()
    texts, sources, duplicates = list[str](), list[Source](), NearDuplicates()
    for source, documents in read_all(args.packages):
        kept = [clean(d.text) for d in documents if wanted(d)]
        kept = at_most(PACKAGE_CHARS, [text for text in kept if duplicates.is_new(text)])
        texts += kept
        sources.append(source)
        print(
            f"{source.name:24} {source.version:12} {len(kept):5} files {sum(map(len, kept)) / 1e6:6.2f} MB "
            f" {source.licence}"
        )
    (args.out / "typescript.txt").write_text(SEPARATOR.join(texts), "utf-8")
    (args.out / "typescript.json").write_text(json.dumps([asdict(s) for s in sources], indent=1))
    print(len(texts), "files", f"{sum(map(len, texts)) / 1e6:.1f} MB")


def _text(package: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    file = package.extractfile(member)
    return file.read().decode("utf-8", "replace") if file else ""


if __name__ == "__main__":
    main()
