"""Sizes of files in decimal units, as download pages and disk tools show them."""

UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


def size_text(size_bytes: float) -> str:
    """``491 MB``, ``1.1 GB``, ``12 kB``: two digits at least, no more than needed."""
    for unit, factor in UNITS:
        if size_bytes >= factor:
            value = size_bytes / factor
            return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
    return f"{size_bytes:.0f} bytes"
