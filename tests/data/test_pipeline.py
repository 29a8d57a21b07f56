import io
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from itertools import islice, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import ROOT
from PIL import Image
from pycocotools import mask as coco_mask

from edgesam_jax.config import AugmentConfig, DataConfig, MixtureConfig, RepVitConfig, SamConfig, UsageError
from edgesam_jax.data.augment import augment, mirror, recolour, zoom
from edgesam_jax.data.opening import open_parts, open_source
from edgesam_jax.data.order import ShuffleWindows, order
from edgesam_jax.data.pipeline import BatchSource, batches, check_size, example_arrays
from edgesam_jax.data.readers.records import Record, decode_record
from edgesam_jax.data.scenes.scene import scene
from edgesam_jax.data.schema import BadExample, Example, boxes_of
from edgesam_jax.data.source import Part, select
from edgesam_jax.data.transforms import suppress_masks

MODEL = SamConfig(image_size=64, encoder=RepVitConfig(stem_strides=(2, 1)))
DATA = DataConfig(batch_size=3, max_prompts=4)
FIELDS = ("image", "valid_size", "boxes", "points", "prompt_valid", "masks")


class Photos:
    """A small data set of odd sizes whose pixels give the photo's number; test workers import this class."""

    annotated = true_masks = True

    def __init__(self, count=5, broken=(), error=None):
        self.count, self.broken, self.error = count, broken, error

    def __len__(self):
        return self.count

    def load(self, index, keep=None):
        if index in self.broken:
            raise self.error or BadExample("photo damaged", f"broken_{index}.jpg: damaged image")
        example = scene(4, index, 64)
        rows = 40 + 4 * index
        image = np.full((rows, 64, 3), index, np.uint8)
        cropped = replace(example, image=image, masks=example.masks[:, :rows], image_id=index)
        return select(select(cropped, lambda areas, hw: np.flatnonzero(areas)), keep)


def same(a, b) -> bool:
    return all((getattr(a, name) == getattr(b, name)).all() for name in FIELDS)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 70), st.integers(0, 9))
def test_windows_are_epochs_of_neighbours(size, window, seed):
    windows = ShuffleWindows(size, window, seed)
    orders = [[windows[size * epoch + place] for place in range(size)] for epoch in range(3)]
    for found in orders:
        assert sorted(found) == list(range(size))
        blocks = [index // window for index in found]
        assert sum(a != b for a, b in pairwise(blocks)) == -(-size // window) - 1
    if size > 20:
        assert orders[0] != orders[1] != orders[2]
    assert (
        ShuffleWindows(size, window, seed)[size + size // 2] == orders[1][size // 2]
    )  # independent of earlier accesses


def test_a_window_changes_the_order_and_nothing_else():
    data = replace(DATA, shuffle_window=2)
    found = order([Part(Photos(5)), Part(Photos(3), 2.0)], data)
    seen = [found(position) for position in range(30)]
    assert {index for which, index in seen if which == 0} == set(range(5))
    second = [index for which, index in seen if which == 1]
    assert all(sorted(second[i : i + 3]) == [0, 1, 2] for i in range(0, 18, 3))


CHILD = """
import signal
from edgesam_jax.config import ConvEncoderConfig, DataConfig, SamConfig
from edgesam_jax.data.pipeline import batches
if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *unused: None)
    model = SamConfig(encoder=ConvEncoderConfig(), image_size=64)
    data = batches(DataConfig(source="scenes", batch_size=2, workers=2), model)
    while True:
        next(data)
        print("batch", flush=True)
"""


def test_workers_outlive_signals_to_the_group_and_not_their_parent(tmp_path):
    """Ctrl-C and schedulers signal all processes of a group; a run that then saves still needs its data."""
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment,
        start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout and process.stdout.readline() == "batch\n"
        os.killpg(process.pid, signal.SIGTERM)
        for _ in range(30):  # more than were prepared
            assert process.stdout.readline() == "batch\n"
        process.kill()
        process.wait()
        end = time.monotonic() + 30
        while group_lives(process.pid) and time.monotonic() < end:
            time.sleep(0.2)
        assert not group_lives(process.pid)


def group_lives(leader: int) -> bool:
    try:
        os.killpg(leader, 0)
    except ProcessLookupError:
        return False
    return True


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


@pytest.mark.parametrize("jitter", [0.0, 0.1])
def test_batches_without_masks_are_otherwise_the_same(jitter):
    data = replace(DATA, box_jitter=jitter)
    for whole, batch in islice(zip(batches(data, MODEL), batches(data, MODEL, masks=False), strict=False), 3):
        assert whole.masks is not None and batch.masks is None and same(whole, replace(batch, masks=whole.masks))


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
    full = BatchSource(data, MODEL, [Part(Photos())])
    resumed = batches(data, MODEL, start_step=start, parts=[Part(Photos())])
    for step, batch in zip(range(start, start + 2), resumed, strict=False):
        assert all((getattr(batch, name) == array).all() for name, array in full[step].arrays.items())


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), count=st.integers(1, 7), size=st.integers(1, 5))
def test_every_epoch_has_each_photo_once(seed, count, size):
    data = replace(DATA, seed=seed, batch_size=size)
    stream = batches(data, MODEL, parts=[Part(Photos(count))])
    numbers = np.concatenate([b.image[:, 0, 0, 0] for b in islice(stream, -(-2 * count // size))])
    for epoch in range(2):
        assert sorted(numbers[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_epochs_and_seeds_differ_in_order_unless_told_not_to():
    def order(**changes):
        stream = batches(replace(DATA, batch_size=12, **changes), MODEL, parts=[Part(Photos(12))])
        return [b.image[:, 0, 0, 0].tolist() for b in islice(stream, 2)]

    first, second = order()
    assert first != second and order(seed=1)[0] != first
    assert order(shuffle=False) == [list(range(12))] * 2


def test_prompts_are_drawn_without_replacement_and_anew_each_epoch():
    data = replace(DATA, batch_size=1, max_prompts=3, shuffle=False)
    drawn = []
    for batch in islice(batches(data, MODEL, parts=[Part(Photos(1))]), 12):
        boxes = [tuple(box) + (tuple(point)) for box, point in zip(batch.boxes[0], batch.points[0], strict=True)]
        assert batch.prompt_valid.all() and len(set(boxes)) == 3
        drawn.append(frozenset(boxes))
    assert len(Photos().load(0)) > 3 and len(set(drawn)) > 3


def test_small_instances_are_dropped_even_if_none_is_left():
    sizes = [batch.prompt_valid.sum() for batch in (next(batches(replace(DATA, min_area=a), MODEL)) for a in (0, 200))]
    assert sizes[1] < sizes[0]
    batch = next(batches(replace(DATA, min_area=1e6), MODEL, parts=[Part(Photos())]))
    assert not batch.prompt_valid.any() and not batch.masks.any() and batch.image.any()


@settings(max_examples=30, deadline=None)
@given(height=st.integers(1, 100), width=st.integers(1, 100), n=st.integers(0, 6))
def test_any_photo_fits_the_frame(height, width, n):
    masks = np.ones((n, height, width), bool)  # the entire photo
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
def test_an_error_that_is_not_about_one_photo_reaches_the_caller(workers):
    data = replace(DATA, workers=workers, shuffle=False, batch_size=1)
    stream = batches(data, MODEL, parts=[Part(Photos(3, broken=(1,), error=UsageError("the disk is gone")))])
    next(stream)
    with pytest.raises(UsageError, match="the disk is gone"):
        next(stream)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_photo_that_can_not_be_used_is_replaced_and_reported(workers):
    data = replace(DATA, workers=workers, shuffle=False, batch_size=5)
    parts = [Part(Photos(5, broken=(1, 3)))]
    stream = batches(data, MODEL, parts=parts)
    drawn = []
    for step in range(3):
        drawn.append(next(stream))
        skipped = stream.take_skipped()
        assert {"broken_1.jpg", "broken_3.jpg"} <= {row.message.split(":")[0] for row in skipped}
        assert {(row.kind, row.step) for row in skipped} == {("photo damaged", step)}
        assert len(stream.ids) == 5 and stream.ids[0] == 0 and not {1, 3} & set(stream.ids)
        assert drawn[-1].image[:, 0, 0, 0].tolist() == stream.ids
    assert not stream.take_skipped() and stream.counts["photo damaged"] >= 6
    assert stream.used == 15
    stream.close()
    resumed = batches(replace(data, workers=0), MODEL, start_step=2, parts=parts)
    assert same(next(resumed), drawn[2])


def test_a_data_set_of_nothing_but_bad_photos_is_given_up():
    with pytest.raises(UsageError, match=r"broken_\d\.jpg: damaged image \(20 photos in a row"):
        next(batches(DATA, MODEL, parts=[Part(Photos(3, broken=(0, 1, 2)))]))


@settings(max_examples=20, deadline=None)
@given(
    height=st.integers(1, 80),
    width=st.integers(1, 80),
    scale=st.sampled_from([1, 300]),
)
def test_photos_of_no_use_are_refused(height, width, scale):
    image = np.lib.stride_tricks.as_strided(np.zeros(1, np.uint8), (height, width * scale, 3), (0, 0, 0))
    example = Example(image, np.zeros((0, 1, 1), bool), np.zeros((0, 4)), np.zeros((0, 2)))
    longest, shortest = max(image.shape[:2]), min(image.shape[:2])
    if longest > 16384:
        with pytest.raises(BadExample, match="shrink"):
            check_size(example)
    elif longest > 64 * shortest:
        with pytest.raises(BadExample, match="crop"):
            check_size(example)
    else:
        check_size(example)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 99), processes=st.sampled_from([1, 2, 3, 6]), step=st.integers(0, 9))
def test_processes_share_the_global_batch(seed, processes, step):
    data = replace(DATA, seed=seed, batch_size=6, box_jitter=0.1)
    parts = [Part(Photos(5, broken=(2,)))]
    full = BatchSource(data, MODEL, parts)[step]
    shares = [BatchSource(data, MODEL, parts, (i, processes))[step] for i in range(processes)]
    assert [i for share in shares for i in share.ids] == full.ids
    assert [row for share in shares for row in share.skipped] == full.skipped
    for name, array in full.arrays.items():
        assert (np.concatenate([share.arrays[name] for share in shares]) == array).all()
    with pytest.raises(UsageError, match="is not divisible by 4 processes"):
        batches(data, MODEL, parts=parts, shard=(0, 4))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**40), first=st.floats(0.2, 5), counts=st.tuples(st.integers(1, 30), st.integers(1, 30)))
def test_a_mixture_keeps_its_weights_and_the_epochs_of_its_parts(seed, first, counts):
    parts = [Part(Photos(counts[0]), first), Part(Photos(counts[1]), 1.0)]
    draw = order(parts, replace(DATA, seed=seed))
    drawn = [draw(position) for position in range(240)]
    for number, count in enumerate(counts):
        own = [index for part, index in drawn if part == number]
        assert len(own) == pytest.approx(240 * (first, 1.0)[number] / (first + 1), abs=2)
        for epoch in range(len(own) // count):
            assert sorted(own[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_a_mixture_is_opened_from_its_config(tmp_path):
    mixture = (MixtureConfig("scenes", limit=3, weight=2.0), MixtureConfig("scenes", limit=2))
    data = replace(DATA, mixture=mixture)
    assert [(len(part.source), part.weight) for part in open_parts(data, 64)] == [(3, 2.0), (2, 1.0)]
    assert next(batches(data, MODEL)).image.any()
    with pytest.raises(UsageError, match=r"mixture\[0\]\.weight=0"):
        open_parts(replace(data, mixture=(MixtureConfig("scenes", weight=0),)), 64)


def test_covered_masks_are_dropped():
    masks = np.zeros((4, 8, 8), bool)
    masks[0, 2:4, 2:4] = True  # entirely inside the second
    masks[1, 1:7, 1:7] = True
    masks[2, 0, :4] = True  # apart
    masks[3, 6:8, 1:7] = True  # half of it inside the second
    for share, expected in ((0.0, [1, 2]), (0.4, [1, 2]), (0.5, [1, 2, 3]), (0.99, [1, 2, 3]), (1.0, [0, 1, 2, 3])):
        assert suppress_masks(masks, share).tolist() == expected
    data = replace(DATA, mask_nms=0.5, max_prompts=30)
    kept = BatchSource(data, MODEL, [Part(Photos(1))])[0].arrays["prompt_valid"].sum(1)
    every = BatchSource(replace(data, mask_nms=1.0), MODEL, [Part(Photos(1))])[0].arrays["prompt_valid"].sum(1)
    assert (kept > 0).all() and (kept < every).all()  # scenes have parts on objects


@settings(max_examples=40, deadline=None)
@given(
    index=st.integers(0, 50), seed=st.integers(0, 999), scale=st.floats(0, 0.6), flip=st.sampled_from([0.0, 0.5, 1.0])
)
def test_augmented_boxes_and_points_still_belong_to_their_masks(index, seed, scale, flip):
    example = select(scene(5, index, 64), lambda areas, hw: np.flatnonzero(areas))
    config = AugmentConfig(flip=flip, scale=scale, colour=0.3)
    changed = augment(example, config, np.random.default_rng(seed))
    again = augment(example, config, np.random.default_rng(seed))
    assert (changed.image == again.image).all() and (changed.masks == again.masks).all()
    assert len(changed) == len(changed.boxes) == len(changed.points) == len(changed.annotation_ids)
    assert changed.masks.shape[1:] == changed.image.shape[:2]
    assert np.abs(changed.boxes - boxes_of(changed.masks)).max(initial=0) <= 1
    x, y = changed.points.T.astype(int)
    inside = changed.masks[np.arange(len(changed)), y, x]
    before = example.masks[np.arange(len(example)), *example.points.T[::-1].astype(int)]
    assert inside.all() or not before.all()


def test_augmentation_is_what_it_says():
    example = Photos(1).load(0)
    rng = np.random.default_rng(0)
    assert augment(example, AugmentConfig(), rng) is example and rng.random() == np.random.default_rng(0).random()
    mirrored = mirror(example)
    assert (mirrored.masks[:, :, ::-1] == example.masks).all()
    twice = mirror(mirrored)
    assert all((getattr(twice, name) == getattr(example, name)).all() for name in ("image", "masks", "boxes", "points"))
    rows, columns = example.image.shape[:2]
    assert zoom(example, 0.5, rng).image.shape == (2 * rows, 2 * columns, 3)
    assert zoom(example, 0.5, rng).masks.sum() == example.masks.sum()
    assert zoom(example, 2.0, rng).image.shape == (rows // 2, columns // 2, 3)
    assert recolour(example, np.array([0.0, 1.0, 1.0])).image.max() == 0
    batch = next(batches(replace(DATA, augment=AugmentConfig(flip=1.0), shuffle=False, batch_size=1), MODEL))
    plain = next(batches(replace(DATA, shuffle=False, batch_size=1), MODEL))
    assert (batch.image == plain.image[:, :, ::-1]).all()


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
        "import sys; import edgesam_jax.data.pipeline, edgesam_jax.data.readers.coco, edgesam_jax.data.readers.images; "
        "print(sorted({'jax', 'flax', 'torch', 'tensorflow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


class Records:
    """A data set of records only, from which a batch decodes windows rather than full-size masks."""

    annotated = true_masks = True

    def __init__(self, records):
        self.records = records

    def __len__(self):
        return len(self.records)

    def record(self, index):
        return self.records[index]


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(2, 90), width=st.integers(2, 90), seed=st.integers(0, 99), orientation=st.sampled_from([1, 6])
)
def test_a_batch_of_files_is_that_of_whole_masks(height, width, seed, orientation):
    rng = np.random.default_rng(seed)
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    stored = (width, height) if orientation == 6 else (height, width)
    Image.fromarray(rng.integers(0, 256, (*stored, 3), np.uint8)).save(buffer, "JPEG", exif=exif)
    annotations = []
    for i, density in enumerate((0, 0.02, 0.5, 1)):
        mask = rng.random((height, width)) < density
        runs = coco_mask.encode(np.asfortranarray(mask.view(np.uint8)))
        x0, y0, x1, y1 = map(float, boxes_of(mask[None])[0])
        annotations.append({"id": i, "bbox": [x0, y0, x1 - x0, y1 - y0], "segmentation": runs})
    record = Record(buffer.getvalue(), "a.jpg", 7, annotations, "a.json", (height, width))
    data = replace(DATA, batch_size=1, max_prompts=6, box_jitter=0.1)
    loaded = BatchSource(data, MODEL, [Part(Records([record]))])[0]
    example = decode_record(record)
    expected = example_arrays(example, data, MODEL, np.random.default_rng([data.seed, 1, 0]))
    assert loaded.ids == [7] and example.masks.shape == (4, height, width)
    for name, array in expected.items():
        assert np.array_equal(loaded.arrays[name][0], array), name
