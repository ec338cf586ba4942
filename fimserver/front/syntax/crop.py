"""Crops of the text near a cursor that can be parsed on their own."""

import re

WINDOW_CHARS = 10_000  # of each side of the cursor

# A window may begin or end before a line that is not indented and closes nothing; a line that starts with a
# quote may end a docstring.
_TOP_LEVEL = re.compile(r"\n(?=[^\s)\]}#/*\"'`])")


def window(prefix: str, suffix: str) -> tuple[str, str]:
    """Text near the cursor, cut at top-level lines if possible, else at lines, so that no block is split."""
    if len(prefix) >= WINDOW_CHARS:
        prefix = prefix[-WINDOW_CHARS:]
        top = _TOP_LEVEL.search(prefix)
        prefix = prefix[(top.end() if top else prefix.find("\n") + 1) :]
    if len(suffix) >= WINDOW_CHARS:
        suffix = suffix[:WINDOW_CHARS]
        tops = [match.end() for match in _TOP_LEVEL.finditer(suffix)]
        suffix = suffix[: (tops[-1] if tops else suffix.rfind("\n") + 1)]
    return prefix, suffix


def near(prefix: str, suffix: str, before: int, after: int) -> tuple[str, str]:
    """Last ``before`` lines of the prefix and first ``after`` of the suffix, at most a window's size."""
    above = prefix[-WINDOW_CHARS:].rsplit("\n", before)
    below = suffix[:WINDOW_CHARS].split("\n", after)
    return "\n".join(above[-before:]), "\n".join(below[:after])
