"""Two windows share one host with the shipped model, also if it is killed. ``KILLS``: how often it is killed."""

import os
import random
import time

import pytest

from tests.editor import Editor
from tests.hosts import OwnHosts

KILLS = int(os.environ.get("KILLS", "3"))
SEED = int(os.environ.get("KILL_SEED", "0"))
READY_S = 90.0  # a host imports torch and loads the model
CODE = "def add(a, b):\n    return a + b\n\n\ndef mul(a, b):\n    return \n"
LINE, COLUMN = 5, 11
OPTIONS = {"candidates": 1, "maxTokens": 16, "prefetch": False}


@pytest.fixture
def own(monkeypatch):
    with OwnHosts() as own:
        for name, value in (own.env | {"OMP_NUM_THREADS": "1"}).items():
            monkeypatch.setenv(name, value)
        yield own


class Window:
    """One editor, with documents in which requests can run beside each other."""

    def __init__(self, name):
        self.editor, self.version = Editor("pipes"), 1
        self.uris = [f"file:///work/{name}{number}.py" for number in range(3)]

    def __enter__(self):
        self.editor.start(initializationOptions=OPTIONS)
        for uri in self.uris:
            self.editor.open(uri, CODE)
        return self

    def __exit__(self, *_):
        self.editor.link.close()

    def ask(self, uri, *, invoked=False):
        """A key and a request, whose id is returned."""
        self.version += 1
        self.editor.type(uri, self.version, 0, 0, "#" if self.version % 2 else "\n")
        line = LINE + self.version // 2
        return self.editor.post(
            "textDocument/inlineCompletion", self.editor.params(uri, line, COLUMN, invoked=invoked)
        )

    def works(self, *, invoked=True):
        """Whether the model answers."""
        self.editor.answer(self.ask(self.uris[0], invoked=invoked), READY_S)
        return "model" in self.editor.explain()


def wait_until(found):
    Editor.wait_until(found, READY_S)


def ready(windows, own):
    """Both windows are answered by the one host there is. Returns it."""
    for window in windows:
        wait_until(window.works)
    wait_until(lambda: len(own.processes()) == 1)
    return own.processes()[0]


def test_two_windows_share_a_host_that_may_be_killed_at_any_time_and_outlives_them(own, capsys):
    rng, back_s = random.Random(SEED), []
    with Window("left") as left, Window("right") as right:
        host = ready((left, right), own)
        for _ in range(KILLS):
            asked = [
                (window, window.ask(uri, invoked=rng.random() < 0.5))
                for window in (left, right)
                for uri in window.uris
            ]
            time.sleep(rng.uniform(0, 0.4))  # at any moment of their work
            own.kill(host)
            killed = time.monotonic()
            asked += [(window, window.ask(window.uris[-1])) for window in (left, right)]
            for window, request in asked:
                assert "result" in window.editor.answer(request, READY_S)
            host = ready((left, right), own)
            back_s.append(round(time.monotonic() - killed, 1))
        for window in (left, right):
            assert all(len(answers) == 1 for answers in window.editor.answers.values())
            assert set(window.editor.run("stats")["reasons"]) <= ORDINARY
            assert window.editor.leave() == 0
            assert window.editor.link.stderr == ""
    assert own.processes() == [host]
    assert "Traceback" not in own.log
    assert "ERROR" not in own.log
    with capsys.disabled():
        print(f"\n{KILLS} kills; both windows were answered again after, s: {back_s}")


ORDINARY = {
    "end", "suffix", "scope", "statement", "repeated", "line", "block", "length", "empty", "deadline", "unfinished",
    "blank", "duplicate", "repetition", "syntax", "no_op", "no_host", "loading", "host_failed", "superseded", "stale",
    "failed", "mid_word",
}  # fmt: skip


def test_a_host_that_dies_three_times_rests_until_someone_asks(own):
    with Window("only") as window:
        for _ in range(3):
            host = ready((window,), own)
            own.kill(host)
            window.editor.answer(window.ask(window.uris[0]))
        window.editor.answer(window.ask(window.uris[1]))
        assert window.editor.explain()["reason"] == "host_failed"
        assert own.processes() == []
        ready((window,), own)
