"""Sizes of files in decimal units, as download pages and disk tools show them."""

UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


def size_text(size_bytes: float) -> str:
    """Format a size with at least two digits: ``491 MB``, ``1.1 GB``, ``12 kB``."""
    for unit, factor in UNITS:
        if size_bytes >= factor:
            value = size_bytes / factor
            return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
    return f"{size_bytes:.0f} bytes"
