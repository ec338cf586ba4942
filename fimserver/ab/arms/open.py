"""Opening of both arms of a comparison: engines in this process, or hosts by their URLs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fimserver.ab.arms.arm import ArmSpec, Runner, read_spec
from fimserver.settings import ENGINE_SETTINGS, Settings, read_settings

if TYPE_CHECKING:
    from fimserver.engine.engines import ModelPool


def open_arms(texts: tuple[str, str], flags: dict[str, Any]) -> tuple[Runner, Runner]:
    """Both arms; models that both can use are loaded once. Raises ``FimError``."""
    shared: list[ModelPool] = []
    first, second = (_open(read_spec(text), flags, shared) for text in texts)
    return first, second


def _open(spec: ArmSpec, flags: dict[str, Any], shared: list[ModelPool]) -> Runner:
    settings = read_settings(**flags | spec.changes)
    if spec.url:
        # The HTTP library is imported where an arm is remote.
        from fimserver.ab.arms.remote import RemoteArm  # noqa: PLC0415

        return RemoteArm(spec.text, spec.url, settings)
    from fimserver.ab.arms.local import LocalArm  # noqa: PLC0415 - torch, where an arm is local
    from fimserver.engine.engines import ModelPool  # noqa: PLC0415

    models = next((models for models in shared if _same_host(models.settings, settings)), None)
    if models is None:
        models = ModelPool(settings, shares=shared)
        shared.append(models)
    return LocalArm(spec.text, settings, models)


def _same_host(one: Settings, other: Settings) -> bool:
    return all(getattr(one, name) == getattr(other, name) for name in ENGINE_SETTINGS)
