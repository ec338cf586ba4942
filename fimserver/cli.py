"""Verbs of the command line and their exit codes.

Exit codes: 0 done, 1 a model or a row failed, 2 the command or its input cannot be used.
"""

from __future__ import annotations

import gc
import io
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fimserver import __version__
from fimserver.commands.options import settings_of, settings_options, where_settings_are
from fimserver.commands.scale import scale_options, taken
from fimserver.errors import FimError, InputError
from fimserver.exits import INTERRUPTED, run_to_end
from fimserver.settings import Settings
from fimserver.threads import prepare

if TYPE_CHECKING:
    from fimserver.commands.doctor import Finding

# Settings in the help of most commands; the others have measured defaults.
MODELS = ("dllm_card", "ar_card", "models_dir", "device", "drafter")

# Commands that are imported on use: the language server does not need them.
ELSEWHERE = {
    "ab": "fimserver.ab.verbs",
    "complete": "fimserver.commands.complete_verb",
    "deploy": "fimserver.commands.deploy_verb",
    "models": "fimserver.store.verbs",
}


class _Group(click.Group):
    """Command group that prints a ``FimError`` as one line with its exit code, in any terminal encoding."""

    def main(self, *args: Any, **options: Any) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")  # for characters that the terminal lacks
        return super().main(*args, **options)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *ELSEWHERE])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in ELSEWHERE and cmd_name not in self.commands:
            self.add_command(getattr(import_module(ELSEWHERE[cmd_name]), cmd_name))
        return super().get_command(ctx, cmd_name)

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        if any(parameter.name in Settings.model_fields for parameter in cmd.params):
            cmd.epilog = where_settings_are()
        super().add_command(cmd, name)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List commands before options."""
        self.format_commands(ctx, formatter)
        click.Command.format_options(self, ctx, formatter)

    def invoke(self, ctx: click.Context) -> Any:
        prepare()  # before any command imports torch; a started host inherits the environment
        try:
            return super().invoke(ctx)
        except FimError as error:
            click.echo(f"fimserver: {error}", err=True)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)
        except BrokenPipeError:  # the reader of our output went away
            sys.stderr.close()
            sys.exit(0)


@click.group(
    cls=_Group,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=where_settings_are(),
)
@click.version_option(__version__)
@settings_options("model", "max_tokens", "temperature", "stop", "deadline_ms", "window", *MODELS)
@click.pass_context
def main(context: click.Context, /, **flags: Any) -> None:
    """Self-hosted code completion: a diffusion route and an autoregressive route.

    Without a command: the language server, on stdin and stdout, for an editor to start.
    """
    if context.invoked_subcommand is not None:
        if given := [name for name, value in flags.items() if value is not None]:
            raise InputError(
                f"--{given[0].replace('_', '-')} belongs after the command: fimserver"
                f" {context.invoked_subcommand} …"
            )
        return
    gc.disable()  # objects made by imports stay: collecting during import takes an eighth of the start time
    from fimserver.front.lsp.stdio import run_stdio  # noqa: PLC0415 - the other commands do not need it

    gc.freeze()
    gc.enable()
    if sys.stdin.isatty():
        click.echo(
            "fimserver: an editor talks to this over stdin (Ctrl-C to leave); for people: fimserver --help",
            err=True,
        )
    sys.exit(run_stdio(settings_of(flags)))


@main.command()
@click.option(
    "--socket",
    "path",
    type=click.Path(path_type=Path),
    help="Path of the socket. [default: depends on the settings]",
)
@settings_options("weights", "engine", "host", "idle_exit_minutes")
def host(path: Path | None, **flags: Any) -> None:
    """Run this user's model host. The language server starts it when needed."""
    from fimserver.host.listen import run_host  # noqa: PLC0415

    _log_to_stderr()
    sys.exit(run_host(settings_of(flags), path))


@main.command()
@click.option(
    "--listen",
    "address",
    metavar="HOST:PORT",
    default="127.0.0.1:8765",
    show_default=True,
    help="Where to listen.",
)
@click.option(
    "--allow-host", "hosts", metavar="NAME", multiple=True, help="A name by which clients call this machine."
)
@click.option(
    "--token-file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Instead of one token: a file with a line NAME TOKEN for each user, read again when it changes.",
)
@click.option("--ray", "on_ray", is_flag=True, help="With several replicas, on Ray Serve.")
@scale_options
@settings_options("request", "token", "stats", "policy", "quantize", "threads", *MODELS)
def serve(address: str, hosts: tuple[str, ...], token_file: Path | None, on_ray: bool, **flags: Any) -> None:
    """Serve over TCP. Clients need the token: FIMSERVER_TOKEN, or a random one that is printed."""
    from fimserver.host.http.token_file import TokenFile  # noqa: PLC0415
    from fimserver.host.listen import make_token, run_tcp  # noqa: PLC0415

    _log_to_stderr()
    scale = taken(flags)
    if scale and not on_ray:
        raise InputError(f"--{next(iter(scale)).replace('_', '-')} needs --ray")
    settings = settings_of(flags)
    if on_ray and token_file:
        raise InputError("--ray serves one token: set FIMSERVER_TOKEN instead of --token-file")
    users = TokenFile(token_file) if token_file else None
    token = settings.token or make_token()

    def bound(urls: tuple[str, ...]) -> None:
        if not settings.token and not users:
            click.echo(f"FIMSERVER_TOKEN={token}")
        for url in urls:
            click.echo(f"serving {url} (fimserver --connect {url})", err=True)

    if on_ray:
        from fimserver.commands.serve_ray import serve_ray  # noqa: PLC0415 - Ray is optional

        sys.exit(serve_ray(settings, address, token, hosts, scale, bound))
    sys.exit(run_tcp(settings, address, token, frozenset(hosts), bound, token_file=users))


@main.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option(
    "--calibrate", is_flag=True, help="Measure the speed of each model here and save it for the route policy."
)
@click.option(
    "--canvas", is_flag=True, help="Compare the canvas cache with the exact canvas, on FILES or folders."
)
@click.argument("files", metavar="[FILES]", nargs=-1, type=click.Path(exists=True, path_type=Path))
@settings_options("weights", "engine", "policy")
def doctor(as_json: bool, calibrate: bool, canvas: bool, files: tuple[Path, ...], **flags: Any) -> None:
    """Check what this machine can run, and try it."""
    if calibrate and canvas:
        raise InputError("give either --calibrate or --canvas")
    if files and not canvas:
        raise InputError("files are for doctor --canvas")
    settings = settings_of(flags)
    findings = []
    for finding in _findings(settings, files, calibrate=calibrate, canvas=canvas):
        findings.append(finding)
        if not as_json:
            click.echo(f"{'ok ' if finding.ok else 'BAD'} {finding.name:10} {finding.value}")
    if as_json:
        click.echo(json.dumps([asdict(f) for f in findings]))
    sys.exit(0 if all(f.ok for f in findings) else 1)


def _findings(
    settings: Settings, files: tuple[Path, ...], *, calibrate: bool, canvas: bool
) -> Iterable[Finding]:
    """Return the findings of the requested examination. Its modules import torch."""
    if canvas:
        from fimserver.commands.doctor_canvas import examine_canvas  # noqa: PLC0415

        return examine_canvas(settings, files)
    from fimserver.commands.doctor import calibrated, examine  # noqa: PLC0415

    return calibrated(settings) if calibrate else examine(settings)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option(
    "--html", type=click.Path(path_type=Path, dir_okay=False), help="Write the page of the host to this file."
)
@click.option(
    "--days",
    type=click.FloatRange(min=0, min_open=True),
    default=30,
    show_default=True,
    help="Days to include.",
)
@settings_options("connect", "token")
def stats(as_json: bool, html: Path | None, days: float, **flags: Any) -> None:
    """Show statistics of suggestions: shown, kept, latency, reasons for none. Counts only, never text."""
    from fimserver.commands.stats_view import show_stats  # noqa: PLC0415 - sqlite and more

    show_stats(settings_of(flags), as_json=as_json, days=days, html=html)


@main.command()
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True, max=1440),
    default=10,
    show_default=True,
    help="Longest pause.",
)
def pause(minutes: float) -> None:
    """Unload the models of your hosts until an explicit request, `fimserver resume` or the time limit."""
    from fimserver.commands.pause import pause_hosts  # noqa: PLC0415 - loads the HTTP client

    _echo_each(pause_hosts(minutes))


@main.command()
def resume() -> None:
    """End a pause: this user's hosts load their models again."""
    from fimserver.commands.pause import resume_hosts  # noqa: PLC0415

    _echo_each(resume_hosts())


def _echo_each(lines: Iterable[str]) -> None:
    line = ""
    for line in lines:
        click.echo(line)
    if not line:
        click.echo("no host is running")


def _log_to_stderr() -> None:
    import logging  # noqa: PLC0415 - beside its only use

    logging.basicConfig(
        level=logging.WARNING, stream=sys.stderr, format="%(asctime)s %(name)s %(levelname)s %(message)s"
    )


if __name__ == "__main__":
    run_to_end(main)
