"""The decoder in the form of SAM's own ONNX export, for programs that were written for it.

    image_embeddings (1 c g g), point_coords (1 n 2), point_labels (1 n), mask_input (1 1 s s), has_mask_input (1),
    orig_im_size (2: rows, columns) float32
    -> masks (1 m rows columns), iou_predictions (1 m), low_res_masks (1 m s s), in this order

The graph enlarges the masks as SAM does: to the frame, cropped to the resized photo, then to the photo
(``edgesam_jax.portable.postprocess``). The crop follows from ``orig_im_size`` by the predictor's arithmetic, in
float64. torch can't export sizes that are data, so these nodes are added to the exported graph.

Programs call such files carelessly (docs/export.md, "Other people's programs"). So that their masks are the
predictor's,

- the padding point of label -1 that they append to boxes, too, counts only for prompts without a box;
- ``has_mask_input`` below 0 or above 1 counts as 0 or 1;
- a model whose masks aren't 256x256 takes a ``mask_input`` of any size, and resizes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from convert.export.common import ExportJob
from convert.export.gate import MIN_UNION, UNDECIDED, Case, Finding, relative_error
from convert.export.tolerance import TOLERANCES, Tolerance
from edgesam_jax.config import UsageError
from edgesam_jax.portable.frame import target_size
from edgesam_jax.portable.onnx_model import NOT_A_POINT, prompt_inputs
from edgesam_jax.portable.postprocess import MASK_THRESHOLD, upscale_logits
from edgesam_jax.types import BOX_TOP_LEFT

INPUTS = ["image_embeddings", "point_coords", "point_labels", "mask_input", "has_mask_input", "orig_im_size"]
OUTPUTS = ["masks", "iou_predictions", "low_res_masks"]
ENCODER_INPUT = {"tensor": "x", "hwc": "input_image"}  # osam passes x by name; the others take any name
SAM_MASK = 256  # side of the mask input that programs send
PROGRAM_FRAME = 1024  # longest side of the photos that programs send to an encoder of (h w 3)
RESIZE = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}


def check_flags(args: Any) -> None:
    """Check the flags that ``--form sam`` excludes, and those that need it.

    Raises:
      UsageError: one of them is given.
    """
    if args.form != "sam":
        if args.masks is not None:
            raise UsageError("--masks: is for --form sam; other decoders return four masks")
        return
    wrong = {
        "--published": args.published, "--split": args.split, "--priors": args.priors,
        "--batch dynamic": args.batch != "1", f"--slots {args.slots}": bool(args.slots),
    }  # fmt: skip
    for flag in (flag for flag, given in wrong.items() if given):
        raise UsageError(f"{flag}: SAM's form takes one prompt of any number of points; drop {flag} or --form sam")
    if args.masks is not None and args.part == "encoder":
        raise UsageError("--masks: is for the decoder; drop it, or --part encoder")


def check_frame(job: ExportJob, image_input: str) -> None:
    """Check that programs can call an encoder of (h w 3).

    Raises:
      UsageError: its frame isn't the one that they assume, and their masks would be wrong.
    """
    side = job.model.config.image_size
    if image_input == "hwc" and side != PROGRAM_FRAME:
        raise UsageError(
            f"--image-input: programs send photos of {PROGRAM_FRAME} px to this form, and the model's frame has {side};"
            " drop --image-input"
        )


def module(decoder: Any, masks: int) -> Any:
    """Return an ``ExportDecoder`` with a mask input as a torch module that returns iou_predictions, low_res_masks.

    ``masks``: the first ones of SAM's four to return.
    """
    import torch
    from torch import Tensor, nn

    class SamForm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.decoder = decoder

        def forward(self, embedding: Tensor, coords: Tensor, labels: Tensor, mask: Tensor, has: Tensor) -> Any:
            boxed = (labels >= BOX_TOP_LEFT).to(labels.dtype).amax(dim=1, keepdim=True)
            # -1 becomes -2, an unused slot, in prompts with a box.
            labels = labels - boxed * (labels == NOT_A_POINT).to(labels.dtype)
            scores, logits = self.decoder(embedding, coords, labels, mask, torch.clamp(has, 0, 1))
            return scores[:, :masks], logits[:, :masks]

    return SamForm().eval()


def add_enlargement(model: Any, frame: int, mask_size: int) -> None:
    """Add ``orig_im_size`` and ``masks`` to the exported ``module``, in place.

    ``frame`` and ``mask_size``: sides of the model's input and of its masks.
    """
    from onnx import TensorProto, helper

    graph = model.graph
    if mask_size != SAM_MASK:
        _take_any_mask(graph, mask_size)
    graph.initializer.extend(
        [
            helper.make_tensor("sam_frame", TensorProto.DOUBLE, [1], [float(frame)]),
            helper.make_tensor("sam_half", TensorProto.DOUBLE, [1], [0.5]),
            helper.make_tensor("sam_one", TensorProto.DOUBLE, [1], [1.0]),
            helper.make_tensor("sam_frame_hw", TensorProto.INT64, [2], [frame, frame]),
            helper.make_tensor("sam_origin", TensorProto.INT64, [2], [0, 0]),
            helper.make_tensor("sam_axes", TensorProto.INT64, [2], [2, 3]),
        ]
    )
    graph.node.extend([*_filled(), *_enlarged()])
    graph.input.append(helper.make_tensor_value_info("orig_im_size", TensorProto.FLOAT, [2]))
    named = {output.name: output for output in graph.output}
    count = named["low_res_masks"].type.tensor_type.shape.dim[1].dim_value
    masks = helper.make_tensor_value_info("masks", TensorProto.FLOAT, [1, count, "rows", "columns"])
    del graph.output[:]
    graph.output.extend([masks, named["iou_predictions"], named["low_res_masks"]])


def _filled() -> list[Any]:
    """Return the nodes of ``portable.frame.target_size``: ``sam_filled``, the rows and columns of the resized photo."""
    from onnx import TensorProto, helper

    return [
        helper.make_node("Cast", ["orig_im_size"], ["sam_size"], to=TensorProto.DOUBLE),
        helper.make_node("ReduceMax", ["sam_size"], ["sam_longest"], keepdims=1),
        helper.make_node("Div", ["sam_frame", "sam_longest"], ["sam_scale"]),
        helper.make_node("Mul", ["sam_size", "sam_scale"], ["sam_scaled"]),
        helper.make_node("Add", ["sam_scaled", "sam_half"], ["sam_shifted"]),
        helper.make_node("Floor", ["sam_shifted"], ["sam_rounded"]),
        helper.make_node("Max", ["sam_rounded", "sam_one"], ["sam_at_least"]),
        helper.make_node("Cast", ["sam_at_least"], ["sam_filled"], to=TensorProto.INT64),
    ]


def _enlarged() -> list[Any]:
    """Return the nodes from ``low_res_masks`` and ``sam_filled`` to ``masks``."""
    from onnx import TensorProto, helper

    return [
        helper.make_node("Shape", ["low_res_masks"], ["sam_count"], start=0, end=2),
        helper.make_node("Concat", ["sam_count", "sam_frame_hw"], ["sam_frame_shape"], axis=0),
        helper.make_node("Resize", ["low_res_masks", "", "", "sam_frame_shape"], ["sam_frame_masks"], **RESIZE),
        helper.make_node("Slice", ["sam_frame_masks", "sam_origin", "sam_filled", "sam_axes"], ["sam_cropped"]),
        helper.make_node("Cast", ["orig_im_size"], ["sam_photo_hw"], to=TensorProto.INT64),
        helper.make_node("Concat", ["sam_count", "sam_photo_hw"], ["sam_photo_shape"], axis=0),
        helper.make_node("Resize", ["sam_cropped", "", "", "sam_photo_shape"], ["masks"], **RESIZE),
    ]


def _take_any_mask(graph: Any, side: int) -> None:
    """Resize ``mask_input`` to the model's size; programs send 256x256, mostly zeros, whatever the file says."""
    from onnx import TensorProto, helper

    for node in graph.node:
        for i, name in enumerate(node.input):
            if name == "mask_input":
                node.input[i] = "sam_mask_input"
    [given] = (value for value in graph.input if value.name == "mask_input")
    given.CopyFrom(helper.make_tensor_value_info("mask_input", TensorProto.FLOAT, [1, 1, "mask_rows", "mask_columns"]))
    graph.initializer.append(helper.make_tensor("sam_mask_shape", TensorProto.INT64, [4], [1, 1, side, side]))
    graph.node.insert(
        0, helper.make_node("Resize", ["mask_input", "", "", "sam_mask_shape"], ["sam_mask_input"], **RESIZE)
    )


def entry(job: ExportJob) -> dict[str, Any]:
    """Return what the contract says of the form; nothing for another form."""
    if job.form != "sam":
        return {}
    return {
        "form": "sam",
        "num_masks": job.masks,
        "inputs": INPUTS,
        "outputs": OUTPUTS,
        "masks": f"masks: logits at the photo's size, orig_im_size (rows, columns); low_res_masks: the same, of the"
        f" frame; the first {job.masks} of SAM's four masks; threshold 0; iou_predictions: their scores",
        "padding": "label -1 counts only in prompts without a box; has_mask_input is clamped to 0..1",
    }


# ------------------------------------------------------------------------------------------------------------ the gate


def sizes(frame: int) -> list[tuple[int, int]]:
    """Return the photo sizes (rows, columns) of the gate: landscape, portrait, small, above the frame, a panorama."""
    return [
        (frame * 15 // 32, frame * 5 // 8), (frame * 4 // 3, frame), (37, 50), (frame * 3 // 2, 2 * frame + 7),
        (11, frame),
    ]  # fmt: skip


def verify(cases: Sequence[Case], decoder: Path, frame: int, tolerance: Tolerance) -> Iterator[Finding]:
    """Compare what programs get with the predictor's: every prompt, on a photo of another size.

    Prompts are called as programs do, with a padding point at the end of boxes, too. The low-resolution logits are
    compared with the model's. The enlarged ones are compared with those that the predictor makes of the file's own:
    the enlargement is float32 with any weights, and a mask of few pixels says nothing about a format's rounding.

    Args:
      cases: with as many masks as the decoder returns.
      tolerance: of the logits.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(decoder), providers=["CPUExecutionProvider"])
    for number, case in enumerate(cases):
        for i, prompt in enumerate(case.prompts):
            size = sizes(frame)[(number + i) % len(sizes(frame))]
            coords, labels = prompt.coords, prompt.labels
            if NOT_A_POINT not in labels:
                coords, labels = np.concatenate([coords, [[0, 0]]]), np.append(labels, NOT_A_POINT)
            mask = case.masks[i]
            inputs = prompt_inputs(
                case.embedding, coords[None], labels[None], None if mask is None else mask[None], 0, str(decoder)
            )
            inputs["orig_im_size"] = np.array(size, np.float32)
            low, masks = session.run(["low_res_masks", "masks"], inputs)
            where = f"{case.name}, {prompt.name}, {size[0]}x{size[1]}"
            error = relative_error(low[0], case.logits[i])
            yield Finding("logits as programs call", where, error, tolerance.limit("logits"))
            yield from _compare(where, masks[0], upscale_logits(low[0], frame, target_size(*size, frame), size))


def _compare(where: str, masks: np.ndarray, reference: np.ndarray) -> Iterator[Finding]:
    tolerance = TOLERANCES["float32"]
    yield Finding("enlarged logits", where, relative_error(masks, reference), tolerance.limit("logits"))
    if masks.shape != reference.shape:
        return
    decided = np.abs(reference) > UNDECIDED * np.sqrt(np.mean(reference**2))
    exported, expected = (masks > MASK_THRESHOLD) & decided, (reference > MASK_THRESHOLD) & decided
    for m, union in enumerate((exported | expected).sum((1, 2))):
        if union >= MIN_UNION:
            overlap = int((exported[m] & expected[m]).sum()) / int(union)
            yield Finding("enlarged mask IoU", f"{where}, mask {m}", overlap, tolerance.limit("mask IoU"), True)
