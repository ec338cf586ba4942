"""URIs of documents, and the files that they name."""

from __future__ import annotations

import os
import re
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote


@lru_cache(maxsize=256)  # asked several times for each completion
def path_of(uri: str) -> Path | None:
    """Path of the file that a URI of any scheme names (``file``, ``git``, notebook cells).

    ``None`` for untitled documents.
    """
    rest = uri.partition(":")[2].partition("#")[0].partition("?")[0]
    if rest.startswith("//"):
        rest = "/" + rest[2:].partition("/")[2]
    name = unquote(rest).encode("utf-8", "replace").decode("utf-8")  # a path has no lone surrogates
    if not name.startswith("/") or name == "/" or "\0" in name:
        return None
    return Path(name[1:] if re.match(r"/[A-Za-z]:", name) and os.name == "nt" else name)
