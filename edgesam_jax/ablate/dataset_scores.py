"""Score a run on annotated photos, as ``python -m edgesam_jax.eval`` does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import jax

from edgesam_jax.ablate.grid import Scorer, Scores
from edgesam_jax.checkpoints.model import Model
from edgesam_jax.config import DataConfig, EvalConfig
from edgesam_jax.data.opening import kind_of_folder, open_source
from edgesam_jax.eval.job import Job
from edgesam_jax.eval.scoring.protocol import Settings
from edgesam_jax.eval.scoring.systems import JaxSystem

SA_1K = 64  # instances drawn per photo of SA-1B (docs/published_code.md, "Evaluation")


def on_photos(config: EvalConfig, sets: Mapping[str, str]) -> Scorer:
    """Return a scorer on data sets.  It keeps the rows of finished photos in the run's folder, to resume from them.

    Args:
      config: ``images`` photos of each data set are scored; 0: all.
      sets: folders, by the name of the data set ("coco", "lvis", "sa1b").
    """

    def score(model: Model, folder: Path) -> Scores:
        scores: Scores = {}
        system = JaxSystem(folder.name, model, devices=jax.local_devices())
        for name, root in sets.items():
            scores[name] = {}
            for prompt in ("box", "center"):
                most = SA_1K if name == "sa1b" else 0
                settings = Settings(prompt=prompt, refine=config.refine, seed=config.seed, max_instances=most)
                job = Job(settings, name, root, prompt, at_once=config.batch_size, boundary=False)
                kind = kind_of_folder(root) if name == "sa1b" else "coco"
                job.open(open_source(DataConfig(source=kind, root=root, limit=config.images), 0, "heldout"))
                report = job.score(system, folder / f"eval_{name}_{prompt}")
                assert report is not None  # None only for one part of several
                scores[name][prompt] = report["miou"]
        return scores

    return score
