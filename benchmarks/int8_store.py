"""The cost of rounding in a store of embeddings: in stage-1 loss, and in the masks the teacher decodes from them.

    python -m benchmarks.int8_store --teacher tiny_teacher --photos 200  # held-out scenes
    python -m benchmarks.int8_store --teacher weights/sam_vit_h_4b8939.pth --source prepared --data-root DATA \
        [--annotations FILE] [--student runs/stage1] [--photos 100] [--prompts 16]

Reports for each stored type:

- the feature error of stored against exact embeddings, which is the loss of a perfect student; its ratio to the mean
  square of the teacher's embeddings, and to the loss of ``--student`` if given; and that student's loss against the
  stored embeddings;
- the IoU between the masks decoded from exact and from stored embeddings, inside the photo at the decoder's resolution.
  Prompts are the box of each annotation (mask 0) and its point (the mask that scores highest with the exact embedding).
"""

from __future__ import annotations

import argparse
from typing import Any, get_args

import jax.numpy as jnp
import numpy as np

from edgesam_jax.checkpoints.load import load_model
from edgesam_jax.config import DataConfig
from edgesam_jax.data.embeddings import StoredType, dequantise, quantise
from edgesam_jax.data.opening import open_source
from edgesam_jax.data.schema import BadExample
from edgesam_jax.eval.metrics import mask_iou
from edgesam_jax.learning import losses
from edgesam_jax.portable.frame import into_frame, scale_coords
from edgesam_jax.predict import compiled

TYPES: tuple[StoredType, ...] = get_args(StoredType)


def stored(embedding: np.ndarray, dtype: StoredType) -> np.ndarray:
    """Return an embedding (g g c) as read back from a store, float32."""
    rows, scale = quantise(embedding[None], dtype)
    return dequantise(rows[0], None if scale is None else scale[0], dtype).astype(np.float32)


class Decoding:
    """The teacher's decoder for up to ``prompts`` prompts of one photo."""

    def __init__(self, model: Any, prompts: int) -> None:
        self._config = model.config
        self._variables = compiled.for_inference(model.config, model.variables)
        self._decode, self._prompts = compiled.decoder(model.config), prompts

    def __call__(
        self, embedding: np.ndarray, coords: np.ndarray, filled: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Decode boxes (p 4) or points (p 2): masks (p 4 rows columns) bool inside the photo, predicted IoU (p 4)."""
        padded = np.zeros((self._prompts, coords.shape[1]), np.float32)
        padded[: len(coords)] = coords
        if coords.shape[1] == 4:
            decoded = self._decode(self._variables, embedding, padded, None, None, None)
        else:
            labels = np.ones((self._prompts, 1), np.int32)
            decoded = self._decode(self._variables, embedding, None, padded[:, None], labels, None, slots=1)
        rows, columns = (-(-side * self._config.mask_size // self._config.image_size) for side in filled)
        masks = np.asarray(decoded.logits)[: len(coords), :, :rows, :columns] > 0
        return masks, np.asarray(decoded.iou)[: len(coords)]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="tiny_teacher", help="checkpoint folder or published file")
    parser.add_argument("--student", default="", help="stage-1 checkpoint distilled from this teacher")
    parser.add_argument(
        "--source",
        choices=["scenes", "coco", "images", "tars", "prepared"],
        default="scenes",
        help="kind of the data set",
    )
    parser.add_argument("--data-root", default="", help="folder of the data set")
    parser.add_argument("--annotations", default="", help="coco: the JSON file; default: the only one in --data-root")
    parser.add_argument("--photos", type=int, default=100, help="number of photos")
    parser.add_argument("--prompts", type=int, default=16, help="maximum number of prompts per photo")
    args = parser.parse_args()

    teacher = load_model(args.teacher)
    student = load_model(args.student) if args.student else None
    size, grid = teacher.config.image_size, teacher.config.grid
    data = DataConfig(source=args.source, root=args.data_root, annotations=args.annotations)
    source = open_source(data, size, "heldout")
    encoders = [
        (compiled.encoder(m.config), compiled.for_inference(m.config, m.variables)) for m in (teacher, student) if m
    ]
    decoding = Decoding(teacher, args.prompts)
    power: list[float] = []
    distance: list[float] = []
    errors: dict[str, list[float]] = {dtype: [] for dtype in TYPES}
    seen: dict[str, list[float]] = {dtype: [] for dtype in TYPES}
    ious: dict[tuple[str, str], list[np.ndarray]] = {(d, p): [] for d in TYPES for p in ("box", "point")}
    rng = np.random.default_rng(0)
    for index in range(min(args.photos, len(source) or args.photos)):
        try:
            example = source.load(index, lambda areas, _: rng.permutation(len(areas))[: args.prompts])
        except BadExample as error:
            print(f"skipped: {error}")
            continue
        image, filled = into_frame(example.image, size)
        valid = losses.valid_weights(jnp.array([filled]), grid, size) > 0.5

        def error_between(a: np.ndarray, b: np.ndarray, valid: Any = valid) -> float:
            return float(losses.feature_error(a[None], b[None], valid)[0])

        exact, *predicted = (
            np.asarray(encode(variables, image[None], np.array([filled], np.int32)), np.float32)[0]
            for encode, variables in encoders
        )
        power.append(error_between(exact, np.zeros_like(exact)))
        distance += [error_between(embedding, exact) for embedding in predicted]
        hw = example.image.shape[:2]
        nonempty = example.masks.any((1, 2))
        boxes, points = example.boxes[nonempty], example.points[nonempty]
        prompts = {"box": scale_coords(boxes, hw, filled), "point": scale_coords(points, hw, filled)}
        before = {kind: decoding(exact, coords, filled) for kind, coords in prompts.items() if len(coords)}
        for dtype in TYPES:
            rounded = stored(exact, dtype)
            errors[dtype].append(error_between(rounded, exact))
            seen[dtype] += [error_between(embedding, rounded) for embedding in predicted]
            for kind, (masks, scores) in before.items():
                best = np.zeros(len(masks), int) if kind == "box" else scores.argmax(1)
                after = decoding(rounded, prompts[kind], filled)[0]
                row = np.arange(len(masks))
                ious[dtype, kind].append(mask_iou(after[row, best], masks[row, best]))

    count = sum(map(len, ious["int8", "box"]))
    print(f"{args.teacher}: {len(power)} photos, {count} boxes and points; mean square {np.mean(power):.4g}")
    if distance:
        print(f"stage-1 loss of {args.student} against exact embeddings: {np.mean(distance):.5g}")
    heading = f"{'':9s} {'feature error':>13s} {'of square':>9s} {'of loss':>8s} {'loss seen':>10s}"
    print(f"{heading}   IoU of boxes: mean, 1 %, least, below 0.95    of points")
    for dtype in TYPES:
        error = float(np.mean(errors[dtype]))
        relative = [f"{'-':>8s}", f"{'-':>10s}"]
        if distance:
            relative = [f"{error / np.mean(distance):8.1e}", f"{np.mean(seen[dtype]):10.5g}"]
        cells = []
        for kind in ("box", "point"):
            iou = np.concatenate(ious[dtype, kind])
            low = (iou < 0.95).mean()
            cells.append(f"{iou.mean():.4f} {np.quantile(iou, 0.01):.4f} {iou.min():.3f} {low:.2%}")
        print(f"{dtype:9s} {error:13.3g} {error / np.mean(power):9.1e} {' '.join(relative)}   {'    '.join(cells)}")


if __name__ == "__main__":
    main()
