"""Granularity priors at small scale: does a box from proposals resolve which of several masks a click refers to?

    python -m benchmarks.priors --objects DIR --parts DIR [--decoder DIR] [--scenes 200]
                                [--coco DIR [--coco-priors DIR]]

The folders are runs of configs/proposals_scenes_objects.py and configs/proposals_scenes_parts.py: the same model with
proposal networks trained on objects or on parts of the same scenes.  Each is prompted for objects and for parts of
held-out scenes with one click at the centre.  Prints mIoU without and with priors, by both rules, as in Table 5b; then
the cost.  ``--decoder`` is a run with the same frozen encoder; a second table uses its decoder.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import jax
import numpy as np

from benchmarks import timing
from edgesam_jax.checkpoints.load import load_model
from edgesam_jax.checkpoints.model import Model
from edgesam_jax.config import DataConfig
from edgesam_jax.data.opening import open_source
from edgesam_jax.data.schema import OBJECT, PART, Example
from edgesam_jax.eval.heldout import evaluate
from edgesam_jax.eval.scoring.protocol import Settings
from edgesam_jax.portable.priors import Rule
from edgesam_jax.predict import compiled
from edgesam_jax.reporting.tables import aligned_table

RULES: tuple[Rule, ...] = ("nearest", "published")


def miou(model: Model, examples: list[Example], rule: Rule) -> float:
    """mIoU in percent with one centre click per instance."""
    result = evaluate(model, examples, Settings("center", priors=rule))
    return 100 * result.miou[0]


def with_decoder(model: Model, other: Model) -> Model:
    """The model with the decoder of another one, which must have the same image encoder."""
    ours, theirs = model.variables["params"], other.variables["params"]
    same = jax.tree.map(np.array_equal, ours["image_encoder"], theirs["image_encoder"])
    assert all(jax.tree.leaves(same)), "the image encoders differ, so the proposals can't be combined with this decoder"
    params = {part: theirs[part] if part in ("prompt_encoder", "mask_decoder") else tree for part, tree in ours.items()}
    return dataclasses.replace(model, variables={**model.variables, "params": params})


def table(models: dict[str, Model], targets: dict[str, list[Example]]) -> str:
    """A row without priors, and one for each training set of the proposals and each rule."""
    counts = {name: sum(map(len, examples)) for name, examples in targets.items()}
    header = ["proposals trained on", "rule", *(f"{name} ({counts[name]})" for name in targets)]
    rows = [["none", "-", *(f"{miou(models['objects'], examples, 'off'):.1f}" for examples in targets.values())]]
    for training_set, model in models.items():
        for rule in RULES:
            rows.append([training_set, rule, *(f"{miou(model, examples, rule):.1f}" for examples in targets.values())])
    return aligned_table(header, rows)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=Path, required=True, metavar="DIR", help="run with proposals for objects")
    parser.add_argument("--parts", type=Path, required=True, metavar="DIR", help="run with proposals for parts")
    parser.add_argument("--decoder", type=Path, metavar="DIR", help="run whose decoder is used for a second table")
    parser.add_argument("--scenes", type=int, default=200, help="number of held-out scenes")
    parser.add_argument("--coco", default="", metavar="DIR", help="a COCO-format data set, for a smoke test")
    parser.add_argument("--coco-priors", type=Path, metavar="DIR", help="run with proposals trained on such photos")
    arguments = parser.parse_args()
    models = {"objects": load_model(arguments.objects), "parts": load_model(arguments.parts)}
    source = open_source(DataConfig(limit=arguments.scenes), 128, "heldout")
    scenes = [source.load(i) for i in range(arguments.scenes)]
    targets = {
        "objects": [scene.take(scene.granularity == OBJECT) for scene in scenes],
        "parts": [scene.take(scene.granularity == PART) for scene in scenes],
        "any": scenes,
    }
    print(table(models, targets))
    if arguments.decoder:
        other = load_model(arguments.decoder)
        print(f"\nThe decoder of {arguments.decoder}:\n")
        print(table({name: with_decoder(model, other) for name, model in models.items()}, targets))
    if arguments.coco:
        data = DataConfig(source="coco", root=arguments.coco)
        photos_source = open_source(data, 128, "heldout")
        photos = [photos_source.load(i) for i in range(len(photos_source))]
        trained = dict(models) | ({"photos": load_model(arguments.coco_priors)} if arguments.coco_priors else {})
        rows = [["none", "-", f"{miou(models['objects'], photos, 'off'):.1f}"]]
        rows += [[name, rule, f"{miou(m, photos, rule):.1f}"] for name, m in trained.items() for rule in RULES]
        print("\n" + aligned_table(["proposals trained on", "rule", f"photos ({sum(map(len, photos))})"], rows))
    cost(models["objects"])


def cost(model: Model) -> None:
    """Time the encoder alone and with proposals, in turn."""
    config, variables = model.config, compiled.for_inference(model.config, model.variables)
    photo = np.zeros((1, config.image_size, config.image_size, 3), np.uint8)
    size = np.array([[config.image_size] * 2], np.int32)
    plain, both = compiled.encoder(config), compiled.proposer(config)
    contenders = {
        "encoder": lambda: plain(variables, photo, size).block_until_ready(),
        "encoder and proposals": lambda: both(variables, photo, size)[0].block_until_ready(),
    }
    timing.report(timing.in_turn(contenders, 20), "encoder")


if __name__ == "__main__":
    main()
