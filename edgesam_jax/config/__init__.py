"""Experiment configuration: frozen dataclasses, typed overrides, a JSON round trip.

Uses the standard library alone, so data workers and command lines can read a config without importing JAX.  Two
modules are imported by name: ``rules`` checks a config, ``derive`` makes one config from another.
"""

from edgesam_jax.config.parse import apply_overrides, from_json, load_config, to_json
from edgesam_jax.config.rules import check_values
from edgesam_jax.config.schema import (
    STUDENTS,
    ArmConfig,
    AugmentConfig,
    Config,
    ConvEncoderConfig,
    DataConfig,
    DecoderConfig,
    DistillConfig,
    EfficientVitConfig,
    EncoderConfig,
    EvalConfig,
    LossConfig,
    MixtureConfig,
    OptimConfig,
    PlainVitConfig,
    ProposalConfig,
    RepVitConfig,
    SamConfig,
    SourceName,
    TinyVitConfig,
    TrainConfig,
    VitConfig,
)
from edgesam_jax.portable.errors import UsageError

__all__ = [
    "STUDENTS",
    "ArmConfig",
    "AugmentConfig",
    "Config",
    "ConvEncoderConfig",
    "DataConfig",
    "DecoderConfig",
    "DistillConfig",
    "EfficientVitConfig",
    "EncoderConfig",
    "EvalConfig",
    "LossConfig",
    "MixtureConfig",
    "OptimConfig",
    "PlainVitConfig",
    "ProposalConfig",
    "RepVitConfig",
    "SamConfig",
    "SourceName",
    "TinyVitConfig",
    "TrainConfig",
    "UsageError",
    "VitConfig",
    "apply_overrides",
    "check_values",
    "from_json",
    "load_config",
    "to_json",
]
