"""Server-sent events: one line of JSON per event, as OpenAI streams them."""

from __future__ import annotations

import json
from typing import Any

# Characters that many readers, such as httpx, treat as line ends but JSON does not escape.
LINE_ENDS = str.maketrans({mark: f"\\u{ord(mark):04x}" for mark in "\x85\u2028\u2029"})


def server_sent(event: dict[str, Any]) -> bytes:
    """Encode an event of a stream as one line."""
    data = json.dumps(event, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return b"data: " + data.translate(LINE_ENDS).encode("utf-8", "replace") + b"\n\n"


DONE = b"data: [DONE]\n\n"
