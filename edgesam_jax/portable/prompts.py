"""Read a user's prompts and bring them into the model's frame.

``read_prompts`` takes whatever was handed to ``predict`` and ``predict_prompts``: lists, arrays, and objects that NumPy
can convert. Every value is checked before it is converted, so a wrong one is a ``UsageError`` that names the argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgesam_jax.portable.errors import UsageError, type_text
from edgesam_jax.portable.frame import scale_coords

Size = tuple[int, int]
UNUSED = -1  # label of a slot that holds no point
MIN_SIDE = 0.01  # px; a box with a shorter side is a mistake, and its corners may coincide in the model's frame
BOX, POINTS, LABELS = "four numbers x0, y0, x1, y1", "x, y of each point (n 2)", "one label per point (n)"


@dataclass(frozen=True, eq=False)
class PromptArrays:
    """Prompts in the model's frame: boxes (p 4), points (p n 2), their labels (p n) and masks (p s s), each or None.

    All are float32, but labels are int32. The box of a prompt without one is NaN where others have one. The points of a
    prompt come first; the label of the slots that remain is ``UNUSED``.
    """

    boxes: np.ndarray | None
    coords: np.ndarray | None
    labels: np.ndarray | None
    masks: np.ndarray | None

    def __len__(self) -> int:
        return next(len(x) for x in (self.boxes, self.coords) if x is not None)

    @property
    def single_clicks(self) -> np.ndarray:
        """Which prompts (p) are one point inside the object and nothing else."""
        if self.labels is None:
            return np.zeros(len(self), bool)
        without_box = True if self.boxes is None else np.isnan(self.boxes[:, 0])
        return without_box & (self.labels[:, 0] == 1) & (self.labels[:, 1:] == UNUSED).all(1)


def read_prompts(
    boxes: Any, coords: Any, labels: Any, masks: Any, size: Size, frame: Size, side: int
) -> PromptArrays:  # fmt: skip
    """Read p prompts on a photo.

    Args:
      boxes: p boxes x0, y0, x1, y1, or None; a prompt with points may have None instead of a box.
      coords, labels: for each prompt, points (n 2) and their labels (n), or None; n may differ between prompts.
      masks: for each prompt, logits (side side) of an earlier prediction, or None.
      size: rows and columns of the photo.
      frame: rows and columns of the model's frame that the photo fills.
      side: side of the model's low-resolution masks.

    Raises:
      UsageError: no prompt, something that can't be read as such an array, or a prompt that is not on the photo.
    """
    if (coords is None) != (labels is None):
        raise UsageError("points: point_coords and point_labels go together; pass both")
    read_boxes = None
    if boxes is not None:
        entries = _entries(boxes, "box", "boxes", BOX)
        if coords is not None and entries and all(box is None for box, _ in entries):
            entries, boxes = [], None
        read_boxes = [
            np.full(4, np.nan) if box is None and coords is not None else _box(box, name, size) for box, name in entries
        ]
        read_boxes = None if boxes is None else read_boxes
    points = None if coords is None else _points(coords, labels, size)
    if points is not None and not any(len(some) for some, _ in points):
        points = None
    if read_boxes is None and points is None:
        if masks is not None:
            raise UsageError("mask_input: can't stand alone; pass a box or points with it")
        raise UsageError("no prompt: pass a box or points")
    if read_boxes is not None and not read_boxes:
        raise UsageError("boxes: empty; pass at least one box")
    bare = next((i for i, box in enumerate(read_boxes or ()) if np.isnan(box).any()), None)
    if points is None and bare is not None:
        raise UsageError(f"boxes[{bare}]: a prompt without a box and without a point; leave it out")
    if points is not None:
        if read_boxes is not None and len(read_boxes) != len(points):
            raise UsageError(f"prompts: {len(read_boxes)} boxes but {len(points)} sets of points")
        no_box = [read_boxes is None or bool(np.isnan(read_boxes[i]).any()) for i in range(len(points))]
        bare = next((i for i, (some, _) in enumerate(points) if not len(some) and no_box[i]), None)
        if bare is not None:
            raise UsageError(f"point_coords[{bare}]: a prompt without a point; leave it out, or pass boxes too")
    count = len(read_boxes if read_boxes is not None else points or ())
    scaled_coords, kinds = (None, None) if points is None else _padded(points, size, frame)
    return PromptArrays(
        None if read_boxes is None else scale_coords(np.stack(read_boxes), size, frame),
        scaled_coords,
        kinds,
        None if masks is None else _masks(masks, count, side, size),
    )


def read_numbers(value: Any, name: str, expected: str, truth: bool = False) -> np.ndarray:
    """Convert anything that holds real numbers to an array of float64.

    Args:
      value: what the user passed.
      name, expected: what it is called and should be, for the message.
      truth: whether True and False count as 1 and 0.

    Raises:
      UsageError: texts, None, complex numbers, masked entries, parts of different lengths, or no array at all.
    """
    array = _as_array(value, name, expected)
    if array.dtype.kind == "O" and array.ndim:  # integers beyond 64 bits, among other things
        array = _from_objects(array)
    if array.dtype.kind not in ("iufb" if truth else "iuf"):
        raise UsageError(f"{name}: expected {expected}, got {_described(value, array)}")
    with np.errstate(over="ignore"):  # of long doubles; callers refuse infinity
        return array.astype(np.float64)


def check_box(box: Sequence[float] | np.ndarray, size: Size, name: str = "box") -> None:
    """Check that a box x0, y0, x1, y1 is not empty and lies on the photo of ``size`` (rows, columns).

    Raises:
      UsageError: it isn't or doesn't; the message begins with ``name``.
    """
    x0, y0, x1, y1 = box
    text = f"{name} {','.join(map(number_text, box))}"
    if not np.isfinite(box).all():
        raise UsageError(f"{text}: expected four finite numbers")
    if x1 <= x0 or y1 <= y0:
        raise UsageError(f"{text}: expected x0 < x1 and y0 < y1")
    if x0 < 0 or y0 < 0 or x1 > size[1] or y1 > size[0]:
        raise UsageError(f"{text}: not within the photo, which is {size[1]} x {size[0]} pixels (width x height)")
    if min(x1 - x0, y1 - y0) < MIN_SIDE:
        width, height = number_text(x1 - x0), number_text(y1 - y0)
        raise UsageError(f"{text}: only {width} x {height} pixels; expected sides of at least {MIN_SIDE} pixels")


def check_point(point: Sequence[float] | np.ndarray, label: Any, size: Size, name: str = "point") -> None:
    """Check that a point x, y lies on the photo and that its label is 1 or 0.

    Raises:
      UsageError: a check failed; the message begins with ``name``.
    """
    x, y = point
    text = f"{name} {','.join(map(number_text, (x, y, label)))}"
    if label not in (0, 1):
        raise UsageError(f"{text}: the label must be 1 (inside the object) or 0 (outside)")
    if not (0 <= x <= size[1] and 0 <= y <= size[0]):  # also refuses NaN
        raise UsageError(f"{text}: not on the photo, which is {size[1]} x {size[0]} pixels (width x height)")


def number_text(value: float) -> str:
    """Return a number with all of its digits, so that 200.0001 is not shown as 200; 200.0 becomes 200."""
    return repr(float(value)).removesuffix(".0")


# ----------------------------------------------------------------------------------------------------- prompt by prompt


def _entries(value: Any, one: str, several: str, expected: str) -> list[tuple[Any, str]]:
    """Return the prompts' parts of an argument, each with its name in messages."""
    if isinstance(value, list | tuple):
        parts = list(value)
    else:
        each = f"a list with {expected} for each prompt"
        array = _as_array(value, several, each)
        if not array.ndim:
            raise UsageError(f"{several}: expected {each}, got {_described(value, array)}")
        parts = list(array)
    return [(part, one if len(parts) == 1 else f"{several}[{i}]") for i, part in enumerate(parts)]


def _box(value: Any, name: str, size: Size) -> np.ndarray:
    box = read_numbers(value, name, BOX)
    if box.shape not in ((4,), (1, 4)):
        raise UsageError(f"{name}: expected {BOX}, got {_described(value, box)}")
    box = box.reshape(4)
    check_box(box, size, name)
    return box


def _points(coords: Any, labels: Any, size: Size) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the points (n 2) and labels (n) of each prompt, without unused slots."""
    named_coords = _entries(coords, "point_coords", "point_coords", POINTS)
    named_labels = _entries(labels, "point_labels", "point_labels", LABELS)
    if len(named_coords) != len(named_labels):
        raise UsageError(
            f"points: expected x, y with one label each, got point_coords of {len(named_coords)} and point_labels of"
            f" {len(named_labels)} prompts"
        )
    found = []
    for (value, name), (label_value, label_name) in zip(named_coords, named_labels, strict=True):
        points, kinds = read_numbers(value, name, POINTS), read_numbers(label_value, label_name, LABELS, truth=True)
        if not points.size and not kinds.size:
            points, kinds = np.zeros((0, 2)), np.zeros(0)
        if points.ndim != 2 or points.shape[1] != 2 or kinds.shape != points.shape[:1]:
            raise UsageError(
                f"{name}: expected x, y with one label each, (n 2) and (n), got shapes {points.shape} and {kinds.shape}"
            )
        used = kinds != UNUSED
        for point, kind in zip(points[used], kinds[used], strict=True):
            check_point(point, kind, size)
        found.append((points[used], kinds[used]))
    return found


def _padded(points: list[tuple[np.ndarray, np.ndarray]], size: Size, frame: Size) -> tuple[np.ndarray, np.ndarray]:
    """Put points (n 2) and labels (n) of different n into arrays, scaled into the frame."""
    most = max(len(some) for some, _ in points)
    coords, labels = np.zeros((len(points), most, 2)), np.full((len(points), most), UNUSED, np.int32)
    for i, (some, kinds) in enumerate(points):
        coords[i, : len(some)], labels[i, : len(some)] = some, kinds
    return scale_coords(coords, size, frame), labels


def _masks(masks: Any, count: int, side: int, size: Size) -> np.ndarray:
    expected = f"the low-resolution logits ({side} {side}) of an earlier prediction"
    named = _entries(masks, "mask_input", "mask_inputs", expected)
    if len(named) != count:
        raise UsageError(f"mask_inputs: {len(named)} masks for {count} prompts; pass one for each")
    out = np.empty((count, side, side), np.float32)
    for target, (value, name) in zip(out, named, strict=True):
        logits = read_numbers(value, name, expected, truth=True)
        if logits.shape[-2:] == (side, side) and logits.ndim == 3 and len(logits) > 1:
            hint = "pass one of them, such as logits[scores.argmax()]"
            raise UsageError(f"{name}: expected one mask ({side} {side}), got {len(logits)}; {hint}")
        got = ""
        if logits.shape not in ((side, side), (1, side, side)):
            got = "a mask of the photo's size" if logits.shape[-2:] == size else _described(value, logits)
        elif _as_array(value, name, expected).dtype.kind == "b":
            got = "a mask of True and False"
        if got:
            raise UsageError(f"{name}: expected {expected} (the third value that predict returns), got {got}")
        if not (np.abs(logits) <= np.finfo(np.float32).max).all():  # also refuses NaN
            raise UsageError(f"{name}: expected {expected}, got values that are not finite")
        target[:] = logits.reshape(side, side)
    return out


# --------------------------------------------------------------------------------------------------- whatever it may be


def _as_array(value: Any, name: str, expected: str) -> np.ndarray:
    """Convert to an array of any type; refuse masked entries, whose values NumPy would use."""
    try:
        parts = value if isinstance(value, list | tuple) else (value,)
        masked = any(np.ma.is_masked(part) for part in parts)
        array = np.asarray(value)
    except Exception as error:  # array-likes raise anything; NumPy raises ValueError for parts of different lengths
        reason = "" if isinstance(value, list | tuple) else f" ({_first_line(error)})"
        raise UsageError(f"{name}: expected {expected}, got {_described(value, None)}{reason}") from None
    if masked:
        raise UsageError(f"{name}: has masked entries; fill them or leave them out")
    return array


def _from_objects(array: np.ndarray) -> np.ndarray:
    """Convert an array of Python numbers to float64, those beyond its range to infinity; others stay as they are."""
    values = array.ravel().tolist()
    if not all(isinstance(v, int | float | np.integer | np.floating) and not isinstance(v, bool) for v in values):
        return array
    numbers = np.empty(len(values))
    for i, value in enumerate(values):
        try:
            numbers[i] = float(value)
        except OverflowError:
            numbers[i] = np.inf if value > 0 else -np.inf
    return numbers.reshape(array.shape)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:160]


def _described(value: Any, array: np.ndarray | None) -> str:
    """Describe a value in a few words."""
    if value is None:
        return "None"
    if isinstance(value, str | bytes):
        return f"the text {value[:40]!r}"
    if array is None and isinstance(value, list | tuple):
        return f"a {type(value).__name__} whose parts differ in length or kind"
    if array is None or not array.ndim:
        return type_text(value)
    content = {"U": " of texts", "S": " of texts", "O": " of objects", "c": " of complex numbers", "b": " of bools"}
    return f"an array of shape {array.shape}{content.get(array.dtype.kind, '')}"
