"""A job that records its answer, for tests of schedulers."""

import threading

from fimserver.host.job import Job
from fimserver.types import Deadline

PATIENCE_S = 60.0


class Ask:
    """A job and its chunks."""

    def __init__(self, request, name="", route="ar", *, document="d", deadline_ms=None, **how):
        self.pieces, self.ended = [], threading.Event()
        deadline = Deadline.of_ms(deadline_ms)
        self.job = Job((name, document), request, route, deadline, self._sink, user=name, **how)

    def _sink(self, piece):
        if piece is None:
            self.ended.set()
        else:
            self.pieces.append(piece)

    @property
    def text(self):
        return "".join(piece.text for piece in self.pieces)

    @property
    def usage(self):
        (usage,) = [piece.usage for piece in self.pieces if piece.usage]
        return usage

    @property
    def reason(self):
        """How it ended, waiting for it."""
        assert self.ended.wait(PATIENCE_S)
        return self.usage.reason
