"""Networks over static buffers on a CPU, as they run on a GPU: the same code, without capture."""

from fimserver.engine.forward import fused
from fimserver.engine.forward.graphs import EagerGraphs

FUSE = fused.fuse


def run_over_graphs(monkeypatch, product_rows=0):
    """Make every fused network run over static buffers, its products filled up to ``product_rows`` rows."""

    def fuse(*arguments):
        network = FUSE(*arguments)
        network.use_graphs(EagerGraphs()).product_rows = product_rows
        return network

    monkeypatch.setattr(fused, "fuse", fuse)
