"""Deployment of several replicas: settings, token, allowed hosts and scale, and the file for Ray Serve."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from fimserver.cards import get_card, is_place
from fimserver.errors import InputError, first_problem
from fimserver.host.http.auth import allowed_name
from fimserver.host.http.second_try import RAY_VALUE, RAY_VARIABLE
from fimserver.host.sockets import LOOPBACK
from fimserver.settings import Settings, read_settings
from fimserver.types import ROUTES

TOKEN_VARIABLE = "FIMSERVER_TOKEN"  # noqa: S105 - the name of a variable
FULL = 4  # a replica takes this many times the queue that scaling aims at; then others take over
FULL_CLUSTER = 64  # requests that wait where all replicas are full; more are refused at once

TEMPLATE = """\
# fimserver on Ray Serve. On this machine: `serve run {path}`; on a Ray cluster: `serve deploy {path}`;
# on Kubernetes, all of it is `serveConfigV2` of a RayService (docs/deploy.md). Requests of a replica that
# dies are asked again where this variable is set before `serve run` or `ray start`:
#   export {variable}={value}

# Where each machine listens. Clients use http://MACHINE:{port}, as an editor's --connect.
proxy_location: EveryNode
http_options:
  host: {host}
  port: {port}

applications:
  - name: fimserver
    route_prefix: /
    import_path: fimserver.deploy:app

    args:
{token}
      # Names by which clients call the machines. Loopback is always one of them.
      allow_hosts: {hosts}

      # As in config.toml. A change is rolled out replica by replica, without an answer lost.
      settings: {settings}

    deployments:
      - name: fimserver
        # Devices of one replica. 0: a machine without a GPU. CPUs: what its threads use.
        ray_actor_options:
          num_gpus: {gpus:g}
          num_cpus: 1

        # Replicas are added while more requests than this run or wait on each, on average; removed below it.
        autoscaling_config:
          min_replicas: {low}
          max_replicas: {high}
          target_ongoing_requests: {queue}
          upscale_delay_s: 10
          downscale_delay_s: 300

        # A document stays on its replica until that has so many requests; then the next takes over.
        max_ongoing_requests: {full}
        # Where all are full, so many wait; further ones are refused at once (reason: overloaded).
        max_queued_requests: {waiting}
"""

FROM_VARIABLE = """\
      # The token is the variable FIMSERVER_TOKEN of `serve run`, or of `ray start` on every machine.
      # token_file: /run/secrets/fimserver-token  # a file with it instead, on every machine"""

FROM_FILE = """\
      # The file that has the token, on every machine.
      token_file: {}"""


@dataclass(frozen=True)
class Scale:
    """Number of replicas, and their devices. ``queue``: target of ongoing requests per replica."""

    min_replicas: int = 1
    max_replicas: int = 4
    queue: int = 4
    gpus: float = 0.0  # of one replica

    def checked(self) -> Scale:
        """Return the scale. Raises ``InputError`` if the minimum is above the maximum."""
        if self.min_replicas > self.max_replicas:
            raise InputError(
                f"--min-replicas {self.min_replicas} is more than --max-replicas {self.max_replicas}"
            )
        return self


@dataclass(frozen=True)
class Deployment:
    """Settings that are served, and who may use them."""

    settings: Settings
    token: str = field(repr=False)
    allowed_hosts: frozenset[str]


class Arguments(BaseModel):
    """``args`` of an application in a Serve file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    token_file: Path | None = None
    allow_hosts: tuple[str, ...] = ()
    settings: dict[str, Any] = {}


def deployment_of(args: Mapping[str, Any]) -> Deployment:
    """Read ``args``. Raises ``InputError`` for a wrong argument or a missing token."""
    try:
        given = Arguments(**args)
    except ValidationError as error:
        raise InputError(f"args of the deployment: {first_problem(error, 'args')}") from None
    return Deployment(checked(given.settings), _token(given.token_file), allowed(given.allow_hosts))


def checked(settings: Mapping[str, Any]) -> Settings:
    """Settings with these values. Raises ``InputError``, and ``CardError`` for an unknown card."""
    if "token" in settings:
        raise InputError(f"the token is not written into settings: set {TOKEN_VARIABLE}, or give token_file")
    return known(read_settings(**settings))


def known(settings: Settings) -> Settings:
    """Return the settings. Raises ``CardError`` if they name an unknown card."""
    for route in ROUTES:
        if (name := settings.card(route)) and not is_place(name):
            get_card(name)
    return settings


def allowed(names: tuple[str, ...]) -> frozenset[str]:
    """Names of machines as a Host header has them, and those of loopback. Raises ``InputError``."""
    return LOOPBACK | frozenset(map(allowed_name, names))


def _token(path: Path | None) -> str:
    if path is None:
        if not (token := read_settings().token):
            raise InputError(f"set {TOKEN_VARIABLE}, or give token_file: a deployment is reached over TCP")
        return token
    try:
        token = path.expanduser().read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"token_file {path}: {getattr(error, 'strerror', None) or 'no text'}") from None
    if not token:
        raise InputError(f"token_file {path} is empty: write a token into it")
    return read_settings(token=token).token


def serve_file(
    path: str,
    scale: Scale,
    address: tuple[str, int],
    *,
    settings: Mapping[str, Any],
    hosts: tuple[str, ...] = (),
    token_file: Path | None = None,
) -> str:
    """Return a commented file for Ray Serve. Raises ``InputError`` for values that a deployment refuses."""
    checked(settings)
    allowed(hosts)
    scale.checked()
    return TEMPLATE.format(
        path="".join(c if c.isprintable() else "?" for c in path),  # of a comment, so of one line
        host=json.dumps(address[0]),
        port=address[1],
        token=FROM_FILE.format(json.dumps(str(token_file))) if token_file else FROM_VARIABLE,
        hosts=json.dumps(list(hosts)),
        settings=json.dumps(dict(settings)),
        gpus=scale.gpus,
        low=scale.min_replicas,
        high=scale.max_replicas,
        queue=scale.queue,
        full=FULL * scale.queue,
        waiting=FULL_CLUSTER,
        variable=RAY_VARIABLE,
        value=RAY_VALUE,
    )
