"""A job that records its answer, for tests of schedulers."""

import threading

from fimserver.host.job import Job
from fimserver.types import Deadline

PATIENCE_S = 60.0


class Ask:
    """A job and its chunks."""

    def __init__(self, request, name="", route="ar", *, document="d", deadline_ms=None, **how):
        self.pieces, self.ends, self.ended = [], 0, threading.Event()
        deadline = Deadline.of_ms(deadline_ms)
        self.job = Job((name, document), request, route, deadline, self._sink, user=name, **how)

    def _sink(self, piece):
        if piece is None:
            self.ends += 1
            self.ended.set()
        else:
            self.pieces.append(piece)

    @property
    def answered(self):
        return self.ended.is_set()

    @property
    def text(self):
        return "".join(piece.text for piece in self.pieces)

    @property
    def usage(self):
        (usage,) = [piece.usage for piece in self.pieces if piece.usage]
        return usage

    @property
    def reason(self):
        """How it ended, waiting for it: once."""
        assert self.ended.wait(PATIENCE_S), f"{self.job.request.prefix!r} was never answered"
        assert self.ends == 1
        return self.usage.reason
