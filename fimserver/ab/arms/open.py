"""Opens the arms of a comparison: engines in this process, or remote hosts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fimserver.ab.arms.arm import ArmSpec, Runner, read_spec
from fimserver.errors import FimError, OtherServerError
from fimserver.settings import ENGINE_SETTINGS, Settings, read_settings
from fimserver.types import Deadline

if TYPE_CHECKING:
    from fimserver.engine.engines import ModelPool


def open_arms(texts: tuple[str, str], flags: dict[str, Any]) -> tuple[Runner, Runner]:
    """Open both arms; models that both use are loaded once. Raises ``FimError``."""
    shared: list[ModelPool] = []
    first, second = (_open(read_spec(text), flags, shared) for text in texts)
    return first, second


def _open(spec: ArmSpec, flags: dict[str, Any], shared: list[ModelPool]) -> Runner:
    settings = read_settings(**flags | spec.changes)
    if spec.url:
        from fimserver.ab.arms.remote import RemoteArm  # noqa: PLC0415 - the HTTP library

        try:
            return RemoteArm(spec.text, spec.url, settings)
        except OtherServerError as error:
            settings = _of_other_server(spec, flags, error)
    from fimserver.ab.arms.local import LocalArm  # noqa: PLC0415 - torch
    from fimserver.engine.engines import ModelPool  # noqa: PLC0415

    models = next((models for models in shared if _same_host(models.settings, settings)), None)
    if models is None:
        models = ModelPool(settings, shares=shared)
        shared.append(models)
    return LocalArm(spec.text, settings, models)


def _of_other_server(spec: ArmSpec, flags: dict[str, Any], error: OtherServerError) -> Settings:
    """Return settings of a remote engine that speaks the server's own dialect.

    Raises ``error`` if the dialect is not supported.
    """
    from fimserver.engine.remote.card import card_of_url  # noqa: PLC0415
    from fimserver.engine.remote.engine import RemoteEngine  # noqa: PLC0415

    try:
        RemoteEngine(card_of_url(spec.url, "ar"), "ar").server(Deadline())
    except FimError:
        raise error from None
    return read_settings(**flags | spec.changes | {"ar_card": spec.url, "model": "ar"})


def _same_host(one: Settings, other: Settings) -> bool:
    return all(getattr(one, name) == getattr(other, name) for name in ENGINE_SETTINGS)
