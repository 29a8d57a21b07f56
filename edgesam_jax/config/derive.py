"""Derive configs from another config: for a phase of a run, and for an arm of a study."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

from edgesam_jax.config.parse import apply_overrides
from edgesam_jax.config.schema import ArmConfig, Config
from edgesam_jax.portable.errors import UsageError


class Length(NamedTuple):
    """Measured or estimated length of a run: optimiser steps, and seconds spent in them."""

    steps: int
    seconds: float


def phase(config: Config, step: int) -> Config:
    """Return the config in effect at a step: the prompt loop may start late, and the grouping loss stop early.

    The number of rounds is part of the compiled program, hence one compilation per phase.
    """
    distill, fraction = config.distill, step / config.train.steps
    if fraction < distill.rounds_from:
        distill = dataclasses.replace(distill, rounds=0, mask_feedback=0.0)
    if fraction >= distill.loss.grouping_until:
        distill = dataclasses.replace(distill, loss=dataclasses.replace(distill.loss, grouping=0.0))
    return dataclasses.replace(config, distill=distill)


def arm_config(config: Config, arm: ArmConfig, earlier: Mapping[str, Length]) -> Config:
    """Return the config of one arm: the study's, with the arm's overrides, start and length.

    With ``time_from``, the number of steps is that which fits into the time of the named arms together, at the rate of
    the first of them.  That arm must have the same kind of step.

    Args:
      config: the study's.
      arm: the arm to configure.
      earlier: lengths of the arms before it, by name.

    Raises:
      UsageError: the arm refers to an arm that isn't in ``earlier``, or an override is wrong.
    """
    for name in (arm.init_from, *arm.time_from):
        if name and name not in earlier:
            raise UsageError(f"study: arm {arm.name!r} needs arm {name!r}, which must come before it in the study")
    derived = apply_overrides(dataclasses.replace(config, study=(), name=f"{config.name}-{arm.name}"), arm.overrides)
    train = derived.train
    if arm.init_from:
        train = dataclasses.replace(train, init_from=f"../{arm.init_from}/model")
    if arm.time_from:
        total = sum(earlier[name].seconds for name in arm.time_from)
        first = earlier[arm.time_from[0]]
        train = dataclasses.replace(train, steps=max(1, round(first.steps * total / max(first.seconds, 1e-9))))
    return dataclasses.replace(derived, train=train)


def started(config: Config) -> Config:
    """Return a study without the arms that ``train.init_from`` stands for; what starts from them starts from it.

    Without ``train.init_from``, and without such arms, the config is returned as it is.
    """
    given = {arm.name for arm in config.study if arm.start} if config.train.init_from else set()
    arms = (arm for arm in config.study if arm.name not in given)
    study = tuple(dataclasses.replace(arm, init_from="") if arm.init_from in given else arm for arm in arms)
    return dataclasses.replace(config, study=study)
