"""Knows the verbs of the command line and their exit codes. Knows nothing of what the verbs do.

Exit codes: 0 done, 1 a model or a row failed, 2 the command or its input cannot be used.
"""

from __future__ import annotations

import gc
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fimserver import __version__
from fimserver.ab.verbs import ab
from fimserver.errors import FimError, InputError, NonFiniteError
from fimserver.options import settings_of, settings_options
from fimserver.reasons import Reason
from fimserver.settings import Settings
from fimserver.store.verbs import models
from fimserver.types import Chunk

if TYPE_CHECKING:
    from fimserver.cursor import CursorPosition


class _Group(click.Group):
    """Turns our errors into one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except FimError as error:
            click.echo(f"fimserver: {error}", err=True)
            sys.exit(error.exit_code)
        except BrokenPipeError:  # the reader of our output went away
            sys.stderr.close()
            sys.exit(0)


@click.group(cls=_Group, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@settings_options
@click.pass_context
def main(context: click.Context, /, **flags: Any) -> None:
    """Self-hosted code completion: a diffusion route and an autoregressive route.

    Without a command: the language server, on stdin and stdout, for an editor to start.
    """
    if context.invoked_subcommand is not None:
        if given := [name for name, value in flags.items() if value is not None]:
            raise InputError(
                f"--{given[0].replace('_', '-')} belongs behind the command: fimserver {context.invoked_subcommand} …"
            )
        return
    gc.disable()  # what is made while importing stays: collecting it costs an eighth of the time to start
    from fimserver.front.lsp.stdio import run_stdio  # noqa: PLC0415 - the other commands need no language server

    gc.freeze()
    gc.enable()
    if sys.stdin.isatty():
        click.echo("fimserver: an editor talks to this over stdin (Ctrl-C to leave); for people: fimserver --help", err=True)
    sys.exit(run_stdio(settings_of(flags)))


@main.command()
@click.argument("places", metavar="FILE:LINE:COL", nargs=-1)
@click.option("--spans", type=click.Path(path_type=Path), help="JSONL of id, prefix, suffix; one JSON line out for each.")
@click.option("--limit", type=click.IntRange(min=1), help="Only so many spans.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a place instead of a picture.")
@click.option("--show-steps", is_flag=True, help="Draw the canvas at every denoising step.")
@click.option("--explain", is_flag=True, help="Say why this route.")
@click.option("--trace", is_flag=True, help="Show what each round of speculative decoding drafted and what stood.")
@settings_options
def complete(
    places: tuple[str, ...],
    spans: Path | None,
    limit: int | None,
    as_json: bool,
    show_steps: bool,
    explain: bool,
    trace: bool,
    **flags: Any,
) -> None:
    """Fill the middle at a cursor, or at several, one after the other. Lines and columns count from 1."""
    settings = settings_of(flags)
    if bool(places) == (spans is not None):
        raise InputError("give either FILE:LINE:COL or --spans FILE.jsonl")
    if spans is not None and (as_json or show_steps or trace):
        raise InputError("--spans always writes JSON lines: leave --json, --show-steps and --trace out")
    if spans is not None:
        _complete_spans(settings, spans, limit)
        return
    from fimserver.cursor import read_place  # noqa: PLC0415 - the other verbs need no places

    read, models = [read_place(spec) for spec in places], _models(settings)
    for number, place in enumerate(read):
        if number and not as_json:
            click.echo()
        _complete_place(settings, models, place, as_json=as_json, show_steps=show_steps, explain=explain, trace=trace)


def _complete_place(
    settings: Settings, models: Any, place: CursorPosition, *, as_json: bool, show_steps: bool, explain: bool, trace: bool
) -> None:
    from fimserver import render  # noqa: PLC0415 - after the input is known to be good
    from fimserver.complete import complete as run  # noqa: PLC0415
    from fimserver.cursor import make_request  # noqa: PLC0415
    from fimserver.front.syntax.features import features  # noqa: PLC0415
    from fimserver.front.syntax.languages import language_of  # noqa: PLC0415

    console, steps = render.make_console(), render.make_console(stderr=as_json)
    count = 0

    def draw(chunk: Chunk) -> None:
        nonlocal count
        count += 1
        if trace and chunk.round:
            steps.print(render.trace_line(chunk.round, models.piece("ar"), count))
        elif show_steps and (chunk.reason is None or chunk.text):
            steps.print(render.step_line(chunk, count))

    request = make_request(place.prefix, place.suffix, settings, place.path.name)
    known = features(language_of("", place.path.name), place.prefix, place.suffix)
    request = replace(request, features=known)
    completion = run(models, request, settings, draw if show_steps or trace else None)
    if as_json:
        click.echo(json.dumps(asdict(completion), ensure_ascii=False))
        return
    console.print(render.in_place(place, completion), end="")
    console.print(render.summary(completion))
    if explain:
        console.print(completion.why)


def _complete_spans(settings: Settings, path: Path, limit: int | None) -> None:
    from fimserver.cursor import read_spans  # noqa: PLC0415

    models, failed = None, 0
    for span in read_spans(path, limit):
        models = models or _models(settings)
        row = _complete_span(models, span, settings)
        failed += "error" in row
        click.echo(json.dumps(row, ensure_ascii=False))
    if failed:
        click.echo(f"fimserver: {failed} rows failed: see their `error` field", err=True)
        sys.exit(1)


def _complete_span(models: Any, span: Any, settings: Settings) -> dict[str, Any]:
    """The answer to one row. A model that cannot be loaded ends the run; a row that fails says why."""
    from fimserver.complete import complete as run  # noqa: PLC0415
    from fimserver.cursor import make_request  # noqa: PLC0415

    row: dict[str, Any] = {"id": span.span_id, "completion": "", "ms": 0.0}
    if span.problem:
        return row | {"reason": Reason.BAD_INPUT, "error": span.problem}
    try:
        done = run(models, make_request(span.prefix, span.suffix, settings), settings)
    except NonFiniteError as error:
        return row | {"reason": Reason.NON_FINITE, "error": str(error)}
    return row | {"completion": done.middle, "ms": round(done.total_ms, 3), **asdict(done)}


@main.command()
@click.option("--socket", "path", type=click.Path(path_type=Path), help="Path of the socket; else that of these settings.")
@settings_options
def host(path: Path | None, **flags: Any) -> None:
    """Own the models and serve this user's editors. The language server starts it when it needs one."""
    from fimserver.host.listen import run_host  # noqa: PLC0415

    _log_to_stderr()
    sys.exit(run_host(settings_of(flags), path))


@main.command()
@click.option("--listen", "address", metavar="HOST:PORT", default="127.0.0.1:8765", show_default=True, help="Where to listen.")
@click.option("--allow-host", "hosts", metavar="NAME", multiple=True, help="A name by which clients call this machine.")
@settings_options
def serve(address: str, hosts: tuple[str, ...], **flags: Any) -> None:
    """Serve TCP to clients that have the token: FIMSERVER_TOKEN, or one that is made up and printed."""
    from fimserver.host.listen import make_token, run_tcp  # noqa: PLC0415

    _log_to_stderr()
    settings = settings_of(flags)
    token = settings.token or make_token()

    def bound(urls: tuple[str, ...]) -> None:
        if not settings.token:
            click.echo(f"FIMSERVER_TOKEN={token}")
        for url in urls:
            click.echo(f"serving {url} (fimserver --connect {url})", err=True)

    sys.exit(run_tcp(settings, address, token, frozenset(hosts), bound))


@main.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("--calibrate", is_flag=True, help="Measure what each model costs here, for the route policy, and keep it.")
@settings_options
def doctor(as_json: bool, calibrate: bool, **flags: Any) -> None:
    """Say what this machine can run, and try it."""
    from fimserver.doctor import calibrated, examine  # noqa: PLC0415 - imports torch

    findings = []
    for finding in (calibrated if calibrate else examine)(settings_of(flags)):
        findings.append(finding)
        if not as_json:
            click.echo(f"{'ok ' if finding.ok else 'BAD'} {finding.name:10} {finding.value}")
    if as_json:
        click.echo(json.dumps([asdict(f) for f in findings]))
    sys.exit(0 if all(f.ok for f in findings) else 1)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Write the page of the host to this file.")
@click.option("--days", type=click.FloatRange(min=0, min_open=True), default=30, show_default=True, help="So far back.")
@settings_options
def stats(as_json: bool, html: Path | None, days: float, **flags: Any) -> None:
    """Say what became of suggestions: shown, kept, how fast, why nothing. Lengths and counts, never text."""
    from fimserver.stats_view import show_stats  # noqa: PLC0415 - sqlite and more

    show_stats(settings_of(flags), as_json=as_json, days=days, html=html)


main.add_command(ab)
main.add_command(models)


def _log_to_stderr() -> None:
    import logging  # noqa: PLC0415 - beside its only use

    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(asctime)s %(name)s %(levelname)s %(message)s")


def _models(settings: Settings) -> Any:
    from fimserver.engine.engines import ModelPool  # noqa: PLC0415 - imports torch

    return ModelPool(settings)


if __name__ == "__main__":
    main()
