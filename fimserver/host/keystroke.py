"""Keystroke: time from a typed letter to a whole single-line answer, the rest of the prompt cached."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING

from fimserver.host.calibrate import samples
from fimserver.types import Deadline, ms_since

if TYPE_CHECKING:
    from fimserver.engine.engines import Engine

TYPED = "self."
MAX_TOKENS = 12  # a longer answer is not measured as one keystroke
LINES = 3  # of the samples


def keystroke_ms(engine: Engine) -> float:
    """Median over letters typed at several places, in milliseconds. Raises ``FimError``."""
    return median(_answers_ms(engine))


def _answers_ms(engine: Engine) -> Iterator[float]:
    for sample in samples()[:LINES]:
        request = sample.with_sampling(max_tokens=MAX_TOKENS, stop="line")
        engine.warm(request, Deadline())
        for typed in range(1, len(TYPED) + 1):
            started = time.perf_counter()
            for _ in engine.complete(replace(request, prefix=request.prefix + TYPED[:typed]), Deadline()):
                pass
            yield ms_since(started)
