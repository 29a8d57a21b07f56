"""The quickstart's comparison from a longer stage 1, about a quarter of an hour on two cores.

::

    python -m edgesam_jax.train --config configs/quickstart_saturated.py --workdir runs/quickstart_saturated

In the quickstart's ten minutes stage 1 still improves fast enough that nothing beats more of it.  The paper's stage 2
starts where stage 1 has stopped improving; this config trains stage 1 for several times as many steps first.

Expected: box mIoU near 76 (A), 77 (B), 78 (C) and 78 (D) percent against ground truth (``docs/results.md``).
"""

from dataclasses import replace
from pathlib import Path

from edgesam_jax.config import Config, load_config


def get_config() -> Config:
    """Arm A has 2,000 steps; C and D continue from A for 300; B takes the time of A and D together."""
    base = load_config(Path(__file__).with_name("quickstart.py"))
    arms = [replace(arm, overrides=(*arm.overrides, "train.steps=300")) if arm.init_from else arm for arm in base.study]
    return replace(
        base,
        name="quickstart_saturated",
        train=replace(base.train, steps=2000, log_every=50, picture_every=300, checkpoint_every=500),
        study=tuple(arms),
    )
