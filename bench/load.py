"""Many users on one host: simulated users type recorded traces, batched and one request at a time.

Usage: ``python -m bench.load [--card NAME] [--users 1 5 20 50] [--seconds 20] [--rounds 2]
[--batches 1 0] [--route ar] [--slower 1] [--rest 0.5] [--by at_rests] [--out FILE.json]``.
Two hosts (``fimserver serve``, one route) are started, one with ``--batch 1`` and one with ``--batch 0``.
The users type on one of them while the other is idle, then on the other, in turns; both get the same keys at
the same times. Each user has a document of its own and begins elsewhere in it. A request is asked for as VS
Code asks, 40 ms after a key, and given up at the next key. It counts as shown in time where text came
before that. A model that needs longer than people leave between keys shows text where they rest: the
share of requests before a pause of ``--rest`` seconds that were shown is a column of its own. ``--slower 3``
types the traces at a third of their speed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from fimserver.ab.items.client_model import ASK_AFTER_MS, PlannedRequest, plan
from fimserver.ab.items.traces import Texts, Trace, read_trace
from fimserver.front.host_client import HostClient, open_host_client
from fimserver.reasons import Reason
from fimserver.types import ROUTES, Route
from fimserver.wire import CompletionBody, EditorHints

TRACES = Path(__file__).parent / "results" / "traces"
NAMES = {1: "one at a time", 0: "batched"}
READY_S = 300.0
DEADLINE_S = 2.0  # of a request, as an editor's
POLL_S = 0.2
KEPT = 0.9  # of the share that one user alone is shown in time


@dataclass(frozen=True)
class Ask:
    """A request of a user, sent ``after_s`` after the user began and cancelled at ``until_s``."""

    after_s: float
    until_s: float
    prefix: str
    suffix: str

    @property
    def pause_s(self) -> float:
        return self.until_s - self.after_s


class Address(NamedTuple):
    """A host, and the route that it is asked for."""

    url: str
    token: str
    route: Route


@dataclass
class Tally:
    """Outcomes of the requests of one arm. ``ms``: latencies of those that were shown in time."""

    asked: int = 0
    rests: int = 0  # requests before a rest
    at_rests: int = 0  # of those shown
    tokens: int = 0
    seconds: float = 0.0
    ms: list[float] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)  # by reason

    def row(self) -> dict[str, Any]:
        """Numbers of the table."""
        ordered = sorted(self.ms)

        def at(share: float) -> float:
            return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 1) if ordered else 0.0

        return {
            "asked": self.asked,
            "shown": len(self.ms),
            "in_time": round(len(self.ms) / self.asked, 3) if self.asked else 0.0,
            "rests": self.rests,
            "at_rests": round(self.at_rests / self.rests, 3) if self.rests else 0.0,
            "p50_ms": at(0.5),
            "p95_ms": at(0.95),
            "tokens_s": round(self.tokens / self.seconds, 1) if self.seconds else 0.0,
            "others": {str(reason): count for reason, count in self.others.items()},
        }


def asks(trace: Trace, slower: float = 1.0) -> list[Ask]:
    """All requests of a trace, with the text around the cursor; the pause after the last is two seconds.

    ``slower``: times between keys are so many times those of the trace; a request still comes 40 ms after.
    """
    texts = Texts()
    steps = plan(trace, "vscode")
    keys = [step.due_ms for step in steps if not isinstance(step.what, PlannedRequest)]
    found = []
    for step in steps:
        if not isinstance(step.what, PlannedRequest):
            texts.play(step.what)
            continue
        place = step.what
        text = "".join(texts.documents[place.doc].lines)
        cut = texts.offset(place.doc, place.line, place.char)
        wait_ms = ASK_AFTER_MS["vscode"]
        due_ms = slower * (step.due_ms - wait_ms) + wait_ms
        next_ms = min((slower * due for due in keys if due > step.due_ms), default=due_ms + 2000)
        found.append(Ask(due_ms / 1000, next_ms / 1000, text[:cut], text[cut:]))
    return found


def share(trace: Sequence[Ask], user: int, users: int, seconds: float) -> Iterator[Ask]:
    """Yield the requests of one user, who begins at another place of the trace, in another document."""
    first = user * len(trace) // max(1, users)
    began = trace[first].after_s
    for ask in [*trace[first:], *trace[:first]]:
        since = ask.after_s - began if ask.after_s >= began else ask.after_s + trace[-1].until_s - began
        if since > seconds:
            return
        named = f"# module {user} of {users}\n"
        yield Ask(since, since + ask.until_s - ask.after_s, named + ask.prefix, f"{ask.suffix}{named}")


async def type_on(
    client: HostClient, route: Route, tally: Tally, user: int, requests: Sequence[Ask], rest_s: float
) -> None:
    """Send one user's requests when they are due. ``rest_s``: the least pause that is a rest."""
    began = time.monotonic()
    for ask in requests:
        await asyncio.sleep(max(0.0, began + ask.after_s - time.monotonic()))
        hints = EditorHints(route=route, session=f"user {user}", document="document", path=f"{user}.py")
        body = CompletionBody(prompt=ask.prefix, suffix=ask.suffix, fimserver=hints)
        rests = ask.pause_s >= rest_s
        tally.asked += 1
        tally.rests += rests
        sent = time.monotonic()
        try:
            async with asyncio.timeout(max(0.01, began + ask.until_s - sent)):
                answer = await client.complete(body, deadline_s=sent + DEADLINE_S, asked=False)
        except TimeoutError:
            tally.others["given up"] += 1
            continue
        middle = answer.middles[0] if answer.middles else None
        tally.tokens += middle.usage.tokens if middle else 0
        if middle and middle.text:
            tally.ms.append(1000 * (time.monotonic() - sent))
            tally.at_rests += rests
        else:
            tally.others[middle.usage.reason if middle else answer.reason or Reason.FAILED] += 1


async def play(
    at: Address, traces: Sequence[Sequence[Ask]], users: int, seconds: float, rest_s: float
) -> Tally:
    """All users at once on one host."""
    tally = Tally()
    clients = [open_host_client(at.url, at.token, _own) for _ in range(users)]
    began = time.monotonic()
    try:
        async with asyncio.TaskGroup() as group:
            for user, client in enumerate(clients):
                own = list(share(traces[user % len(traces)], user, users, seconds))
                group.create_task(type_on(client, at.route, tally, user, own, rest_s))
    finally:
        for client in clients:
            await client.close()
    tally.seconds = time.monotonic() - began
    return tally


def _own() -> NoReturn:
    raise RuntimeError("a host elsewhere is asked")


@contextmanager
def host(card: str, route: Route, batch: int, folder: str) -> Iterator[Address]:
    """A host with one model on one route."""
    token = secrets.token_urlsafe(12)
    env = os.environ | {"FIMSERVER_TOKEN": token, "XDG_RUNTIME_DIR": folder, "XDG_DATA_HOME": folder}
    models = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "fimserver/models"
    env.setdefault("FIMSERVER_MODELS_DIR", str(models))
    command = [sys.executable, "-m", "fimserver.cli", "serve", "--listen", "127.0.0.1:0"]
    command += ["--model", route, f"--{route}-card", card, "--batch", str(batch)]
    log = Path(folder) / f"{batch}.log"
    with log.open("w") as out, subprocess.Popen(command, env=env, stdout=out, stderr=out) as process:
        try:
            yield Address(_url(log, process), token, route)
        finally:
            process.terminate()


def _url(log: Path, process: subprocess.Popen[bytes]) -> str:
    """The URL that a host has printed."""
    until = time.monotonic() + READY_S
    while time.monotonic() < until and process.poll() is None:
        for word in log.read_text().split():
            if word.startswith("http://127.0.0.1:"):
                return word.strip(".,")
        time.sleep(POLL_S)
    raise RuntimeError(f"the host did not start:\n{log.read_text()}")


async def ready(at: Address) -> None:
    """Return when the host's model is loaded."""
    client = open_host_client(at.url, at.token, _own)
    until = time.monotonic() + READY_S
    while (health := await client.health()).reason is not None:
        if time.monotonic() > until:
            raise RuntimeError(f"the host did not become ready: {health.reason} {health.message}")
        await asyncio.sleep(POLL_S)
    await client.close()


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of users, arm and tallies; arms take turns within every round."""
    traces = [asks(read_trace(path), args.slower) for path in args.traces]
    totals: dict[tuple[int, int], Tally] = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        hosts = {
            batch: stack.enter_context(host(args.card, args.route, batch, folder)) for batch in args.batches
        }
        for at in hosts.values():
            asyncio.run(ready(at))
            asyncio.run(play(at, traces, 1, min(2.0, args.seconds), args.rest))  # counts for nothing
        for turn in range(args.rounds):
            for users in args.users:
                for batch in args.batches if turn % 2 == 0 else args.batches[::-1]:
                    found = asyncio.run(play(hosts[batch], traces, users, args.seconds, args.rest))
                    add(totals.setdefault((users, batch), Tally()), found)
                    print(line(users, batch, totals[users, batch]), flush=True)
    return [{"users": users, "batch": batch, **tally.row()} for (users, batch), tally in totals.items()]


def add(total: Tally, more: Tally) -> None:
    """Count one round more."""
    total.asked += more.asked
    total.rests += more.rests
    total.at_rests += more.at_rests
    total.tokens += more.tokens
    total.seconds += more.seconds
    total.ms += more.ms
    total.others += more.others


def line(users: int, batch: int, tally: Tally) -> str:
    """One row of the table in Markdown."""
    row = tally.row()
    return (
        f"| {users} | {NAMES.get(batch, f'batch {batch}')} | {row['asked']} | {row['in_time']:.0%} |"
        f" {row['at_rests']:.0%} of {row['rests']} | {row['p50_ms']} | {row['p95_ms']} |"
        f" {row['tokens_s']} | {row['others']} |"
    )


def replicas(
    rows: Sequence[dict[str, Any]], people: int, typing: float, use: float, by: str = "in_time"
) -> int:
    """Replicas that ``people`` need, ``typing`` of whom type at a moment, each replica in ``use``.

    A replica carries the most users at whom it still showed ``KEPT`` of what one user was shown in time, or,
    ``by`` "at_rests", at rests. Raises ``ValueError`` where one user alone was shown nothing.
    """
    shown = {row["users"]: row[by] for row in rows if row["batch"] != 1}
    if not shown.get(1):
        raise ValueError("one user alone, with a batch, was shown nothing in time")
    carried = max(users for users, share in shown.items() if share >= KEPT * shown[1])
    return math.ceil(people * typing / (carried * use))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--card", default="nano")
    parser.add_argument("--route", choices=ROUTES, default="ar")
    parser.add_argument("--users", type=int, nargs="+", default=[1, 5, 20, 50])
    parser.add_argument("--seconds", type=float, default=20.0, help="of typing, for each arm and round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 0], help="a host for each")
    parser.add_argument("--traces", type=Path, nargs="+", default=sorted(TRACES.glob("*.jsonl")))
    parser.add_argument(
        "--slower", type=float, default=1.0, help="times between keys, by those of the traces"
    )
    parser.add_argument("--rest", type=float, default=0.5, help="seconds without a key that are a rest")
    parser.add_argument(
        "--by", choices=("in_time", "at_rests"), default="in_time", help="what the plan keeps up"
    )
    parser.add_argument("--people", type=int, default=10_000, help="to plan for")
    parser.add_argument("--typing", type=float, default=0.1, help="share of them that types at a moment")
    parser.add_argument("--use", type=float, default=0.6, help="share of a replica that is planned for")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    print("| users | service | asked | shown in time | at rests | p50 ms | p95 ms | tokens/s | others |")
    print("| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |")
    rows = measure(args)
    if 1 in args.users and any(batch != 1 for batch in args.batches):
        try:
            count = replicas(rows, args.people, args.typing, args.use, args.by)
        except ValueError as error:
            print(f"no plan: {error}")
        else:
            print(f"{args.people} people, {args.typing:.0%} typing, {args.use:.0%} in use: {count} replicas")
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
