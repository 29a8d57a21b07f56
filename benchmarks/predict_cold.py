"""The time of the predict command from a cold start to the picture, without and with the compilation cache.

    python -m benchmarks.predict_cold --image PHOTO --box X0,Y0,X1,Y1 [--checkpoint FILE] [--runs 3]

Each run is a separate process.  The first starts with an empty cache; the goal is that the others take at most half as
long.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", required=True, metavar="PHOTO")
    parser.add_argument("--box", required=True, metavar="X0,Y0,X1,Y1")
    parser.add_argument("--checkpoint", default="tiny_teacher")
    parser.add_argument("--runs", type=int, default=3, help="number of runs, including the first")
    args = parser.parse_args()
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"EDGESAM_JAX_CACHE": f"{folder}/cache"}
        flags = ["--checkpoint", args.checkpoint, "--image", args.image, "--box", args.box, "--output", f"{folder}/out"]
        for _ in range(args.runs):
            begin = time.perf_counter()
            subprocess.run([sys.executable, "-m", "edgesam_jax.predict", *flags], check=True, env=environment)
            seconds.append(time.perf_counter() - begin)
    rest = sorted(seconds[1:])[len(seconds[1:]) // 2]
    print(f"first {seconds[0]:.1f} s, then median {rest:.1f} s: {rest / seconds[0]:.2f} of the first (goal 0.50)")


if __name__ == "__main__":
    main()
