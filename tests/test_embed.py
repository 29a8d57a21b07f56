"""The store of teacher embeddings: reads return what was written, and never another photo's or teacher's embedding."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small_data import coco_folder
from tiny import CONV, FAST_FLAGS, REPVIT

from edgesam_jax import embed
from edgesam_jax.checkpoints.digest import encoder_digest
from edgesam_jax.checkpoints.model import Model
from edgesam_jax.checkpoints.save import save_model_file
from edgesam_jax.config import AugmentConfig, Config, DataConfig, DistillConfig, MixtureConfig, TrainConfig, UsageError
from edgesam_jax.data import source as data_source
from edgesam_jax.data.embeddings import EmbeddingStore, dequantise, photo_key, quantise, read_header, shard_name
from edgesam_jax.data.opening import open_parts, open_source
from edgesam_jax.data.photo import load_image
from edgesam_jax.data.pipeline import batches
from edgesam_jax.data.schema import BadExample
from edgesam_jax.models.init import init_variables
from edgesam_jax.portable.frame import into_frame
from edgesam_jax.predict.compiled import encoder, for_inference
from edgesam_jax.train import inputs
from edgesam_jax.train.run import fit


@pytest.fixture(scope="module")
def teacher():
    return Model(CONV, init_variables(CONV, 3), {"source": "a tiny one"})


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return coco_folder(tmp_path_factory.mktemp("data") / "coco", 7)


@pytest.fixture(scope="module")
def data(photos):
    return DataConfig(source="coco", root=str(photos), batch_size=2, max_prompts=3)


def embedding_of(teacher, image, resize="pillow"):
    """The embedding, computed for this photo alone."""
    framed, size = into_frame(image, teacher.config.image_size, resize=resize)
    variables = for_inference(teacher.config, teacher.variables)
    return np.asarray(encoder(teacher.config)(variables, framed[None], np.array([size], np.int32)))[0]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), spread=st.floats(1e-4, 1e3))
def test_numbers_survive_storing(seed, spread):
    x = (np.random.default_rng(seed).normal(size=(2, 3, 3, 5)) * spread).astype(np.float32)
    x[0, ..., 2] = 0  # a dead channel
    for dtype, exact in (("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)):
        stored, scale = quantise(x, dtype)
        assert scale is None and stored.itemsize == 2
        assert (dequantise(stored[0], None, dtype).astype(np.float32) == x[0].astype(exact).astype(np.float32)).all()
    stored, scale = quantise(x, "int8")
    assert stored.dtype == np.int8 and scale.shape == (2, 5)
    for row in range(2):
        back = dequantise(stored[row], scale[row], "int8")
        assert (np.abs(back - x[row]) <= scale[row] * 0.5001).all()
    assert np.isfinite(quantise(np.full((1, 1, 1, 1), 1e6, np.float32), "float16")[0]).all()


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 1e-3), ("bfloat16", 8e-3), ("int8", 2e-2)])
def test_training_reads_the_teachers_embeddings(tmp_path, teacher, data, dtype, tolerance):
    report = embed.embed(teacher, data, tmp_path / "store", dtype, per_shard=3, batch_size=2)
    assert (report.embedded, report.skipped, report.remaining) == (7, [], 0)
    model = dataclasses.replace(REPVIT, image_size=CONV.image_size)
    stream = batches(dataclasses.replace(data, embeddings=(str(tmp_path / "store"),)), model)
    source = open_source(data, 64)
    by_id = {source.record(i).image_id: embedding_of(teacher, source.load(i).image) for i in range(7)}
    seen = set()
    for _ in range(5):
        batch = next(stream)
        for image_id, embedding in zip(stream.ids, batch.teacher_embedding, strict=True):
            expected = by_id[image_id]
            assert embedding.shape == expected.shape == (CONV.grid, CONV.grid, CONV.embed_dim)
            assert np.abs(embedding - expected).max() <= tolerance * np.abs(expected).max()
            seen.add(image_id)
    assert seen == set(by_id)


def test_a_run_from_a_store_is_the_run_with_the_teacher_online(tmp_path, teacher, data):
    save_model_file(tmp_path / "teacher.msgpack", teacher)
    store = tmp_path / "store"
    embed.embed(teacher, data, store, "float16")
    config = Config(
        model=CONV, teacher=str(tmp_path / "teacher.msgpack"),
        data=data, distill=DistillConfig(mode="encoder_only"),
        train=TrainConfig(steps=3, log_every=1, picture_every=0, devices=1),
    )  # fmt: skip
    losses = []
    for name, stores in (("online", ()), ("stored", (str(store),))):
        changed = dataclasses.replace(config, data=dataclasses.replace(data, embeddings=stores))
        fit(changed, tmp_path / name, quiet=True)
        rows = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(row)["loss"] for row in rows])
    assert len(losses[0]) == 3 and np.allclose(*losses, rtol=2e-3)


def test_a_store_belongs_to_one_way_of_resizing(tmp_path, teacher, data):
    stores = {}
    for resize in ("pillow", "torch"):
        stores[resize] = tmp_path / resize
        embed.embed(teacher, dataclasses.replace(data, resize=resize), stores[resize])
        store, source = EmbeddingStore(stores[resize]), open_source(data, 64)
        assert store.header.resize == resize
        for index in (0, 5):
            found = store.read(photo_key(source.record(index).photo)).astype(np.float32)
            expected = embedding_of(teacher, source.load(index).image, resize)
            assert np.abs(found - expected).max() <= 1e-3 * np.abs(expected).max()
    with pytest.raises(UsageError, match="a store with another preprocessing"):
        embed.embed(teacher, data, stores["torch"])
    for resize, other in (("pillow", "torch"), ("torch", "pillow")):
        chosen = dataclasses.replace(data, embeddings=(str(stores[resize]),), resize=resize)
        inputs.check_store(Config(teacher="t", data=chosen), teacher)
        message = f"resized with {resize}, but data.resize={other}; .* --resize {other}"
        with pytest.raises(UsageError, match=message):
            inputs.check_store(Config(teacher="t", data=dataclasses.replace(chosen, resize=other)), teacher)


def test_a_run_on_unrounded_photos_draws_its_pictures(tmp_path, teacher, data):
    save_model_file(tmp_path / "teacher.msgpack", teacher)
    config = Config(
        model=CONV, teacher=str(tmp_path / "teacher.msgpack"), data=dataclasses.replace(data, resize="torch"),
        distill=DistillConfig(mode="encoder_only"),
        train=TrainConfig(steps=1, log_every=1, picture_every=1, devices=1),
    )  # fmt: skip
    fit(config, tmp_path / "run", quiet=True)
    assert [path.name for path in (tmp_path / "run/pictures").iterdir()] == ["0000001.png"]


def test_parts_share_the_work_and_the_result_is_the_same(tmp_path, teacher, data):
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    embed.embed(teacher, data, alone, per_shard=2)
    first = embed.embed(teacher, data, shared, per_shard=2, part=(1, 3))
    assert first.embedded == 2 and first.remaining == 3
    with pytest.raises(UsageError, match="3 of 4 shards are missing"):
        EmbeddingStore(shared)
    embed.embed(teacher, data, shared, per_shard=2, part=(0, 2))
    assert embed.embed(teacher, data, shared, per_shard=2).remaining == 0
    for number in range(4):
        assert (shared / shard_name(number, 4)).read_bytes() == (alone / shard_name(number, 4)).read_bytes()


def test_a_killed_call_resumes(tmp_path, teacher, photos):
    save_model_file(tmp_path / "teacher.msgpack", teacher)
    store = tmp_path / "store"
    command = [
        sys.executable, "-m", "edgesam_jax.embed", "--teacher", tmp_path / "teacher.msgpack", "--source", "coco",
        "--root", photos, "--output", store, "--photos-per-shard", "1",
    ]  # fmt: skip
    process = subprocess.Popen([str(c) for c in command], stderr=subprocess.DEVNULL, start_new_session=True)
    until = time.monotonic() + 120
    while len(list(store.glob("*.safetensors"))) < 2 and time.monotonic() < until:
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    there = {p: p.stat().st_mtime_ns for p in store.glob("*.safetensors")}
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    assert done.returncode == 0 and "0 skipped" in done.stdout, done.stderr
    assert len(there) >= 2 and all(p.stat().st_mtime_ns == when for p, when in there.items())
    assert len(EmbeddingStore(store)) == 7 and not list(store.glob(".*"))


def test_bad_photos_are_skipped_and_replaced_in_training(tmp_path, teacher):
    root = coco_folder(tmp_path / "coco", 5)
    (root / "003.jpg").write_bytes(b"")
    data = DataConfig(source="coco", root=str(root), batch_size=5, shuffle=False, embeddings=(str(tmp_path / "store"),))
    report = embed.embed(teacher, data, tmp_path / "store", per_shard=2)
    assert report.embedded == 4 and [kind for kind, _ in report.skipped] == ["photo damaged"]
    (tmp_path / "store" / shard_name(1, 3)).unlink()  # embedded again, the photo is listed only once
    assert embed.embed(teacher, data, tmp_path / "store", per_shard=2).embedded == 1
    (row,) = (tmp_path / "store/skipped-0-of-1.jsonl").read_text().splitlines()
    assert json.loads(row)["kind"] == "photo damaged" and "003.jpg" in row
    store = pickle.loads(pickle.dumps(EmbeddingStore(tmp_path / "store")))
    assert len(store) == 4 and photo_key(b"") not in store
    (root / "004.jpg").write_bytes(
        (root / "001.jpg").read_bytes()
    )  # another photo of another size, not the one embedded
    (root / "005.jpg").write_bytes((root / "005.jpg").read_bytes() + b"\0")
    stream = batches(data, REPVIT)
    next(stream)
    assert set(stream.counts) >= {"photo damaged", "photo of another size", "embedding missing"}
    assert 3 not in stream.ids and 5 not in stream.ids


def test_too_many_bad_photos_stop_it(tmp_path, teacher, monkeypatch):
    root = coco_folder(tmp_path / "coco", 4)
    data = DataConfig(source="coco", root=str(root))
    (root / "003.jpg").write_bytes(b"")
    monkeypatch.setattr(data_source, "ENOUGH_TO_JUDGE", 4)
    with pytest.raises(UsageError, match=r"1 of the first 4 photos can't be used, more than --max-bad-share 0.2"):
        embed.embed(teacher, data, tmp_path / "a", per_shard=2, max_bad_share=0.2)
    for name in ("001.jpg", "002.png", "004.jpg"):
        (root / name).write_bytes(b"")
    with pytest.raises(UsageError, match="none of the 4 photos can be used"):
        embed.embed(teacher, data, tmp_path / "b", per_shard=2, max_bad_share=1.0)


@pytest.mark.slow
def test_all_devices_make_the_same_store(tmp_path, teacher, photos):
    save_model_file(tmp_path / "teacher.msgpack", teacher)
    for devices in (1, 4):
        command = [
            sys.executable, "-m", "edgesam_jax.embed", "--teacher", tmp_path / "teacher.msgpack", "--source", "coco",
            "--root", photos, "--output", tmp_path / str(devices), "--photos-per-shard", "5", "--batch-size", "1",
        ]  # fmt: skip
        environment = {**os.environ, "XLA_FLAGS": f"{FAST_FLAGS} --xla_force_host_platform_device_count={devices}"}
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True, env=environment)
        assert done.returncode == 0 and "7 photos embedded" in done.stdout, done.stderr
    for number in range(2):
        a, b = ((tmp_path / n / shard_name(number, 2)).read_bytes() for n in ("1", "4"))
        assert a == b


def test_a_mixture_reads_from_several_stores(tmp_path, teacher):
    """Each photo's embedding is found by its key, in whichever store holds it."""
    roots = [coco_folder(tmp_path / name, count) for name, count in (("a", 2), ("b", 5))]
    stores = []
    for root in roots:
        stores.append(str(tmp_path / f"{root.name}_store"))
        embed.embed(teacher, DataConfig(source="coco", root=str(root)), Path(stores[-1]))
    mixture = tuple(MixtureConfig("coco", root=str(root)) for root in roots)
    data = DataConfig(mixture=mixture, batch_size=14, embeddings=tuple(stores))
    stream = batches(data, REPVIT)
    assert next(stream).teacher_embedding.shape[0] == 14 and not stream.counts
    next(batches(dataclasses.replace(data, embeddings=tuple(stores[:1])), REPVIT))


def test_damage_is_named(tmp_path, teacher, data):
    store_path = tmp_path / "store"
    embed.embed(teacher, data, store_path, per_shard=4)
    keys = [photo_key(open_source(data, 64).record(i).photo) for i in range(7)]
    path = store_path / shard_name(1, 2)
    content = bytearray(path.read_bytes())
    intact = bytes(content)
    start_of_data = 8 + int.from_bytes(content[:8], "little")
    content[start_of_data + 100] ^= 0x40
    path.write_bytes(content)
    store = EmbeddingStore(store_path)
    for key in keys[:4]:
        store.read(key)
    kinds = []
    for key in keys[4:]:
        try:
            store.read(key)
        except BadExample as error:
            assert path.name in str(error)
            kinds.append(error.kind)
    assert kinds == ["embedding damaged"]
    path.unlink()  # while a run has the store open
    store.expect(keys[4])
    with pytest.raises(BadExample, match=path.name):
        store.read(keys[4])
    path.write_bytes(intact[: start_of_data + 10])
    with pytest.raises(BadExample, match="damaged"):
        store.read(keys[4])
    path.write_bytes(intact[: len(intact) // 2])
    with pytest.raises(UsageError, match=path.name):
        EmbeddingStore(store_path)
    path.write_bytes((store_path / shard_name(0, 2)).read_bytes().replace(b"photos", b"phonos"))
    with pytest.raises(UsageError, match=path.name):
        EmbeddingStore(store_path)


def test_a_store_of_something_else_is_refused(tmp_path, teacher, data):
    store = tmp_path / "store"
    embed.embed(teacher, data, store)
    config = Config(model=REPVIT, teacher="t", data=dataclasses.replace(data, embeddings=(str(store),)))
    inputs.check_store(config, teacher)
    changed = jax.tree.map(np.array, teacher.variables)
    leaf = jax.tree.leaves(changed["params"]["image_encoder"])[0]
    leaf.reshape(-1)[0] += 1e-3
    with pytest.raises(UsageError, match="another teacher"):
        inputs.check_store(config, Model(CONV, changed))
    decoder = jax.tree.map(np.array, teacher.variables)
    jax.tree.leaves(decoder["params"]["mask_decoder"])[0].reshape(-1)[0] += 1e-3
    assert encoder_digest(Model(CONV, decoder)) == encoder_digest(teacher)  # the decoder may differ
    for other, message in (
        (dataclasses.replace(config.data, augment=AugmentConfig(flip=0.5)), "augment"),
        (dataclasses.replace(config.data, embeddings=(str(tmp_path),)), "no store.json"),
    ):
        with pytest.raises(UsageError, match=message):
            inputs.check_store(dataclasses.replace(config, data=other), teacher)
    with pytest.raises(UsageError, match="the run has no teacher"):
        inputs.check_store(config, None)
    for changes, message in (
        ({"dtype": "int8"}, "another dtype"),
        ({"per_shard": 2}, "another shards"),
        ({"teacher": Model(CONV, changed)}, "another teacher"),
        ({"data": dataclasses.replace(data, limit=3)}, "another photos"),
    ):
        arguments = {"teacher": teacher, "data": data, "output": store} | changes
        with pytest.raises(UsageError, match=message):
            embed.embed(**arguments)
    (store / "store.json").write_text((store / "store.json").read_text().replace("bilinear", "bicubic"))
    with pytest.raises(UsageError, match="other preprocessing"):
        read_header(store)


def test_wrong_usage_gives_a_one_line_error(tmp_path, capsys, photos):
    base = ["--teacher", "tiny_teacher", "--source", "coco", "--root", photos, "--output", tmp_path / "out"]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    for arguments, message in (
        ([*base, "--part", "3/3"], "--part"),
        ([*base, "--dtype", "int4"], "--dtype"),
        ([*base[:-1], tmp_path / "full"], "already contains other files"),
        (["--teacher", tmp_path / "none", *base[2:]], "no such file"),
        ([*base[:5], tmp_path / "nowhere", *base[6:]], "no such folder"),
    ):
        assert embed.main([str(a) for a in arguments]) == 2, message
        error = capsys.readouterr().err.splitlines()
        assert error[-1].startswith("error: ") and message in error[-1], (message, error)


def test_a_store_belongs_to_its_range_of_pixels(tmp_path, teacher, capsys):
    root, store = tmp_path / "photos", tmp_path / "store"
    root.mkdir()
    for number in range(2):
        values = np.random.default_rng(number).integers(0, 4096, (30, 40)).astype(np.uint16)
        Image.fromarray(values).save(root / f"{number}.png")
    data = DataConfig(source="images", root=str(root), batch_size=2, shuffle=False, pixel_range="0,4095")
    assert embed.embed(teacher, data, store).embedded == 2
    assert not capsys.readouterr().err.count("note:")
    stored = EmbeddingStore(store)
    assert stored.header.pixel_range == "0,4095"
    for index in range(2):
        record = open_source(data, 64).record(index)
        image = load_image(record.photo, pixel_range="0,4095")
        np.testing.assert_allclose(
            stored.read(photo_key(record.photo, "0,4095")).astype(np.float32), embedding_of(teacher, image), atol=0.02
        )
        assert photo_key(record.photo) not in stored  # never found for pixels that are read otherwise
    model = dataclasses.replace(REPVIT, image_size=CONV.image_size)
    batch = next(batches(dataclasses.replace(data, embeddings=(str(store),)), model))
    assert batch.teacher_embedding.shape[0] == 2
    config = Config(
        model=CONV, teacher="t", distill=DistillConfig(mode="encoder_only"),
        data=dataclasses.replace(data, embeddings=(str(store),)),
    )  # fmt: skip
    inputs.check_store(config, teacher)
    plain = dataclasses.replace(config, data=dataclasses.replace(config.data, pixel_range="auto"))
    with pytest.raises(UsageError, match=r"made with --pixel-range 0,4095, but data\.pixel_range is auto"):
        inputs.check_store(plain, teacher)
    notes: list[str] = []
    inputs.open_data(plain, 0, open_parts(plain.data, plain.model.image_size), notes).close()
    assert len(notes) == 1 and notes[0].startswith("note: ") and "--set data.pixel_range=0,4095" in notes[0]
    with pytest.raises(UsageError, match="a store with another pixel_range"):
        embed.embed(teacher, plain.data, store)
