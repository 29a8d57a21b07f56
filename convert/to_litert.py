"""Export checkpoints to LiteRT (TensorFlow Lite) for Android, and verify the files with LiteRT's interpreter.

    python -m convert.to_litert CHECKPOINT --output DIR

Writes ``NAME_encoder.tflite``, ``NAME_decoder.tflite`` and ``NAME_litert.json``, the contract. The inputs of the
signature ``serving_default`` have the names of the contract. Its outputs are ``output_0`` (embedding, or scores) and
``output_1`` (masks). Shapes are fixed; all values are float32. If the files differ from the JAX model, nothing is
written and the exit code is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from convert import to_coreml
from convert.export import common, contract, gate
from convert.export.common import ExportJob
from edgesam_jax.cli.flags import Parser
from edgesam_jax.config import UsageError
from edgesam_jax.portable.onnx_model import normalised, prompt_inputs

EXTRA = "pip install 'edgesam-jax[litert]'"


class LitertEncoder:
    """A LiteRT encoder that the gate can run."""

    def __init__(self, path: Path) -> None:
        self._run = _runner(path)

    def outputs(self, frame: np.ndarray, filled: Sequence[int]) -> list[np.ndarray]:
        """See ``OnnxEncoder.outputs``."""
        outputs = self._run(image=np.ascontiguousarray(normalised(frame, filled)))
        return [outputs[f"output_{i}"] for i in range(len(outputs))]


class LitertDecoder:
    """A LiteRT decoder that the gate can run."""

    def __init__(self, path: Path, job: ExportJob) -> None:
        self._run, self._path, self._job = _runner(path), path, job

    def decode(
        self, embedding: np.ndarray, coords: np.ndarray, labels: np.ndarray, mask: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Decode one prompt; return logits (m s s) and scores (m)."""
        inputs = prompt_inputs(
            embedding,
            coords[None],
            labels[None],
            None if mask is None else mask[None],
            self._job.slots,
            str(self._path),
        )
        out = self._run(**{name: inputs[name] for name in to_coreml.shapes(self._job)["decoder"]})
        return out["output_1"][0], out["output_0"][0]


def _runner(path: Path) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    return Interpreter(str(path), num_threads=2).get_signature_runner()


def export(job: ExportJob, folder: Path) -> dict[str, Path]:
    """Write the parts into a folder; return their paths by part."""
    from convert.export.decoder import ExportDecoder
    from convert.export.encoder import ExportEncoder
    from convert.torch_twin.loading import load_twin

    written, logger = {}, logging.getLogger()
    level = logger.level
    for part in job.parts:
        module: Any
        if part == "encoder":
            module = ExportEncoder(job.model.config, job.model.variables, priors=job.priors)
        else:
            module = ExportDecoder(load_twin(job.model), job.score, job.mask_input)  # type: ignore[arg-type]
        written[part] = folder / job.file(part, ".tflite")
        try:
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")
                import litert_torch
                import torch

                example = {name: torch.zeros(shape) for name, shape in to_coreml.shapes(job)[part].items()}
                litert_torch.convert(module, sample_kwargs=example).export(str(written[part]))
        finally:
            logger.setLevel(level)
    return written


def run(args: argparse.Namespace) -> int:
    """Export a checkpoint to LiteRT.

    Raises:
      UsageError: wrong flags, missing libraries, or an output folder that can't be written.
      Refused: the export differs from the model.
    """
    common.require("torch", "litert_torch", "ai_edge_litert", extra=EXTRA)
    args.slots = common.SLOTS if args.slots is None else args.slots
    if not args.slots:
        raise UsageError("--slots dynamic: for ONNX only; LiteRT files have fixed shapes; pass --slots N")
    job = common.load_job(args)
    photos = gate.load_photos(args.photos)
    with common.output_folder(args.output, job=job) as folder:
        print(f"{job.name}: {' and '.join(job.parts)} to LiteRT", flush=True)
        files = export(job, folder)
        for path in files.values():
            print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB; verifying", flush=True)
        cases = gate.make_cases(job.model, photos, job.slots, job.mask_input, job.priors)
        encoder = LitertEncoder(files["encoder"]) if "encoder" in files else None
        decoder = LitertDecoder(files["decoder"], job) if "decoder" in files else None
        verdict = gate.verify(cases, encoder, decoder, gate.TOLERANCES["float32"], job.score)
        print(gate.report(verdict, job.name), flush=True)
        if not verdict.passed:
            raise common.Refused("the export differs from the model; nothing was written")
        common.write_json(
            folder / f"{job.name}_litert.json",
            {
                **contract.contract(job, "tensor"),
                "outputs": {
                    "encoder": [f"output_{i}: {name}" for i, name in enumerate(common.encoder_outputs(job))],
                    "decoder": ["output_0: scores", "output_1: masks"],
                },
                "files": {p.name: {"bytes": p.stat().st_size, "sha256": common.sha256(p)} for p in files.values()},
                "verified": verdict.summary(),
            },
        )
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = Parser(prog="python -m convert.to_litert", description="Export a checkpoint to LiteRT, and verify it.")
    common.add_flags(parser)
    return common.run_export(parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
