"""Knows how a completion looks on a terminal. Knows nothing of how it came about."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.text import Text

from fimserver.cursor import CursorPosition
from fimserver.types import Chunk, Completion, Drafting, Round, unix_lines

AROUND = 3  # lines shown above and below
INSERTED, MASKED, FRESH, QUIET, REJECTED = "bold green", "bright_black", "bold yellow", "bright_black", "strike red"


def in_place(place: CursorPosition, completion: Completion) -> Text:
    """The lines around the cursor with the middle where it belongs."""
    text = Text()
    above = _lines(place.prefix)
    below = _lines(place.suffix)
    middle = _lines(completion.middle)
    shown: list[list[tuple[str, str]]] = [[(line, "")] for line in above[-AROUND - 1 :]]
    shown[-1].append((middle[0], INSERTED))
    shown += [[(line, INSERTED)] for line in middle[1:]]
    shown[-1].append((below[0], ""))
    shown += [[(line, "")] for line in below[1 : AROUND + 1]]
    first = place.line - min(AROUND, len(above) - 1)
    for number, pieces in enumerate(shown, first):
        text.append(f"{number:5d} │ ", QUIET)
        for piece, style in pieces:
            text.append(piece.expandtabs(4), style)
        text.append("\n")
    return text


def summary(completion: Completion) -> Text:
    """One line: route, model, what it took, why it ended."""
    return Text.assemble(
        (f"{completion.route} ", "bold"),
        f"{completion.model} · {completion.tokens} tokens · {completion.forwards} forward passes · "
        f"first {completion.ttft_ms:.0f} ms · last {completion.total_ms:.0f} ms · {completion.reason}",
        _drafted(completion.drafting),
    )


def _drafted(drafting: Drafting | None) -> str:
    if not drafting or not drafting.drafted:
        return ""
    return f" · {sum(drafting.accepted)} of {drafting.drafted} drafted tokens stood"


def step_line(chunk: Chunk, number: int) -> Text:
    """One denoising step, or one token: what is there, what just came, what is still masked."""
    text = Text(f"{number:4d} │ ", style=QUIET)
    for slot in chunk.canvas:
        style = FRESH if slot.fresh else INSERTED
        text.append("▒▒", MASKED) if slot.masked else text.append(_visible(slot.text), style)
    if not chunk.canvas:
        text.append(_visible(chunk.text), FRESH)
    return text


def trace_line(made: Round, piece: Callable[[int], str], number: int) -> Text:
    """One round of speculative decoding: what stood, what fell, and what the target said itself."""
    branches, rows = made.shape
    text = Text(f"{number:4d} │ {branches}x{rows:<2} {made.source or 'plain':15} │ ", style=QUIET)
    stood, fell = made.draft[: made.accepted], made.draft[made.accepted :]
    text.append(_visible("".join(map(piece, stood))), INSERTED)
    if fell:
        text.append(" ✗ ", QUIET).append(_visible("".join(map(piece, fell))), REJECTED)
    return text.append(" → ", QUIET).append(_visible(piece(made.token)), FRESH)


def make_console(*, stderr: bool = False) -> Console:
    """A console that leaves text alone: no markup, no wrapping of code."""
    return Console(stderr=stderr, markup=False, highlight=False, soft_wrap=True)


def _lines(text: str) -> list[str]:
    return unix_lines(text).split("\n")


def _visible(text: str) -> str:
    """A token on one line: line ends and tabs as marks."""
    return text.replace("\n", "⏎").replace("\t", "⇥").replace("\r", "")
