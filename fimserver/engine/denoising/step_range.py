"""Keeps a schedule within the range of steps that a model was trained for.

A model that was trained to fill its canvas in a given number of steps (as those distilled for parallel
decoding are) has never seen a canvas that was filled faster.
"""

from __future__ import annotations

from fimserver.engine.denoising.schedules import Commit, DenoisingStep, Schedule


def within_steps(schedule: Schedule, least: int = 0, most: int = 0) -> Schedule:
    """Return the schedule with ``least`` to ``most`` steps per canvas; 0: no limit.

    A step commits the schedule's slots, but at most and at least an even share of the masked ones over the
    steps that are left; missing slots are the likeliest ones. A canvas of fewer slots than ``least`` has a
    step for each. An end token that also fills the masked slots to its right may end a canvas earlier.
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
    """Return the slots of a step if ``masked`` ones are filled evenly in ``steps`` steps, at least one."""
    return -(-masked // max(1, steps))


def _likeliest(step: DenoisingStep, but: list[int]) -> list[int]:
    """Return the slots that may take their token now, by falling probability, without those in ``but``."""
    probability = step.proposals.probability
    order = sorted(range(len(probability)), key=probability.__getitem__, reverse=True)
    return [slot for slot in (step.slots[row] for row in order) if slot not in but]
