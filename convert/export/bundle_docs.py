"""The texts of a bundle: README, licence note, and the script that checks the models on the test vectors."""

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
        corner, point = labels >= 2, labels < 2
        masks, scores, _ = predictor.predict(
            point_coords=points[point] if point.any() else None,
            point_labels=labels[point] if point.any() else None,
            box=points[corner].reshape(4) if corner.any() else None,
        )
        wanted = np.asarray(Image.open(root / "vectors" / prompt["mask"])).astype(bool)
        union = (masks[0] | wanted).sum()
        overlap = (masks[0] & wanted).sum() / union if union else 1.0
        good = overlap >= vectors["least_overlap"]
        failed += not good
        print(f"{entry['photo']}, {prompt['name']}: overlap {overlap:.4f}{'' if good else '  DIFFERS'}")
sys.exit(1 if failed else 0)
'''

CONTRACT = """# $name

Promptable segmentation in two models: the encoder runs once a photo, the decoder once a prompt. `contract.json` has all
names, shapes and labels, and what the verification against the JAX model found. `vectors/` has photos, prompts and the
masks they must give; `SHA256SUMS` the checksums (`sha256sum --check SHA256SUMS`).

## The contract

1. Resize the photo so that its longest side is $side px (bilinear, antialiasing), into the top left corner of a square.
2. Points are x, y in pixels of the resized photo. Labels: 1 inside the object, 0 outside, 2 and 3 the top left and
   bottom right corner of a box. Unused slots have the label -2. SAM's padding token is added inside: do not add one.
3. The decoder gives four masks as logits ($mask px a side) and a score each ($score). For a box take the first; for a
   click the best score of the four, or of the last three.
4. Enlarge the logits to $side px, crop to the resized photo, enlarge to the photo, and cut at 0.
"""

SWIFT = """
## Swift

$how
There are $slots slots and the shapes are fixed, so that both models can run on the Neural Engine.

```swift
import CoreML

let configuration = MLModelConfiguration()
configuration.computeUnits = .all
let encoder = try MLModel(contentsOf: MLModel.compileModel(at: encoderURL), configuration: configuration)
let decoder = try MLModel(contentsOf: MLModel.compileModel(at: decoderURL), configuration: configuration)

let photo = try MLDictionaryFeatureProvider(dictionary: ["image": $feed])
let embedding = try encoder.prediction(from: photo).featureValue(for: "image_embeddings")!

let coords = try MLMultiArray(shape: [1, $slots, 2], dataType: .float32)
let labels = try MLMultiArray(shape: [1, $slots], dataType: .float32)
for i in 0..<$slots { labels[i] = -2 }  // unused
coords[[0, 0, 0]] = x; coords[[0, 0, 1]] = y; labels[0] = 1
${mask_swift}let prompt = try MLDictionaryFeatureProvider(dictionary: [
  "image_embeddings": embedding, "point_coords": coords, "point_labels": labels,${mask_features}
])
let result = try decoder.prediction(from: prompt)  // "masks" [1, 4, $mask, $mask], "scores" [1, 4]
```

This code was not compiled where the bundle was made; the packages were run there $by.
"""

MASK_SWIFT = """let mask = try MLMultiArray(shape: [1, 1, $mask, $mask], dataType: .float32)  // earlier logits
let heed = try MLMultiArray(shape: [1], dataType: .float32)  // 1 to heed it, 0 if there is none
"""

PYTHON = """
## Python

`python/edgesam_onnx` needs numpy, Pillow and onnxruntime. `python python/check.py` runs it on the vectors.

```python
from edgesam_onnx import OnnxPredictor

predictor = OnnxPredictor("onnx/${name}_encoder.onnx", "onnx/${name}_decoder.onnx")
predictor.set_image(rgb)  # (H, W, 3) uint8
masks, scores, logits = predictor.predict(box=[120, 80, 420, 390])
masks, scores, logits = predictor.predict(point_coords=[[300, 200]], point_labels=[1], num_masks=3)
```

## JavaScript (onnxruntime-web)

```js
const options = { executionProviders: ["webgpu", "wasm"] };
const encoder = await ort.InferenceSession.create("onnx/${name}_encoder.onnx", options);
const decoder = await ort.InferenceSession.create("onnx/${name}_decoder.onnx", options);
// (pixel - mean) / std, channels first, zeros around the photo: contract.json, "image"
const image = new ort.Tensor("float32", normalised, [1, 3, $side, $side]);
const { image_embeddings } = await encoder.run({ image });
const labels = new Float32Array($slots).fill(-2); labels[0] = 1;
const coords = new Float32Array(2 * $slots); coords.set([x, y]);
const { masks, scores } = await decoder.run({
  image_embeddings,
  point_coords: new ort.Tensor("float32", coords, [1, $slots, 2]),
  point_labels: new ort.Tensor("float32", labels, [1, $slots]),${mask_js}
});
```

Not run in a browser where the bundle was made.
"""

MASK_JS = """
  mask_input: new ort.Tensor("float32", new Float32Array($mask * $mask), [1, 1, $mask, $mask]),
  has_mask_input: new ort.Tensor("float32", [0], [1]),"""

X_ANYLABELING = """
## X-AnyLabeling

Load `x-anylabeling/${name}_labelling.yaml` as a custom model. Its encoder takes photos as that program feeds them (RGB,
uint8, longest side $side, not padded) and its decoder any number of points. The program itself was not run.
"""


def licence(text: str, source: str) -> str:
    """What is known of the weights' licence, and ours."""
    weights = text or "not recorded in the checkpoint; ask who made it before you ship it"
    return (
        f"Weights: {weights}.\n"
        + (f"Source: {source}.\n" if source else "")
        + "The official EdgeSAM weights are under a non-commercial licence, converted or not; SAM's are Apache-2.0.\n\n"
        "Code in this folder, and the conversion: edgesam_jax, Apache-2.0.\n"
        "Photos in vectors/, unless you gave your own: scikit-image's (astronaut: NASA, public domain; chelsea and\n"
        "coffee: CC0).\n"
    )


def readme(job: ExportJob, contents: dict[str, Any]) -> str:
    """Calls in Swift, Python and JavaScript, with this bundle's names and sizes."""
    words = {
        "name": job.name, "side": job.model.config.image_size, "mask": job.model.config.mask_size,
        "slots": job.slots or 16, "score": job.score, "mask_swift": "", "mask_features": "", "mask_js": "",
    }  # fmt: skip
    if job.mask_input:
        words["mask_swift"] = Template(MASK_SWIFT).substitute(words)
        words["mask_features"] = '\n  "mask_input": mask, "has_mask_input": heed,'
        words["mask_js"] = Template(MASK_JS).substitute(words)
    parts = [CONTRACT]
    if "coreml" in contents:
        parts.append(SWIFT)
        words["by"] = contents["coreml"]["verified"]["by"]
        if contents["coreml"]["image"]["type"] == "image":
            words["how"] = "`image` is a picture, padded with the colour 124, 116, 104."
            words["feed"] = "MLFeatureValue(pixelBuffer: letterboxed)"
        else:
            words["how"] = "`image` is (pixel - mean) / std of the photo, zeros around it."
            words["feed"] = "MLFeatureValue(multiArray: normalised)"
    parts += [PYTHON] if "onnx" in contents else []
    parts += [X_ANYLABELING] if "x-anylabeling" in contents else []
    return Template("".join(parts)).substitute(words)
