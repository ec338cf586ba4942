"""Files in parts, for machines that return only small files; ``cat STEM.part* > FILE`` joins them."""

from __future__ import annotations

from pathlib import Path

PART_BYTES = 15_000_000


def write_parts(whole: Path, stem: Path) -> None:
    """Move a file into parts ``STEM.part0``, ``STEM.part1``…, of at most ``PART_BYTES`` each."""
    data = whole.read_bytes()
    whole.unlink()
    for number, start in enumerate(range(0, len(data), PART_BYTES)):
        part = stem.with_suffix(f".part{number}")
        part.with_suffix(".new").write_bytes(data[start : start + PART_BYTES])
        part.with_suffix(".new").replace(part)
