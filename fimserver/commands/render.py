"""Completions as they are printed on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.text import Text

from fimserver.commands.cursor import CursorPosition
from fimserver.types import Completion, Drafting, PromptUse, Round, Slot, unix_lines
from fimserver.wire import CompletionBody

AROUND = 3  # lines shown above and below
INSERTED = "bold green"
MASKED = "bright_black"
FRESH = "bold yellow"
QUIET = "bright_black"
REJECTED = "strike red"


def in_place(place: CursorPosition, inserted: str, replaced: int = 0) -> Text:
    """Return the lines around the cursor, ``inserted`` in place of the next ``replaced`` characters."""
    text = Text()
    above = _lines(place.prefix)
    below = _lines(place.suffix[replaced:])
    middle = _lines(inserted)
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
    """Return one line: route, model, tokens, passes, times, and why it ended."""
    return Text.assemble(
        (f"{completion.route} ", "bold"),
        f"{completion.model} · {completion.tokens} tokens · {completion.forwards} forward passes · "
        f"first {completion.ttft_ms:.0f} ms · last {completion.total_ms:.0f} ms · {completion.reason}",
        _drafted(completion.drafting),
    )


def _drafted(drafting: Drafting | None) -> str:
    if not drafting or not drafting.drafted:
        return ""
    return f" · {sum(drafting.accepted)} of {drafting.drafted} drafted tokens accepted"


def prompt_line(use: PromptUse | None, place: CursorPosition, body: CompletionBody) -> str:
    """Return one line on what of the text around the cursor was read, and what was left out."""
    if use is None:
        return ""
    above = use.lines_above + place.prefix.count("\n") - unix_lines(body.prompt).count("\n")
    below = use.lines_below + place.suffix.count("\n") - unix_lines(body.suffix or "").count("\n")
    left = [
        f"{count} {what}{'s' if count > 1 else ''}{where}"
        for count, what, where in (
            (above, "line", " at the top"),
            (below, "line", " at the bottom"),
            (use.snippets, "snippet", ""),
        )
        if count > 0
    ]
    return (
        f"prompt: {use.tokens} tokens of at most {use.limit}"
        f"; left out: {', '.join(left) if left else 'nothing'}"
    )


def step_line(added: str, canvas: Sequence[Slot], number: int) -> Text:
    """Return one denoising step, or one token: committed slots, those of this step, masked ones."""
    text = Text(f"{number:4d} │ ", style=QUIET)
    for slot in canvas:
        style = FRESH if slot.fresh else INSERTED
        text.append("▒▒", MASKED) if slot.masked else text.append(_visible(slot.text), style)
    if not canvas:
        text.append(_visible(added), FRESH)
    return text


def trace_line(made: Round, piece: Callable[[int], str], number: int) -> Text:
    """Return one round of speculative decoding: accepted tokens, rejected ones, and the target's own."""
    branches, rows = made.shape
    text = Text(f"{number:4d} │ {branches}x{rows:<2} {made.source or 'plain':15} │ ", style=QUIET)
    accepted = made.draft[: made.accepted]
    rejected = made.draft[made.accepted :]
    text.append(_visible("".join(map(piece, accepted))), INSERTED)
    if rejected:
        text.append(" ✗ ", QUIET).append(_visible("".join(map(piece, rejected))), REJECTED)
    return text.append(" → ", QUIET).append(_visible(piece(made.token)), FRESH)


def make_console(*, stderr: bool = False) -> Console:
    """Return a console that prints text unchanged: no markup, no wrapping of code."""
    return Console(stderr=stderr, markup=False, highlight=False, soft_wrap=True)


def _lines(text: str) -> list[str]:
    return unix_lines(text).split("\n")


def _visible(text: str) -> str:
    """Return a token on one line: line ends and tabs become marks."""
    return text.replace("\n", "⏎").replace("\t", "⇥").replace("\r", "")
