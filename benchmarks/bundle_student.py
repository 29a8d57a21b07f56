"""Write the package's tiny student from a finished stage 1: the encoder alone, in float16.

    python -m benchmarks.bundle_student runs/tiny_student/S8000 [--output edgesam_jax/assets/tiny_student.msgpack]

The decoder of stage 1 is the teacher's, unchanged, and ``load_model("tiny_student")`` takes it from the teacher's file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from edgesam_jax.checkpoints.load import ASSETS, ENCODER, TINY_STUDENT, load_model
from edgesam_jax.checkpoints.model import Model
from edgesam_jax.checkpoints.save import save_model_file


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run of configs/tiny_student.py")
    parser.add_argument("--output", type=Path, default=ASSETS / f"{TINY_STUDENT}.msgpack")
    arguments = parser.parse_args()
    model = load_model(arguments.run)
    encoder = {
        kind: {part: leaves for part, leaves in tree.items() if part == ENCODER}
        for kind, tree in model.variables.items()
    }
    steps = json.loads((arguments.run / "run.json").read_text())["steps"]
    metadata = {"source": f"configs/tiny_student.py, {steps} steps of stage 1", "score": "stability"}
    path = save_model_file(arguments.output, Model(model.config, encoder, metadata), np.float16)
    print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
