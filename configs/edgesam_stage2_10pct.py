"""Stage 2 on 10 % of SA-1B: 100 tars of about 11,000 photos each.

5 epochs as with 1 %, so the steps are 10 times as many.
The tars are those of 1 % and the 90 that follow; sa_000130 stays out, for validation.
"""

from dataclasses import replace
from pathlib import Path

from edgesam_jax.config import Config, load_config

TIMES, TARS = 10, "sa_000020..sa_000119"


def get_config() -> Config:
    """Stage 2 of 1 %, longer."""
    base = load_config(Path(__file__).with_name("edgesam_stage2.py"))
    return replace(
        base,
        name="edgesam_stage2_10pct",
        data=replace(base.data, subset=(TARS,)),
        train=replace(base.train, steps=TIMES * base.train.steps, init_from="runs/edgesam_stage1_10pct"),
    )
