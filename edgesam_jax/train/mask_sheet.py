"""A picture of several models' masks for the same box prompts, with their errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from PIL import Image

from edgesam_jax.checkpoints.model import Model
from edgesam_jax.data.schema import Example
from edgesam_jax.eval.metrics import mask_iou
from edgesam_jax.portable.frame import into_frame, scale_coords
from edgesam_jax.predict import compiled
from edgesam_jax.reporting import pictures
from edgesam_jax.types import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT

ROWS, PANEL = 8, 160
COMPARED = 40  # examples among which rows are chosen


def draw(examples: Sequence[Example], models: Mapping[str, Model], pair: tuple[str, str] | None = None) -> np.ndarray:
    """Show the largest instance of some examples: the box, the true mask, and each model's mask with its errors.

    Below each panel is the overlap (IoU in percent) with the true mask, both at the frame's size.

    Args:
      models: title -> model; all of one frame size.
      pair: titles of two models to compare: the rows range from the largest gain of the first over the second to its
        largest loss. Without it, the first examples are shown in their order.

    Returns:
      A picture (h w 3) uint8 with at most ``ROWS`` rows.
    """
    predictors = {title: _predictor(model) for title, model in models.items()}
    found = []
    for example in [e for e in examples if len(e)][: COMPARED if pair else ROWS]:
        image, size, box, truth = _frame(example, next(iter(models.values())))
        masks = {title: predict(image, size, box) for title, predict in predictors.items()}
        resized = {title: _as_large(mask, truth) & _filled(truth, size) for title, mask in masks.items()}
        scores = {title: 100 * float(mask_iou(mask, truth)) for title, mask in resized.items()}
        found.append((image, box, truth, resized, scores))
    gains = [scores[pair[0]] - scores[pair[1]] if pair else 0.0 for *_, scores in found]
    order = np.argsort(gains, kind="stable")[::-1] if pair else np.arange(len(found))
    # Evenly over the order, so that the picture is as good or bad as the numbers.
    chosen = order[np.round(np.linspace(0, len(order) - 1, min(ROWS, len(order)))).astype(int)]
    rows, captions = [], []
    for i in chosen:
        image, box, truth, masks, scores = found[i]
        labels = np.array([BOX_TOP_LEFT, BOX_BOTTOM_RIGHT])
        prompt = pictures.draw_prompt(image, box.reshape(2, 2), labels, np.ones(2, bool))
        panels = [prompt, pictures.tint(image, truth, pictures.BLUE)]
        panels += [pictures.errors(image, mask, truth) for mask in masks.values()]
        rows.append([np.asarray(Image.fromarray(p).resize((PANEL, PANEL), Image.Resampling.LANCZOS)) for p in panels])
        note = f"{pair[0]} - {pair[1]}: {gains[i]:+.0f}" if pair else ""
        captions.append([note, "", *(f"{score:.0f}" for score in scores.values())])
    return pictures.side_by_side(rows, ("box", "truth", *models), captions, _legend(gains, pair))


def _legend(gains: Sequence[float], pair: tuple[str, str] | None) -> str:
    legend = "Blue: right. Green: missing. Red: extra. Below: IoU in percent."
    if not pair:
        return legend
    better, worse = (sum(sign * gain > 1 for gain in gains) for sign in (1, -1))
    return (
        f"{legend} Rows from {pair[0]}'s largest gain over {pair[1]} to its largest loss; of {len(gains)} objects,"
        f" {pair[0]} is more than 1 better on {better} and worse on {worse}."
    )


def _frame(example: Example, model: Model) -> tuple[np.ndarray, tuple[int, int], np.ndarray, np.ndarray]:
    """Return the frame (s s 3), the part that the photo fills, and the largest instance's box (1 4) and mask (s s)."""
    image, size = into_frame(example.image, model.config.image_size, model.config.frame)
    largest = int(np.argmax(example.masks.sum((1, 2))))
    box = scale_coords(example.boxes[largest : largest + 1], example.image.shape[:2], size)
    resized = Image.fromarray(example.masks[largest]).resize(size[::-1], Image.Resampling.NEAREST)
    truth = np.zeros(image.shape[:2], bool)
    truth[: size[0], : size[1]] = resized
    return image, size, box, truth


def _predictor(model: Model) -> Callable[[np.ndarray, tuple[int, int], np.ndarray], np.ndarray]:
    """Return a function from a frame, the part that the photo fills and a box to a low-resolution mask (s s) bool."""
    variables = compiled.for_inference(model.config, model.variables)
    encode, decode = compiled.encoder(model.config), compiled.decoder(model.config)

    def predict(image: np.ndarray, size: tuple[int, int], box: np.ndarray) -> np.ndarray:
        embedding = encode(variables, image[None], np.asarray(size, np.int32)[None])
        return np.asarray(decode(variables, embedding[0], box, None, None, None).logits[0, 0]) > 0

    return predict


def _as_large(mask: np.ndarray, like: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(mask).resize(like.shape[::-1], Image.Resampling.NEAREST))


def _filled(truth: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the part (s s) bool of a frame that the photo fills."""
    filled = np.zeros(truth.shape, bool)
    filled[: size[0], : size[1]] = True
    return filled
