"""Progress of a download: a bar on a terminal, else lines; earlier bytes do not count for the speed."""

import io

from rich.console import Console

from fimserver.store import progress
from fimserver.store.progress import ProgressBar
from fimserver.store.sizes import size_text


def draw(*, is_terminal):
    out = io.StringIO()
    with ProgressBar(Console(file=out, force_terminal=is_terminal, width=80)) as bar:
        bar.say("asking somewhere")
        bar.start(1_000_000)
        for done in (500_000, 750_000, 1_000_000):
            bar.at(done)
        bar._bar.refresh()
    return out.getvalue()


def test_a_terminal_shows_share_size_and_speed():
    drawn = draw(is_terminal=True)
    assert "asking somewhere" in drawn
    assert "100%" in drawn
    assert "1.0/1.0 MB" in drawn


def test_a_pipe_gets_lines_now_and_then(monkeypatch):
    monkeypatch.setattr(progress, "LINE_S", 0.0)
    drawn = draw(is_terminal=False)
    assert "\x1b" not in drawn
    assert "750 kB of 1.0 MB" in drawn
    monkeypatch.setattr(progress, "LINE_S", 3600.0)
    assert draw(is_terminal=False) == "asking somewhere\n"


def test_sizes_are_short():
    assert [size_text(n) for n in (0, 999, 12_345, 491_400_064, 1_117_320_768, 15e9)] == [
        "0 bytes", "999 bytes", "12 kB", "491 MB", "1.1 GB", "15 GB",
    ]  # fmt: skip
