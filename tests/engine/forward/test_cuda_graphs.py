"""Capture of passes with a stand-in for the device: captured once, replayed, and run without a graph on failure."""

import contextlib

import pytest
import torch

from fimserver.engine.forward import cuda_graphs
from fimserver.engine.forward.cuda_graphs import WARM_UPS, CudaGraphs


class Stream:
    def wait_stream(self, other):
        pass


@pytest.fixture
def device(monkeypatch):
    """Counts what a device would do; ``capture`` may be replaced by one that fails."""

    class Device:
        replayed = 0
        streams = []
        capture = staticmethod(contextlib.nullcontext)

    class Graph:
        def replay(self):
            Device.replayed += 1

    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "set_stream", Device.streams.append)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda *_a, **_k: Device.capture())
    monkeypatch.setattr(cuda_graphs, "free_memory", lambda: None)
    return Device


def test_work_is_captured_once_and_replayed(device):
    graphs, done = CudaGraphs(), []
    for _ in range(5):
        graphs.run("a pass", lambda: done.append(1))
    assert len(done) == WARM_UPS + 1  # the last of them is captured: it runs nothing on a device
    assert device.replayed == 5


def test_a_shape_that_cannot_be_captured_runs_without_a_graph_and_the_others_with(device):
    graphs, done = CudaGraphs(), []
    graphs.run("first", lambda: None)

    def fails():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\nand more")

    device.capture = staticmethod(fails)
    for _ in range(3):
        graphs.run("second", lambda: done.append(1))
    assert graphs.failures == {"second": "CUDA out of memory. Tried to allocate"}
    assert len(done) == WARM_UPS + 3
    graphs.run("first", lambda: None)
    assert device.replayed == 2
    assert len(device.streams) == 1  # a failed capture leaves its own stream current


def test_an_error_of_the_work_itself_is_raised(device):
    def broken():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        CudaGraphs().run("a pass", broken)
