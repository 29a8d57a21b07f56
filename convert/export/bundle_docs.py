"""The texts of a bundle: its README, its licence note, and the script that runs the models on the test vectors."""

from __future__ import annotations

from string import Template
from typing import Any

from convert.export.common import ExportJob

CHECK = '''"""Run the ONNX models on the test vectors: python check.py"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from edgesam_onnx import OnnxPredictor

root = Path(__file__).resolve().parent.parent
[encoder] = (root / "onnx").glob("*_encoder.onnx")
predictor = OnnxPredictor(encoder, encoder.with_name(encoder.name.replace("_encoder", "_decoder")))
vectors = json.loads((root / "vectors" / "vectors.json").read_text())
failed = 0
for entry in vectors["photos"]:
    predictor.set_image(np.asarray(Image.open(root / "vectors" / entry["photo"]).convert("RGB")))
    for prompt in entry["prompts"]:
        points, labels = np.array(prompt["points"]), np.array(prompt["labels"])
        corners, clicks = labels >= 2, labels < 2
        masks, scores, _ = predictor.predict(
            point_coords=points[clicks] if clicks.any() else None,
            point_labels=labels[clicks] if clicks.any() else None,
            box=points[corners].reshape(4) if corners.any() else None,
        )
        expected = np.asarray(Image.open(root / "vectors" / prompt["mask"])).astype(bool)
        union = (masks[0] | expected).sum()
        overlap = (masks[0] & expected).sum() / union if union else 1.0
        passed = overlap >= vectors["least_overlap"]
        failed += not passed
        print(f"{entry['photo']}, {prompt['name']}: overlap {overlap:.4f}{'' if passed else '  DIFFERS'}")
sys.exit(1 if failed else 0)
'''

CONTRACT = """# $name

Promptable segmentation with two models: run the encoder once per photo and the decoder once per prompt.

- `contract.json`: all names, shapes and labels, and the results of the verification against the JAX model.
- `vectors/`: test photos, prompts and the expected masks.
- `SHA256SUMS`: checksums of all files; run `sha256sum --check SHA256SUMS` to verify them.

## Using the models

1. Resize the photo (bilinear, with antialiasing) so that its longest side is $side px, and place it in the top left
   corner of a square of $side x $side px.
2. Points are (x, y) in pixels of the resized photo. Labels: 1 for a point inside the object, 0 for a point outside it,
   2 and 3 for the top left and bottom right corners of a box. Set the label of unused slots to -2. The decoder adds
   SAM's padding token itself, so don't add one.
3. The decoder returns four masks as logits ($mask x $mask px), each with a score ($score). For a box, use the first
   mask. For a click, use the mask with the highest score, among all four or among the last three.
4. Resize the logits to $side x $side px, crop them to the resized photo, resize them to the original photo, and
   threshold at 0.
"""

SWIFT = """
## Swift

The packages run on iOS $ios or later. $how
$points

```swift
import CoreML

let configuration = MLModelConfiguration()
configuration.computeUnits = .all
let encoder = try MLModel(contentsOf: MLModel.compileModel(at: encoderURL), configuration: configuration)
let decoder = try MLModel(contentsOf: MLModel.compileModel(at: decoderURL), configuration: configuration)
${image_swift}
let photo = try MLDictionaryFeatureProvider(dictionary: ["image": $feed])
let embedding = try encoder.prediction(from: photo).featureValue(for: "image_embeddings")!

let coords = try MLMultiArray(shape: [1, $slots, 2], dataType: .float32)
let labels = try MLMultiArray(shape: [1, $slots], dataType: .float32)
for i in 0..<$slots { labels[i] = -2 }  // mark all slots as unused
coords[[0, 0, 0]] = x; coords[[0, 0, 1]] = y; labels[0] = 1  // a point inside the object
${mask_swift}${prompt_swift}
let result = try decoder.prediction(from: prompt)  // "masks" [1, 4, $mask, $mask], "scores" [1, 4]
```

This code was not compiled when the bundle was created. The packages were verified $by.
"""

PROMPT_SWIFT = """let prompt = try MLDictionaryFeatureProvider(dictionary: [
  "image_embeddings": embedding, "point_coords": coords, "point_labels": labels,${mask_features}
])"""

IMAGE_SWIFT = """\
let perPhoto = try MLModel(contentsOf: MLModel.compileModel(at: imageURL), configuration: configuration)
"""

SPLIT_PROMPT_SWIFT = """// Once per photo, and again for a prompt with an earlier mask:
let maps = try perPhoto.prediction(from: MLDictionaryFeatureProvider(dictionary: [
  "image_embeddings": embedding,${mask_features}
]))
var features: [String: Any] = ["point_coords": coords, "point_labels": labels]
for name in maps.featureNames { features[name] = maps.featureValue(for: name)! }
let prompt = try MLDictionaryFeatureProvider(dictionary: features)"""

MASK_SWIFT = """let mask = try MLMultiArray(shape: [1, 1, $mask, $mask], dataType: .float32)  // earlier logits
let hasMask = try MLMultiArray(shape: [1], dataType: .float32)  // 1 if there is an earlier mask, otherwise 0
"""

PYTHON = """
## Python

The package `python/edgesam_onnx` requires numpy, Pillow and onnxruntime. To run it on the test vectors:
`python python/check.py`.

```python
from edgesam_onnx import OnnxPredictor

predictor = OnnxPredictor("onnx/${name}_encoder.onnx", "onnx/${name}_decoder.onnx")
predictor.set_image(rgb)  # (H, W, 3) uint8
masks, scores, logits = predictor.predict(box=[120, 80, 420, 390])
masks, scores, logits = predictor.predict(point_coords=[[300, 200]], point_labels=[1], num_masks=3)
masks, scores, logits = predictor.predict(box=[120, 80, 420, 390], fill_holes=100, drop_islands=100)  # pixels
```

## JavaScript (onnxruntime-web)

```js
const options = { executionProviders: ["webgpu", "wasm"] };
const encoder = await ort.InferenceSession.create("onnx/${name}_encoder.onnx", options);
const decoder = await ort.InferenceSession.create("onnx/${name}_decoder.onnx", options);
${image_js}// (pixel - mean) / std, channels first, padded with zeros; see "image" in contract.json
const image = new ort.Tensor("float32", normalised, [1, 3, $side, $side]);
const { image_embeddings } = await encoder.run({ image });
const labels = new Float32Array($slots).fill(-2); labels[0] = 1; // a point inside; other slots are unused
const coords = new Float32Array(2 * $slots); coords.set([x, y]);
${photo_js}const { masks, scores } = await decoder.run({
  ${of_photo_js},
  point_coords: new ort.Tensor("float32", coords, [1, $slots, 2]),
  point_labels: new ort.Tensor("float32", labels, [1, $slots]),${prompt_mask_js}
});
```

This code was not run in a browser when the bundle was created.
"""

MASK_JS = """
  mask_input: new ort.Tensor("float32", new Float32Array($mask * $mask), [1, 1, $mask, $mask]),
  has_mask_input: new ort.Tensor("float32", [0], [1]),"""

IMAGE_JS = """const perPhoto = await ort.InferenceSession.create("onnx/${name}_image.onnx", options);
"""

PHOTO_JS = """// Once per photo, and again for a prompt with an earlier mask:
const maps = await perPhoto.run({
  image_embeddings,${mask_js}
});
"""

SPLIT = """
The decoder comes in two models: `image` takes the embedding and an earlier mask, and its outputs are inputs of
`decoder`, by name. Run `image` once per photo; run it again for a prompt with an earlier mask (`has_mask_input` 1).
"""

X_ANYLABELING = """
## X-AnyLabeling

Load `x-anylabeling/${name}_labelling.yaml` as a custom model. The encoder takes photos as X-AnyLabeling passes them
(RGB, uint8, longest side $side px, not padded); the decoder takes any number of points. The models were not run in
X-AnyLabeling itself.
"""

WEB = """
## In the browser

`web/` is a page that runs the model on its visitors' own machines (docs/web.md). To serve it on this machine:
`python -m convert.to_web --serve web`; to publish it, copy the folder to any static host.
"""


def licence(text: str, source: str) -> str:
    """Return the licence note: the weights' licence and source, as far as recorded, and this project's licence."""
    weights = text or "not recorded in the checkpoint; ask its authors before you ship it"
    return (
        f"Weights: {weights}.\n"
        + (f"Source: {source}.\n" if source else "")
        + "The official EdgeSAM weights have a non-commercial licence, converted or not; SAM's are Apache-2.0.\n\n"
        "Code in this folder, and the conversion: edgesam_jax, Apache-2.0.\n"
        "Photos in vectors/, unless the bundle was created with --photos: from scikit-image (astronaut: NASA, public\n"
        "domain; chelsea and coffee: CC0).\n"
    )


def readme(job: ExportJob, contents: dict[str, Any]) -> str:
    """Return the README: calls in Swift, Python and JavaScript, with this bundle's names and sizes."""
    values = {
        "name": job.name, "side": job.model.config.image_size, "mask": job.model.config.mask_size,
        "slots": job.slots or 16, "score": job.score, "mask_swift": "", "mask_features": "", "mask_js": "",
    }  # fmt: skip
    if job.mask_input:
        values["mask_swift"] = Template(MASK_SWIFT).substitute(values)
        values["mask_features"] = '\n  "mask_input": mask, "has_mask_input": hasMask,'
        values["mask_js"] = Template(MASK_JS).substitute(values)
    for name, whole, of_split in (
        ("image_swift", "", IMAGE_SWIFT), ("prompt_swift", PROMPT_SWIFT, SPLIT_PROMPT_SWIFT),
        ("image_js", "", IMAGE_JS), ("photo_js", "", PHOTO_JS), ("of_photo_js", "image_embeddings", "...maps"),
        ("prompt_mask_js", "${mask_js}", ""),
    ):  # fmt: skip
        values[name] = Template(of_split if job.split else whole).substitute(values)
    parts = [CONTRACT, SPLIT] if job.split else [CONTRACT]
    if "coreml" in contents:
        parts.append(SWIFT)
        by = contents["coreml"]["verified"]["by"]
        values["by"] = "with Core ML" if by == "predict" else "op by op, without Core ML"
        if contents["coreml"]["image"]["type"] == "image":
            values["how"] = "`image` is an RGB image: the resized photo, padded with the colour 124, 116, 104."
            values["feed"] = "MLFeatureValue(pixelBuffer: letterboxed)"
        else:
            values["how"] = "`image` is a tensor: (pixel - mean) / std of the resized photo, padded with zeros."
            values["feed"] = "MLFeatureValue(multiArray: normalised)"
        values["ios"] = contents["coreml"]["minimum_ios"]
        if job.slots:
            values["points"] = (
                f"All shapes are fixed, with {job.slots} prompt slots, so that both models can run on the Neural"
                " Engine."
            )
        else:
            values["points"] = (
                "The decoder takes 1 to 16 points and box corners; another number than one may leave the Neural Engine,"
                "\nand the first call with a new number can be slow."
            )
    parts += [PYTHON] if "onnx" in contents else []
    parts += [X_ANYLABELING] if "x-anylabeling" in contents else []
    parts += [WEB] if "web" in contents else []
    return Template("".join(parts)).substitute(values)
