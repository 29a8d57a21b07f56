"""Stage 1 of the quickstart's student at growing lengths: the start that ships with the package, and how it was chosen.

::

    python -m edgesam_jax.train --config configs/tiny_student.py --workdir runs/tiny_student

Each arm is a run of its own from the same random weights, with a learning rate that falls to its end.  The table shows
when more of stage 1 stops paying (``docs/results.md``); ``benchmarks/bundle_student.py`` makes the package's file from
one of the runs.
"""

from dataclasses import replace
from pathlib import Path

from edgesam_jax.config import ArmConfig, Config, load_config

LENGTHS = (1000, 2000, 4000, 8000)


def get_config() -> Config:
    """One arm for each length."""
    base = load_config(Path(__file__).with_name("quickstart.py"))
    arms = (
        ArmConfig(
            f"S{steps}", f"stage 1, {steps} steps", overrides=("distill.mode=encoder_only", f"train.steps={steps}")
        )
        for steps in LENGTHS
    )
    train = replace(base.train, init_from="", log_every=50, picture_every=0, checkpoint_every=500)
    return replace(base, name="tiny_student", train=train, eval=replace(base.eval, images=200), study=tuple(arms))
