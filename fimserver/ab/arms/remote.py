"""Remote arm: a host that is asked over HTTP."""

from __future__ import annotations

from fimserver.ab.arms.arm import REQUEST_SETTINGS, ArmAnswer, answer_of, body_of
from fimserver.ab.items.spans import Span
from fimserver.ab.schema import Arm
from fimserver.commands.complete import timed
from fimserver.commands.remote_host import RemoteHost
from fimserver.settings import Settings


class RemoteArm:
    """A remote host. Its caches cannot be cleared: an item of an earlier run may be warm."""

    def __init__(self, spec: str, url: str, settings: Settings) -> None:
        self._settings = settings
        self._host = RemoteHost(url, settings.token)
        sent = settings.model_dump(mode="json", include={*REQUEST_SETTINGS})
        self.arm = Arm(spec=spec, models=self._host.models, version=self._host.version, settings=sent)

    def fill(self, span: Span, *, warm: bool) -> ArmAnswer:
        body = body_of(span, self._settings, session="ab")
        if warm:
            for _ in self._host.stream(body.model_copy(update={"max_tokens": 0})):
                pass
        return answer_of(timed(self._host.stream(body)))

    # Whether a host goes on working after a cancellation cannot be observed.
    def cancel_ms(self, span: Span, after_ms: float) -> float | None:  # noqa: ARG002
        return None

    def close(self) -> None:
        self._host.close()
