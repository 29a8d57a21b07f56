"""Granularity priors in miniature: the tiny teacher's proposal network learns parts of scenes (docs/priors.md)."""

from dataclasses import replace
from pathlib import Path

from edgesam_jax.config import Config, load_config


def get_config() -> Config:
    """As for whole objects."""
    base = load_config(Path(__file__).with_name("proposals_scenes_objects.py"))
    return replace(base, name="proposals_scenes_parts", data=replace(base.data, scene_granularity="parts"))
