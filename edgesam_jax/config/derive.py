"""Configs that follow from another one: of a phase of the run, and of an arm of a study."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

from edgesam_jax.config.parse import apply_overrides
from edgesam_jax.config.schema import ArmConfig, Config
from edgesam_jax.portable.errors import UsageError


class Length(NamedTuple):
    """How long a run took, or is estimated to take: optimiser steps, and seconds spent in them."""

    steps: int
    seconds: float


def phase(config: Config, step: int) -> Config:
    """The config as it stands at a step: the prompt loop may start late, the grouping loss may stop early.

    The loop's number of rounds is part of the compiled program, so each phase is compiled once.
    """
    distill, share = config.distill, step / config.train.steps
    if share < distill.rounds_from:
        distill = dataclasses.replace(distill, rounds=0, mask_feedback=0.0)
    if share >= distill.loss.grouping_until:
        distill = dataclasses.replace(distill, loss=dataclasses.replace(distill.loss, grouping=0.0))
    return dataclasses.replace(config, distill=distill)


def arm_config(config: Config, arm: ArmConfig, earlier: Mapping[str, Length]) -> Config:
    """The config of one arm: the study's with the arm's overrides, start and length.

    With ``time_from`` the number of steps is what fits into the time that the named arms took together, at the rate of
    the first of them, which must do the same kind of step.

    Raises:
      UsageError: an arm that names one which does not come before it, or a wrong override.
    """
    for name in (arm.init_from, *arm.time_from):
        if name and name not in earlier:
            raise UsageError(f"study: arm {arm.name!r} needs arm {name!r}, which does not come before it")
    own = apply_overrides(dataclasses.replace(config, study=(), name=f"{config.name}-{arm.name}"), arm.overrides)
    train = own.train
    if arm.init_from:
        train = dataclasses.replace(train, init_from=f"../{arm.init_from}/model")
    if arm.time_from:
        total = sum(earlier[name].seconds for name in arm.time_from)
        first = earlier[arm.time_from[0]]
        train = dataclasses.replace(train, steps=max(1, round(first.steps * total / max(first.seconds, 1e-9))))
    return dataclasses.replace(own, train=train)
