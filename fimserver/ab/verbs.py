"""``fimserver ab`` and its verbs."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fimserver.commands.options import given, settings_of, settings_options
from fimserver.errors import InputError
from fimserver.exits import INTERRUPTED

if TYPE_CHECKING:
    from fimserver.ab.schema import Report

LIMIT = 300


@click.group(invoke_without_command=True)
@click.option(
    "--a", "a", metavar="ARM", help="dllm, ar, auto, card=NAME or a URL, with settings: ar,drafter=none"
)
@click.option("--b", "b", metavar="ARM", help="The arm to compare with.")
@click.option(
    "--repo", type=click.Path(path_type=Path), help="Cut spans from this folder (git-tracked files)."
)
@click.option("--spans", type=click.Path(path_type=Path), help="JSONL of prefix, middle, suffix.")
@click.option(
    "--trace",
    "traces",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Replay keystrokes; may be given several times.",
)
@click.option("--limit", type=click.IntRange(min=1), help=f"Number of spans. [default: {LIMIT}]")
@click.option("--warm", is_flag=True, help="Run each span also with its prompt in the cache.")
@click.option(
    "--speed",
    type=click.FloatRange(min=0.1),
    default=1.0,
    show_default=True,
    help="Speed of a replay; 1 is real time.",
)
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Folder for report.json and report.html."
)
@settings_options("request", "weights", "engine", "policy", "token")
@click.pass_context
def ab(context: click.Context, /, a: str, b: str, out: Path, **options: Any) -> None:
    """Compare two configurations on the same spans or keystrokes, in turn, in one run.

    --seed also draws which spans, and which arm goes first.
    """
    if context.invoked_subcommand is not None:
        return
    from fimserver.ab.compare import ComparisonRequest, ItemSource, compare  # noqa: PLC0415 - numpy and more

    names = ("repo", "spans", "traces", "limit", "warm", "speed")
    repo, spans, traces, limit, warm, speed = (options.pop(name) for name in names)
    if not (a and b and out):
        raise InputError("give two arms and a folder: fimserver ab --a dllm --b ar --repo DIR --out DIR")
    if sum(map(bool, (repo, spans, traces))) != 1:
        raise InputError("give one of --repo DIR, --spans FILE.jsonl and --trace FILE.jsonl")
    if traces and warm:
        raise InputError("--warm is for spans: in a replay the caches are as they are in an editor")
    source = ItemSource(
        repo, spans, tuple(traces), limit or LIMIT, options["seed"] or 0, warm=warm, speed=speed
    )
    report = compare(ComparisonRequest((a, b), source, given(options), out, _command()))
    _show(report, out)
    if not report.finished:
        click.echo("interrupted: finished rows are kept; the same command resumes", err=True)
        sys.exit(INTERRUPTED)


@ab.command()
@click.argument("files", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Folder; default: that of the first file."
)
def report(files: tuple[Path, ...], out: Path | None) -> None:
    """Make the table and the page again from one report.json, or from several of the same arms together."""
    from fimserver.ab.compare import write  # noqa: PLC0415 - numpy and more
    from fimserver.ab.schema import merge, read_report  # noqa: PLC0415

    merged = merge([read_report(path) for path in _reports(files)])
    folder = out or _reports(files)[0].parent
    write(merged, folder, keep=len(files) == 1 and out is None)
    _show(merged, folder)


@ab.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@settings_options("request", "window", "dllm_card", "ar_card", "device", "policy")
def record(file: Path, **flags: Any) -> None:
    """The language server, writing what you type to FILE: let your editor start `fimserver ab record FILE`.

    FILE holds your text. It stays on this machine, only you can read it, and files that are excluded are not
    in it.
    """
    from fimserver.front.lsp.stdio import run_stdio  # noqa: PLC0415 - as for the language server itself

    sys.exit(run_stdio(settings_of(flags | {"record": str(file)})))


def _reports(files: Iterable[Path]) -> list[Path]:
    return [path / "report.json" if path.is_dir() else path for path in files]


def _show(report: Report, folder: Path) -> None:
    from fimserver.ab.analysis.analysis import analyse  # noqa: PLC0415
    from fimserver.ab.report.table import print_table  # noqa: PLC0415
    from fimserver.commands.render import make_console  # noqa: PLC0415

    print_table(make_console(), report, analyse(report))
    click.echo(f"{folder / 'report.json'}, {folder / 'report.html'}")


def _command() -> str:
    from fimserver.ab.arms.arm import without_token  # noqa: PLC0415

    return without_token(shlex.join(["fimserver", *sys.argv[1:]]))
