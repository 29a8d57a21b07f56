"""The engine in the browser computes what Python computes: masks, run lengths, regions."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from edgesam_jax.data.scenes.textures import photos
from edgesam_jax.portable import run_lengths
from edgesam_jax.portable.postprocess import upscale_masks
from edgesam_jax.portable.regions import clean

LOGITS = 2e-4  # the gate's limit for logits from end to end: root mean square over that of the reference
PHOTOS = {"astronaut": photos()[0][0], "chelsea": photos()[1][0], "on end": np.rot90(photos()[2][0]).copy()}
BOX, POINTS = [100.5, 60.25, 300.0, 280.75], [[150.0, 120.0, 1], [220.5, 200.25, 0], [180.0, 90.5, 1]]
PROMPTS = {
    "point": {"points": POINTS[:1], "box": None},
    "points": {"points": POINTS, "box": None},
    "box": {"points": [], "box": BOX},
    "box and points": {"points": POINTS[:2], "box": BOX},
}


def text_of(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def array_of(text: str, dtype: Any, *shape: int) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype).reshape(shape)


def png_text(photo: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(photo).save(file, "PNG", compress_level=1)
    return base64.b64encode(file.getvalue()).decode()


def relative(values: np.ndarray, reference: np.ndarray) -> float:
    return float(np.sqrt(np.mean((values - reference) ** 2) / np.mean(reference**2)))


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 1.0


@pytest.fixture(scope="module")
def predictor():
    from edgesam_jax import Predictor, load_model

    return Predictor(load_model("tiny_teacher"))


@pytest.fixture(scope="module", params=PHOTOS)
def encoded(request, engine, predictor):
    """A photo in both: Python's predictor, and ``edge.embedding``."""
    photo = PHOTOS[request.param]
    found = engine.run(
        "edge.embedding = await edge.model.encode(await edge.open(x)); return edge.embedding;", png_text(photo)
    )
    embedding = predictor.set_image(photo)
    assert (found["height"], found["width"]) == photo.shape[:2] and tuple(found["filled"]) == embedding.input_size
    return photo, embedding


def python_arguments(prompt: dict[str, Any]) -> dict[str, Any]:
    points = np.array(prompt["points"]).reshape(-1, 3)
    given = {"point_coords": points[:, :2], "point_labels": points[:, 2].astype(int)} if len(points) else {}
    return given | ({"box": prompt["box"]} if prompt["box"] else {})


def predict(engine, prompt: dict[str, Any], mask_input: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Predict in the browser; return logits (4 s s) and scores (4)."""
    found = engine.run(
        "const maskInput = x.mask && new Float32Array(edge.bytes(x.mask).buffer);"
        "edge.prediction = await edge.model.predict(edge.embedding, x.prompt, { maskInput });"
        "return { logits: edge.text(edge.prediction.logits), scores: Array.from(edge.prediction.scores) };",
        {"prompt": prompt, "mask": None if mask_input is None else text_of(mask_input)},
    )
    side = engine.run("return edge.model.info.mask_size;")
    return array_of(found["logits"], np.float32, 4, side, side), np.array(found["scores"])


def full_mask(engine, index: int, size: tuple[int, int], holes: int = 0, islands: int = 0) -> np.ndarray:
    """Return a mask (h w) of the last prediction, as the engine gives it for the photo; check its area and box."""
    found = engine.run(
        "const side = edge.model.info.mask_size ** 2;"
        "const logits = edge.prediction.logits.subarray(x.index * side, (x.index + 1) * side);"
        "const options = { fillHoles: x.holes, dropIslands: x.islands };"
        "const mask = await edge.model.mask(edge.embedding, logits, options);"
        "return { ...mask, counts: Array.from(mask.counts) };",
        {"index": index, "holes": holes, "islands": islands},
    )
    assert (found["height"], found["width"]) == size
    mask = run_lengths.mask_of(np.array(found["counts"]), size)
    code = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert found["area"] == mask.sum() and found["box"] == coco_mask.toBbox(code).tolist()
    return mask


@pytest.mark.parametrize("name", PROMPTS)
def test_logits_scores_and_masks_are_pythons(engine, predictor, encoded, name):
    photo, embedding = encoded
    prompt = PROMPTS[name]
    logits, scores = predict(engine, prompt)
    masks, right_scores, right = predictor.predict(**python_arguments(prompt), num_masks=4, image=embedding)
    assert relative(logits, right) < LOGITS
    np.testing.assert_allclose(scores, right_scores, atol=1e-3)
    for index in range(4):
        assert overlap(full_mask(engine, index, photo.shape[:2]), masks[index]) >= 0.99


def test_an_earlier_mask_refines_as_in_python(engine, predictor, encoded):
    photo, embedding = encoded
    _, _, first = predictor.predict(**python_arguments(PROMPTS["box"]), image=embedding)
    for prompt in (PROMPTS["point"], PROMPTS["box and points"]):
        logits, _ = predict(engine, prompt, first[0])
        given = python_arguments(prompt)
        masks, _, right = predictor.predict(**given, mask_input=first[0], num_masks=4, image=embedding)
        _, _, without = predictor.predict(**given, num_masks=4, image=embedding)
        assert relative(logits, right) < LOGITS < relative(without, right), "the earlier mask must matter"
        assert overlap(full_mask(engine, 0, photo.shape[:2]), masks[0]) >= 0.99


def test_holes_are_filled_and_islands_dropped_as_in_python(engine, encoded):
    """On logits of noise, whose masks have regions of all sizes."""
    photo, embedding = encoded
    coarse = np.random.default_rng(2).normal(size=(24, 24)).astype(np.float32)
    side = engine.run("return edge.model.info.mask_size;")
    noise = np.asarray(Image.fromarray(coarse).resize((side, side)))
    engine.run("edge.prediction = { logits: new Float32Array(edge.bytes(x).buffer) };", text_of(noise))
    plain = upscale_masks(noise, 128, embedding.input_size, photo.shape[:2])
    for holes, islands in ((0, 0), (300, 0), (0, 3000), (2000, 2000)):
        right = clean(plain, holes, islands)
        assert np.array_equal(full_mask(engine, 0, photo.shape[:2], holes, islands), right)
        assert (holes or islands) == 0 or not np.array_equal(right, plain)


@pytest.mark.parametrize("name", PHOTOS)
def test_embeddings_are_pythons(engine, predictor, name):
    photo = PHOTOS[name]
    values = engine.run(
        "const { info } = edge.model;"
        "edge.direct ??= await edge.runtime.Runtime.load(x.base, info, 'wasm', 1, () => {});"
        "const photo = await edge.open(x.photo);"
        "const builder = new edge.frame.FrameBuilder(photo.width, photo.height, info.image_size);"
        "builder.add(photo.rows(0, photo.height));"
        "const { pixels, filled } = builder.finish();"
        "const input = edge.frame.normalised(pixels, filled, info.image_size, info.image);"
        "return edge.text((await edge.direct.encode(input, { ...photo, filled })).embedding.data);",
        {"photo": png_text(photo), "base": engine.address},
    )
    right = np.asarray(predictor.set_image(photo).values).squeeze().transpose(2, 0, 1)
    assert relative(array_of(values, np.float32, *right.shape), right) < 1e-4


def test_a_display_mask_is_pythons_to_the_pixel(engine):
    """The same logits give the same mask, at sizes larger and smaller than the photo's."""
    rng = np.random.default_rng(0)
    for filled, size in (((96, 128), (451, 600)), ((128, 85), (37, 25)), ((128, 128), (1, 1)), ((1, 128), (2, 300))):
        noise = Image.fromarray(rng.normal(size=(9, 9)).astype(np.float32))
        logits = 5 * np.asarray(noise.resize((32, 32), Image.Resampling.BICUBIC), np.float32)
        found = engine.run(
            "const logits = new Float32Array(edge.bytes(x.logits).buffer);"
            "return edge.text(edge.masks.maskAt(logits, { filled: x.filled }, 128, x.size[1], x.size[0]));",
            {"logits": text_of(logits), "filled": filled, "size": size},
        )
        assert np.array_equal(array_of(found, np.uint8, *size) > 0, upscale_masks(logits, 128, filled, size))


def random_masks() -> list[np.ndarray]:
    """Masks of many sizes, from empty to full, with regions of all sizes."""
    rng = np.random.default_rng(1)
    found = [np.zeros((3, 5), bool), np.ones((3, 5), bool), np.ones((1, 1), bool), np.eye(6, dtype=bool)]
    for _ in range(40):
        height, width = rng.integers(1, 40, 2)
        noise = Image.fromarray(rng.random((height, width)).astype(np.float32))
        smooth = noise.reduce(int(rng.integers(1, 5))).resize((width, height), Image.Resampling.BICUBIC)
        found.append(np.asarray(smooth) > rng.uniform(0.2, 0.8))
    return found


def test_run_lengths_are_cocos(engine):
    masks = random_masks()
    given = [{"mask": text_of(m.astype(np.uint8)), "height": m.shape[0], "width": m.shape[1]} for m in masks]
    found = engine.run(
        "const { runs } = edge;"
        "return x.map(({ mask, width, height }) => {"
        "  const counts = runs.encodeRuns(edge.bytes(mask), width, height);"
        "  const text = runs.toString(counts);"
        "  return { text, counts: Array.from(counts), back: Array.from(runs.fromString(text)),"
        "    decoded: edge.text(runs.decodeRuns(counts, width, height)), area: runs.areaOf(counts),"
        "    box: runs.boxOf(counts, height) };"
        "});",
        given,
    )
    for mask, one in zip(masks, found, strict=True):
        code = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert one["text"] == code["counts"].decode() and one["back"] == one["counts"]
        assert np.array_equal(array_of(one["decoded"], np.uint8, *mask.shape) > 0, mask)
        assert one["area"] == mask.sum() and one["box"] == coco_mask.toBbox(code).tolist()
    long = [[0, 1 << 26, 1, (1 << 27) - (1 << 26) - 1], [5, 100000, 3, 7, 99999, 2]]
    texts = engine.run("return x.map((counts) => edge.runs.toString(counts));", long)
    for counts, text in zip(long, texts, strict=True):
        size = [1, sum(counts)]
        assert text == coco_mask.frPyObjects({"size": size, "counts": counts}, *size)["counts"].decode()
        assert engine.run("return Array.from(edge.runs.fromString(x));", text) == counts


@pytest.mark.parametrize("text", ["~", "0", "o", "oooooooo1", "\u00e9"])
def test_a_damaged_run_length_text_is_refused(engine, text):
    body = (
        "try { const counts = edge.runs.fromString(x); edge.runs.decodeRuns(counts, 4, 4); return 'read'; }"
        " catch (error) { return error.name; }"
    )
    assert engine.run(body, text) == "RangeError"


def test_regions_are_cleaned_as_in_python(engine):
    masks = random_masks()
    areas = [(0, 0), (5, 0), (0, 5), (20, 60), (10**6, 10**6)]
    given = [{"counts": run_lengths.runs_of(m, (0, 0), m.shape).tolist(), "size": m.shape} for m in masks]
    found = engine.run(
        "return x.masks.map(({ counts, size: [height, width] }) => x.areas.map(([holes, islands]) =>"
        "  Array.from(edge.regions.clean(Uint32Array.from(counts), width, height, holes, islands))));",
        {"masks": given, "areas": areas},
    )
    changed = 0
    for mask, results in zip(masks, found, strict=True):
        for (holes, islands), counts in zip(areas, results, strict=True):
            right = clean(mask, holes, islands)
            assert np.array_equal(run_lengths.mask_of(np.array(counts), mask.shape), right)
            assert counts == run_lengths.runs_of(right, (0, 0), mask.shape).tolist()
            changed += int((right != mask).any())
    assert changed > 20


def test_clicks_are_never_dropped_and_the_newest_hover_wins(engine, encoded):
    found = engine.run(
        "const at = (i) => ({ points: [[50 + 20 * i, 60, 1]], box: null });"
        "const hovers = [0, 1, 2, 3, 4].map((i) => edge.model.hover(edge.embedding, at(i)));"
        "const clicks = [0, 1, 2].map((i) => edge.model.predict(edge.embedding, at(i)));"
        "const last = edge.model.hover(edge.embedding, at(5));"
        "const all = await Promise.all([...hovers, last, ...clicks]);"
        "const alone = await edge.model.predict(edge.embedding, at(5));"
        "return { answered: all.map((p) => p !== null), same: all[5].logits.every((v, i) => v === alone.logits[i]) };"
    )
    # The first hover starts at once; the others wait, and only the newest stays.
    assert found["answered"] == [True, False, False, False, False, True, True, True, True] and found["same"]


WRONG = {
    "no prompt": {"points": [], "box": None},
    "not on the photo": {"points": [[-1, 5, 1]], "box": None},
    "label": {"points": [[5, 5, 2]], "box": None},
    "no area": {"points": [], "box": [5, 5, 5, 9]},
    "not within": {"points": [], "box": [5, 5, 50000, 9]},
}


@pytest.mark.parametrize("words", WRONG)
def test_a_wrong_prompt_is_refused(engine, encoded, words):
    body = (
        "try { await edge.model.predict(edge.embedding, x); return 'taken'; }"
        " catch (error) { return `${error.name}: ${error.message}`; }"
    )
    said = engine.run(body, WRONG[words])
    assert said.startswith("PromptError: ") and words in said


def test_the_backend_passed_its_check(engine):
    backend = engine.run("return edge.model.backend;")
    check = backend["check"]
    assert backend["name"] == "wasm" and backend["isolated"] and backend["threads"] >= 1
    assert check["passed"] and check["worstOverlap"] > 0.999 and check["logitsError"] < LOGITS and check["prompts"] == 3
    assert backend["rejected"] == [{"name": "WebGPU", "reason": "no graphics adapter"}] or backend["rejected"]


def test_the_files_in_float16_pass_their_check(engine):
    """WebAssembly computes them in float32, so they are nearer to the reference than a graphics card would be."""
    backend = engine.run(
        "const options = { backend: 'wasm', arithmetic: 'float16' };"
        "const model = await edge.session.openModel(x, options); model.close(); return model.backend;",
        engine.address,
    )
    assert backend["half"] and backend["precision"] == "float16" and backend["check"]["passed"]
    assert 1e-5 < backend["check"]["logitsError"] < 5e-3, "not the files in float32"
