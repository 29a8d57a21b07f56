"""Run by test_multiprocess.py, once in each process of a job: trains a tiny model on scenes.

python multiprocess_check.py WORKDIR ADDRESS PROCESSES INDEX DEVICES SECONDS [BREAK]: every batch takes this many
SECONDS longer; with BREAK the data of this process fails at its third batch.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny import CONV, SHALLOW

from edgesam_jax.checkpoints.model import Model
from edgesam_jax.checkpoints.save import save_model_file
from edgesam_jax.config import (
    Config,
    DataConfig,
    DistillConfig,
    EvalConfig,
    OptimConfig,
    TrainConfig,
    UsageError,
    to_json,
)
from edgesam_jax.data.pipeline import BatchSource, Loaded
from edgesam_jax.train import __main__ as train

STEPS = 8


def config(workdir: Path) -> Config:
    """Stage 2 with one loop; photos of one global batch differ in what they show."""
    return Config(
        model=SHALLOW,
        teacher=str(workdir.parent / "teacher.msgpack"),
        data=DataConfig(batch_size=4, max_prompts=3),
        distill=DistillConfig(rounds=1, min_disagreement=1),
        optim=OptimConfig(learning_rate=1e-2, eps=1e-1, schedule="constant", clip_norm=5.0),
        train=TrainConfig(steps=STEPS, log_every=1, picture_every=8, checkpoint_every=4),
        eval=EvalConfig(images=0),
    )


def prepare(folder: Path) -> None:
    """The teacher and the config file that all runs share."""
    from edgesam_jax.models.init import init_variables

    save_model_file(folder / "teacher.msgpack", Model(CONV, init_variables(CONV, 1)))
    (folder / "config.json").write_text(to_json(config(folder / "x")))


def main() -> int:
    workdir, address, processes, index, devices, seconds, *broken = sys.argv[1:]
    original = BatchSource.__getitem__

    def batch(self: BatchSource, step: int) -> Loaded:
        time.sleep(float(seconds))
        if broken and step == 2:
            raise UsageError("the disk of this host is gone")
        return original(self, step)

    BatchSource.__getitem__ = batch
    arguments = ["--config", str(Path(workdir).parent / "config.json"), "--workdir", workdir]
    if int(processes) > 1:
        arguments += ["--coordinator", address, "--processes", processes, "--process", index]
    return train.main([*arguments, "--set", f"train.devices={devices}"])


if __name__ == "__main__":
    sys.exit(main())
