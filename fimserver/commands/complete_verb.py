"""``fimserver complete``: a middle at a cursor, or one for each row of a file of spans."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from fimserver.commands.options import settings_of, settings_options
from fimserver.errors import InputError, NonFiniteError
from fimserver.reasons import EXPLANATIONS, Reason
from fimserver.settings import Settings

if TYPE_CHECKING:
    from fimserver.commands.complete import TimedMiddle
    from fimserver.commands.cursor import CursorPosition
    from fimserver.spans import SpanRow
    from fimserver.types import Chunk
    from fimserver.wire import CompletionBody, CompletionChunk

# Fills the middle of a request; the function is called with every chunk of the stream.
Filler = Callable[["CompletionBody", "Callable[[CompletionChunk], None] | None"], "TimedMiddle"]


class Drawing(NamedTuple):
    """Options that say how a completion is printed."""

    as_json: bool
    show_steps: bool
    explain: bool
    trace: bool


@click.command()
@click.argument("places", metavar="FILE:LINE:COL", nargs=-1)
@click.option(
    "--spans",
    type=click.Path(path_type=Path),
    help="JSONL of id, prefix, suffix; one JSON line out for each.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Maximum number of spans.")
@click.option(
    "--language", default="", help="Language of spans that name neither language nor path, such as python."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a picture.")
@click.option("--show-steps", is_flag=True, help="Draw the canvas at every denoising step.")
@click.option("--explain", is_flag=True, help="Say why this route, and what of the file was read.")
@click.option(
    "--trace",
    is_flag=True,
    help="Show what each round of speculative decoding drafted and what was accepted.",
)
@settings_options("request", "weights", "engine", "policy", "connect", "token")
def complete(
    places: tuple[str, ...], spans: Path | None, limit: int | None, language: str, **flags: Any
) -> None:
    """Fill the middle at a cursor, or at several, one after the other. Lines and columns count from 1.

    The request is the one that an editor would send with this file open, and the text that it would show is
    printed. With --connect, the host at that URL answers. Rows of --spans may use the names of
    HumanEval-Infilling; rows with a middle are scored, and a summary follows.
    """
    drawing = Drawing(*(flags.pop(name) for name in Drawing._fields))
    settings = settings_of(flags)
    if bool(places) == (spans is not None):
        raise InputError("give either FILE:LINE:COL or --spans FILE.jsonl")
    if spans is not None and (drawing.as_json or drawing.show_steps or drawing.trace):
        raise InputError("--spans always writes JSON lines: leave --json, --show-steps and --trace out")
    if drawing.trace and settings.connect:
        raise InputError("--trace needs the engine in this process: leave --connect out")
    if spans is not None:
        _complete_spans(settings, spans, limit, language)
    else:
        _complete_places(settings, places, drawing)


def _complete_places(settings: Settings, specs: Sequence[str], drawing: Drawing) -> None:
    from fimserver.commands.cursor import read_place  # noqa: PLC0415 - after the options are known to be good

    places = [read_place(spec) for spec in specs]
    steps = Steps(drawing)
    with _filler(settings, steps.draw_round if drawing.trace else None) as fill:
        for number, place in enumerate(places):
            if number and not drawing.as_json:
                click.echo()
            steps.count = 0
            _complete_place(settings, place, fill, steps)


class Steps:
    """Prints the steps of the running completion as they arrive."""

    def __init__(self, drawing: Drawing) -> None:
        from fimserver.commands.render import make_console  # noqa: PLC0415

        self.drawing = drawing
        self.count = 0
        self._console = make_console(stderr=drawing.as_json)

    def draw_step(self, chunk: CompletionChunk) -> None:
        from fimserver.commands.render import step_line  # noqa: PLC0415

        if chunk.text or chunk.canvas:
            self.count += 1
            self._console.print(step_line(chunk.text, chunk.canvas, self.count))

    def draw_round(self, chunk: Chunk, piece: Callable[[int], str]) -> None:
        from fimserver.commands.render import trace_line  # noqa: PLC0415

        if chunk.round:
            self.count += 1
            self._console.print(trace_line(chunk.round, piece, self.count))


def _complete_place(settings: Settings, place: CursorPosition, fill: Filler, steps: Steps) -> None:
    from fimserver.commands import render  # noqa: PLC0415
    from fimserver.commands.complete import finished  # noqa: PLC0415
    from fimserver.commands.cursor import editor_body, editor_request, line_end, shown_of  # noqa: PLC0415

    drawing = steps.drawing
    console = render.make_console()
    request = editor_request(place, settings)
    body = editor_body(request, settings)
    if drawing.show_steps:
        body = body.with_hints(preview=True)
    middle = fill(body, steps.draw_step if drawing.show_steps and not drawing.trace else None)
    shown = shown_of(request, middle)
    ending = line_end(place.prefix[-100_000:] + place.suffix[:100_000])
    completion = finished(middle._replace(text=middle.text.replace("\n", ending)))
    if drawing.as_json:
        edit = {"shown": shown.text.replace("\n", ending), "replaced": shown.replaced, "hidden": shown.hidden}
        click.echo(encodable(json.dumps(asdict(completion) | edit, ensure_ascii=False)))
        return
    console.print(render.in_place(place, shown.text or completion.middle, shown.replaced), end="")
    console.print(render.summary(completion))
    if shown.hidden and completion.middle:
        console.print(f"an editor shows nothing of it: {EXPLANATIONS[shown.hidden]}")
    if drawing.explain:
        console.print(completion.why)
        console.print(render.prompt_line(completion.prompt, place, body))


@contextmanager
def _filler(
    settings: Settings, trace: Callable[[Chunk, Callable[[int], str]], None] | None = None
) -> Iterator[Filler]:
    """Yield a function that fills middles, with engines in this process or with the host at ``--connect``."""
    from fimserver.commands.complete import WatchedEngines, checked, timed, watched  # noqa: PLC0415
    from fimserver.commands.complete import complete as run  # noqa: PLC0415
    from fimserver.host.request import request_of  # noqa: PLC0415

    if settings.connect:
        from fimserver.commands.remote_host import RemoteHost  # noqa: PLC0415 - the HTTP library

        host = RemoteHost(settings.connect, settings.token)
        with closing(host):
            yield lambda body, watch: checked(timed(watched(host.stream(body), watch)))
        return
    from fimserver.engine.engines import ModelPool  # noqa: PLC0415 - imports torch

    pool = ModelPool(settings)
    engines = WatchedEngines(pool, lambda chunk: trace(chunk, pool.piece("ar"))) if trace else pool
    yield lambda body, watch: run(engines, request_of(body, settings), settings, watch)


def _complete_spans(settings: Settings, path: Path, limit: int | None, language: str) -> None:
    from fimserver.spans import read_spans  # noqa: PLC0415

    fill = None
    rows = list[dict[str, Any]]()
    with ExitStack() as stack:
        for span in read_spans(path, limit):
            fill = fill or stack.enter_context(_filler(settings))
            row = _complete_span(fill, span, settings, language)
            rows.append(row)
            click.echo(encodable(json.dumps(row, ensure_ascii=False)))
    if summary := _summary(rows):
        click.echo(summary, err=True)
    if failed := sum("error" in row for row in rows):
        click.echo(f"fimserver: {failed} rows failed: see their `error` field", err=True)
        sys.exit(1)


def _complete_span(fill: Filler, span: SpanRow, settings: Settings, language: str) -> dict[str, Any]:
    """Return the answer to one row. A model that cannot be loaded ends the run; a row that fails says why."""
    from fimserver.ab.analysis.metrics import score  # noqa: PLC0415
    from fimserver.commands.complete import finished, text_body  # noqa: PLC0415
    from fimserver.front.syntax.languages import language_of  # noqa: PLC0415

    row: dict[str, Any] = {span.id_name: span.span_id, "completion": "", "ms": 0.0}
    if span.problem:
        return row | {"reason": Reason.BAD_INPUT, "error": span.problem}
    known = language_of(span.language or ("" if span.path else language), span.path)
    try:
        done = finished(
            fill(text_body(span.prefix, span.suffix, settings, path=span.path, language=known), None)
        )
    except NonFiniteError as error:
        return row | {"reason": Reason.NON_FINITE, "error": str(error)}
    row |= {"completion": done.middle, "ms": round(done.total_ms, 3), **asdict(done)}
    if span.middle is None:
        return row
    scores = score(done.middle, span.middle)
    return row | {
        "exact": scores.exact,
        "first_line": scores.first_line,
        "similarity": round(scores.similarity, 4),
    }


def _summary(rows: list[dict[str, Any]]) -> str:
    """Return one line on the rows that had a middle to compare with."""
    scored = [row for row in rows if "exact" in row]
    if not scored:
        return ""
    exact, first_line, similarity, tokens = (
        mean(float(row[name]) for row in scored) for name in ("exact", "first_line", "similarity", "tokens")
    )
    return (
        f"{len(scored)} spans: exact {exact:.1%}, first line right {first_line:.1%}, edit similarity"
        f" {similarity:.1%}, {tokens:.1f} tokens, p50 {median(row['ms'] for row in scored):.0f} ms"
    )


def encodable(text: str) -> str:
    """Return JSON that the terminal can write: where its encoding lacks a character, all are escaped."""
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(json.loads(text))
    return text
