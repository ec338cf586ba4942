"""Trained range of steps: a schedule that fills a canvas in no fewer and no more steps than its model knows.

A model that was trained to fill its canvas in so many steps (as those distilled for parallel decoding are)
has never seen a canvas that was filled faster.
"""

from __future__ import annotations

from fimserver.engine.denoising.schedules import Commit, DenoisingStep, Schedule


def within_steps(schedule: Schedule, least: int = 0, most: int = 0) -> Schedule:
    """The same schedule with ``least`` to ``most`` steps for a canvas; 0: no limit.

    A step commits the schedule's first slots up to an even share of the masked ones, and at least such a
    share of them, the likeliest first. A canvas of fewer slots than ``least`` has a step for each. An end
    token that takes all masked slots to its right along may end a canvas earlier.
    """
    if not least and not most:
        return schedule

    def commit(step: DenoisingStep) -> Commit:
        chosen = schedule(step)
        masked = len(step.masked)
        fill = list(chosen.fill)
        if most:
            fill += _likeliest(step, fill)[: max(0, _share(masked, most - step.index) - len(fill))]
        if least:
            fill = fill[: _share(masked, least - step.index)]
        return Commit(fill, chosen.remask)

    return commit


def _share(masked: int, steps: int) -> int:
    """Slots of each of so many steps that are left, at least one of which is left."""
    return -(-masked // max(1, steps))


def _likeliest(step: DenoisingStep, but: list[int]) -> list[int]:
    """Slots that may take their token now, by falling probability, without some."""
    probability = step.proposals.probability
    order = sorted(range(len(probability)), key=probability.__getitem__, reverse=True)
    return [slot for slot in (step.slots[row] for row in order) if slot not in but]
