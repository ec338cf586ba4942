"""Prefetch: while the host is idle, requests what would follow the shown suggestion if it were accepted."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

from fimserver.front.context.prompt_context import PromptContext
from fimserver.front.documents.mirror import Position, Snapshot, split_lines
from fimserver.front.host_client import HostClient
from fimserver.front.memory import Key, Memory
from fimserver.front.outcome import Suggestion
from fimserver.front.request import CompletionRequest, completion_body
from fimserver.front.shown import filtered

AFTER_S = 0.02  # the suggestion itself is sent first
MAX_CHARS = 400  # a longer suggestion is not followed up


async def prefetch(
    request: CompletionRequest, context: PromptContext, shown: Suggestion, memory: Memory, host: HostClient
) -> None:
    """Request and remember what comes after ``shown``, an insertion at the cursor."""
    await asyncio.sleep(AFTER_S)
    snapshot = accepted(request.snapshot, shown)
    follow_up = replace(request, snapshot=snapshot, received_s=time.monotonic(), rejected=frozenset())
    replaced = shown.end.column - request.snapshot.place.column
    after = replace(
        context,
        prefix=context.prefix + shown.text,
        # The suffix does not contain the stripped text.
        suffix=context.suffix[max(0, replaced - len(context.stripped)) :],
        typed_chars=context.typed_chars + len(shown.text),
    )
    key = Key(request.uri, request.route, after.suffix, after.prefix)
    if memory.recall(key):
        return
    body = completion_body(follow_up, after)
    idle = body.model_copy(update={"fimserver": body.fimserver.model_copy(update={"idle": True})})
    answer = await host.complete(idle, deadline_s=follow_up.deadline_s, asked=False)
    middles, _ = filtered(follow_up, answer)
    if middles:
        memory.remember(key, middles)


def accepted(snapshot: Snapshot, shown: Suggestion) -> Snapshot:
    """Return the snapshot as it would be with the suggestion accepted and the cursor after it."""
    first = shown.start.line
    last = shown.end.line
    left = snapshot.lines[first][: shown.start.column]
    new = split_lines(left + shown.text + snapshot.lines[last][shown.end.column :])
    if last + 1 < len(snapshot.lines) and new[-1] == "":
        new.pop()  # the line's own end
    inserted = shown.text.split("\n")
    column = len(inserted[-1]) + (shown.start.column if len(inserted) == 1 else 0)
    lines = [*snapshot.lines[:first], *new, *snapshot.lines[last + 1 :]]
    return replace(snapshot, lines=lines, place=Position(first + len(inserted) - 1, column))
