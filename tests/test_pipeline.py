import subprocess
import sys
import threading
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesam_jax.config import DataConfig, RepVitConfig, SamConfig, UsageError
from edgesam_jax.data.pipeline import BatchSource, batches, example_arrays
from edgesam_jax.data.scenes import scene
from edgesam_jax.data.schema import Example
from edgesam_jax.data.sources import open_source, select

MODEL = SamConfig(image_size=64, encoder=RepVitConfig(stem_strides=(2, 1)))
DATA = DataConfig(batch_size=3, max_prompts=4)
FIELDS = ("image", "valid_size", "boxes", "points", "prompt_valid", "masks")


class Photos:
    """A small data set of odd sizes, whose images tell their number; the workers of a test import it."""

    def __init__(self, count=5, broken=-1):
        self.count, self.broken = count, broken

    def __len__(self):
        return self.count

    def load(self, index, keep=None):
        if index == self.broken:
            raise UsageError("broken.jpg: damaged image")
        example = scene(4, index, 64)
        rows = 40 + 4 * index
        image = np.full((rows, 64, 3), index, np.uint8)
        cropped = replace(example, image=image, masks=example.masks[:, :rows], image_id=index)
        return select(select(cropped, lambda areas, hw: np.flatnonzero(areas)), keep)


def same(a, b) -> bool:
    return all((getattr(a, name) == getattr(b, name)).all() for name in FIELDS)


def test_batches_have_the_promised_shapes():
    batch = next(batches(DATA, MODEL))
    expected = {
        "image": ((3, 64, 64, 3), np.uint8),
        "valid_size": ((3, 2), np.int32),
        "boxes": ((3, 4, 4), np.float32),
        "points": ((3, 4, 2), np.float32),
        "prompt_valid": ((3, 4), np.bool_),
        "masks": ((3, 4, 32, 32), np.bool_),
    }
    for name, (shape, dtype) in expected.items():
        value = getattr(batch, name)
        assert isinstance(value, np.ndarray) and value.shape == shape and value.dtype == dtype, name
    assert batch.teacher_embedding is None


def test_prompts_belong_to_their_image():
    for batch in islice(batches(DATA, MODEL), 4):
        for k, p in zip(*np.nonzero(batch.prompt_valid), strict=True):
            x0, y0, x1, y1 = batch.boxes[k, p] / 2  # a mask cell is 2 px
            rows, columns = np.nonzero(batch.masks[k, p])
            assert x0 - 1 <= columns.min() and columns.max() <= x1 and y0 - 1 <= rows.min() and rows.max() <= y1
            x, y = (batch.points[k, p] // 2).astype(int)
            assert batch.masks[k, p, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].any()
        empty = ~batch.prompt_valid
        assert not batch.masks[empty].any() and not batch.boxes[empty].any()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), start=st.integers(0, 50), shuffle=st.booleans(), size=st.integers(1, 4))
def test_a_run_resumes_at_any_step(seed, start, shuffle, size):
    data = replace(DATA, seed=seed, shuffle=shuffle, batch_size=size, box_jitter=0.1)
    whole = BatchSource(data, MODEL, Photos())
    resumed = batches(data, MODEL, start_step=start, source=Photos())
    for step, batch in zip(range(start, start + 2), resumed, strict=False):
        assert all((getattr(batch, name) == array).all() for name, array in whole[step].items())


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), count=st.integers(1, 7), size=st.integers(1, 5))
def test_every_epoch_has_each_photo_once(seed, count, size):
    data = replace(DATA, seed=seed, batch_size=size)
    stream = batches(data, MODEL, source=Photos(count))
    numbers = np.concatenate([b.image[:, 0, 0, 0] for b in islice(stream, -(-2 * count // size))])
    for epoch in range(2):
        assert sorted(numbers[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_epochs_and_seeds_differ_in_order_unless_told_not_to():
    def order(**changes):
        stream = batches(replace(DATA, batch_size=12, **changes), MODEL, source=Photos(12))
        return [b.image[:, 0, 0, 0].tolist() for b in islice(stream, 2)]

    first, second = order()
    assert first != second and order(seed=1)[0] != first
    assert order(shuffle=False) == [list(range(12))] * 2


def test_prompts_are_drawn_without_replacement_and_anew_each_epoch():
    data = replace(DATA, batch_size=1, max_prompts=3, shuffle=False)
    drawn = []
    for batch in islice(batches(data, MODEL, source=Photos(1)), 12):
        boxes = [tuple(box) + (tuple(point)) for box, point in zip(batch.boxes[0], batch.points[0], strict=True)]
        assert batch.prompt_valid.all() and len(set(boxes)) == 3
        drawn.append(frozenset(boxes))
    assert len(Photos().load(0)) > 3 and len(set(drawn)) > 3


def test_small_instances_are_dropped_even_if_none_is_left():
    sizes = [batch.prompt_valid.sum() for batch in (next(batches(replace(DATA, min_area=a), MODEL)) for a in (0, 200))]
    assert sizes[1] < sizes[0]
    batch = next(batches(replace(DATA, min_area=1e6), MODEL, source=Photos()))
    assert not batch.prompt_valid.any() and not batch.masks.any() and batch.image.any()


@settings(max_examples=30, deadline=None)
@given(height=st.integers(1, 100), width=st.integers(1, 100), n=st.integers(0, 6))
def test_any_photo_fits_the_frame(height, width, n):
    masks = np.ones((n, height, width), bool)  # the whole photo
    boxes = np.tile(np.array([0, 0, width, height], np.float32), (n, 1))
    points = np.tile(np.array([width // 2, height // 2], np.float32), (n, 1))
    arrays = example_arrays(Example(np.full((height, width, 3), 9, np.uint8), masks, boxes, points), DATA, MODEL)
    rows, columns = arrays["valid_size"]
    assert max(rows, columns) == 64 and (arrays["image"][:rows, :columns] == 9).all()
    assert arrays["image"].sum() == 27 * rows * columns
    assert arrays["prompt_valid"].sum() == min(n, 4)
    for p in range(min(n, 4)):
        assert arrays["boxes"][p].tolist() == pytest.approx([0, 0, columns, rows])
        assert arrays["masks"][p].sum() == pytest.approx(rows * columns / 4, abs=32)


def test_an_empty_mask_is_no_prompt():
    example = Photos().load(0)
    example.masks[1] = False
    assert example_arrays(example, DATA, MODEL)["prompt_valid"].tolist() == [True, False, True, True]


def test_held_out_scenes_are_others():
    train, heldout = (next(batches(DATA, MODEL, split=split)) for split in ("train", "heldout"))
    assert (train.image != heldout.image).mean() > 0.5
    again = next(batches(DATA, MODEL, split="heldout"))
    assert same(heldout, again)


def test_limit_makes_scenes_an_epoch():
    data = replace(DATA, limit=2, batch_size=2)
    first, second = islice(batches(data, MODEL), 2)
    assert {i.tobytes() for i in first.image} == {i.tobytes() for i in second.image}


def test_workers_give_the_same_batches():
    data = replace(DATA, box_jitter=0.1)
    alone = list(islice(batches(data, MODEL, start_step=5), 4))
    stream = batches(replace(data, workers=2), MODEL, start_step=5)
    together = list(islice(stream, 4))
    stream.close()
    assert all(same(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_photo_reaches_the_caller_by_name(workers):
    data = replace(DATA, workers=workers, shuffle=False, batch_size=1)
    stream = batches(data, MODEL, source=Photos(3, broken=1))
    next(stream)
    with pytest.raises(UsageError, match=r"broken\.jpg"):
        next(stream)


def test_closing_ends_the_background_thread():
    stream = batches(DATA, MODEL)
    next(stream)
    assert any(t.name.startswith("data") for t in threading.enumerate())
    stream.close()
    for thread in threading.enumerate():
        if thread.name.startswith("data"):
            thread.join(10)
            assert not thread.is_alive()


def test_bad_configs_are_refused_at_once(tmp_path):
    with pytest.raises(UsageError, match="at least 1"):
        batches(replace(DATA, batch_size=0), MODEL)
    for source in ("coco", "images"):
        with pytest.raises(UsageError, match="no such folder"):
            open_source(replace(DATA, source=source, root=str(tmp_path / "none")), 64)


def test_workers_need_no_jax():
    code = (
        "import sys; import edgesam_jax.data.pipeline, edgesam_jax.data.coco, edgesam_jax.data.images; "
        "print(sorted({'jax', 'flax', 'torch', 'tensorflow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
