"""ONNX files that compute in float16, for GPUs that do so faster: weights and activations are float16.

Inputs and outputs stay float32, so that programs call the files like any other. So do

- the coordinates up to their sines and cosines: float16 resolves only half pixels from 512 px on;
- norms, from the mean to the bias: the square of 256 exceeds float16's largest number;
- divisors, quotients, and sums with an epsilon that float16 rounds to 0;
- what isn't arithmetic on activations: scores, and the enlargement of masks (``convert.export.sam_form``).

Products (convolutions, dense layers, attention) are always float16. Any other operation of ``FOLLOWERS`` is float16 if
one of its inputs is.

Where ONNX Runtime has no float16 arithmetic, as on CPUs and WebAssembly, it computes in float32 and doesn't even round
between two such operations. Running a file there says little about a GPU, so the gate also runs ``emulation``, which
rounds the result of every float16 operation. Sums are in float32 in it; a GPU that sums in float16 loses more.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from convert.export import gate
from convert.export.rounding import MIN_COMPRESSED
from edgesam_jax.portable.onnx_model import OnnxDecoder, OnnxEncoder

PRODUCTS = frozenset(("Conv", "ConvTranspose", "MatMul", "Gemm"))
FOLLOWERS = frozenset(
    (
        "Add", "Sub", "Mul", "Neg", "Relu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Erf", "Gelu",
        "Softmax", "Clip", "Min", "Max", "LayerNormalization", "Concat", "Reshape", "Transpose", "Unsqueeze", "Squeeze",
        "Slice", "Split", "Expand", "Flatten", "Gather", "Pad", "Where", "Identity", "DepthToSpace",
    )
)  # fmt: skip
SINES = ("Sin", "Cos")
FLOAT, FLOAT16 = 1, 10  # ONNX's numbers of the types


def rewrite(path: Path) -> None:
    """Change a float32 file, in place, to compute in float16."""
    import onnx

    model = onnx.load(path)
    _Conversion(model).run()
    onnx.checker.check_model(model)
    onnx.save(model, path)


def emulation(source: Path, target: Path) -> None:
    """Write a copy of a rewritten file that computes in float32, and rounds the results as float16 arithmetic does."""
    import onnx
    from onnx import helper

    model = onnx.load(source)
    graph, nodes = model.graph, []
    single: dict[str, str] = {}  # names of float16 values in float32

    def widened(name: str) -> str:
        if name not in single:
            single[name] = f"{name}_single"
            nodes.append(helper.make_node("Cast", [name], [single[name]], to=FLOAT))
        return single[name]

    for node in graph.node:
        rounded = [name for name in node.output if name.endswith("_half") and node.op_type != "Cast"]
        if rounded:
            node.input[:] = [widened(name) if name.endswith("_half") else name for name in node.input]
            node.output[:] = [f"{name}_exact" if name in rounded else name for name in node.output]
        nodes.append(node)
        nodes += [helper.make_node("Cast", [f"{name}_exact"], [name], to=FLOAT16) for name in rounded]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(model)
    onnx.save(model, target)


def verify(
    files: Mapping[str, Path], cases: Sequence[gate.Case], tolerance: gate.Tolerance, score: str
) -> gate.Verdict:
    """Compare the ``emulation`` of rewritten files, by part, with the JAX model; see ``gate.verify``."""
    with tempfile.TemporaryDirectory() as folder:
        # The names stay, by which a split decoder finds its other half.
        copies = {part: Path(folder) / path.name for part, path in files.items()}
        for part, copy in copies.items():
            emulation(files[part], copy)
        encoder = OnnxEncoder(copies["encoder"]) if "encoder" in copies else None
        decoder = OnnxDecoder(copies["decoder"]) if "decoder" in copies else None
        return gate.verify(cases, encoder, decoder, tolerance, score)


def exact(nodes: Sequence[Any]) -> set[int]:
    """Return the indices of the sines with all nodes that they are computed from, and of the makers of divisors."""
    maker = {name: i for i, node in enumerate(nodes) for name in node.output}
    found: set[int] = set()
    pending = [i for i, node in enumerate(nodes) if node.op_type in SINES]
    while pending:
        i = pending.pop()
        if i not in found:
            found.add(i)
            pending += [maker[name] for name in nodes[i].input if name in maker]
    divisors = [node.input[1] for node in nodes if node.op_type == "Div"]
    return found | {maker[name] for name in divisors if name in maker}


class _Conversion:
    """Goes through the nodes in order; ``half`` has the values that are made in float16, under ``NAME_half``."""

    def __init__(self, model: Any) -> None:
        import onnx

        self.graph = model.graph
        inferred = onnx.shape_inference.infer_shapes(model).graph
        values = [*inferred.value_info, *inferred.input, *inferred.output]
        kinds = {value.name: value.type.tensor_type.elem_type for value in values}
        constants = {tensor.name: tensor for tensor in self.graph.initializer}
        kinds |= {name: tensor.data_type for name, tensor in constants.items()}
        self.floats = {name for name, kind in kinds.items() if kind == FLOAT}
        self.constants = {name: tensor for name, tensor in constants.items() if name in self.floats}
        self.half: set[str] = set()
        self.both: set[str] = set()  # values that a cast gives in the other format, too
        self.means: set[str] = set()
        self.nodes: list[Any] = []

    def run(self) -> None:
        """Replace the graph's nodes and constants."""
        from onnx import helper

        nodes = list(self.graph.node)
        single = exact(nodes)
        self.means = {node.output[0] for node in nodes if node.op_type == "ReduceMean"}
        for i, node in enumerate(nodes):
            half = i not in single and self._computes_half(node)
            for k, name in enumerate(node.input):
                if name in self.floats:
                    node.input[k] = self._as_half(name) if half else self._as_float(name)
            if half:
                made = [name for name in node.output if name in self.floats]
                self.half.update(made)
                for k, name in enumerate(node.output):
                    node.output[k] = f"{name}_half" if name in made else name
            self.nodes.append(node)
        for output in self.graph.output:
            self._as_float(output.name)
        used = {name for node in self.nodes for name in node.input}
        # Large constants are float16 in the file even where float32 is computed.
        large = [
            name for name in self.constants if name in used and np.prod(self.constants[name].dims) >= MIN_COMPRESSED
        ]
        casts = [helper.make_node("Cast", [self._as_half(name)], [name], to=FLOAT) for name in large]
        used |= {node.input[0] for node in casts}
        used -= set(large)
        del self.graph.node[:], self.graph.value_info[:]
        self.graph.node.extend([*casts, *self.nodes])
        kept = [tensor for tensor in self.graph.initializer if tensor.name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)

    def _computes_half(self, node: Any) -> bool:
        if node.op_type in PRODUCTS:
            return True
        if node.op_type not in FOLLOWERS or not any(name in self.half for name in node.input):
            return False
        # What follows in a norm has no float16 input, then.
        return not ((node.op_type == "Sub" and node.input[1] in self.means) or any(map(self._vanishes, node.input)))

    def _vanishes(self, name: str) -> bool:
        """Whether a value is an epsilon that float16 rounds to 0."""
        from onnx import numpy_helper

        if name not in self.constants:
            return False
        values = numpy_helper.to_array(self.constants[name])
        return values.size == 1 and bool(values.any()) and not values.astype(np.float16).any()

    def _as_half(self, name: str) -> str:
        if name in self.half or name in self.both:
            return f"{name}_half"
        self.both.add(name)
        if name in self.constants:
            from onnx import numpy_helper

            values = numpy_helper.to_array(self.constants[name]).astype(np.float16)
            self.graph.initializer.append(numpy_helper.from_array(values, f"{name}_half"))
        else:
            self._cast(name, f"{name}_half", FLOAT16)
        return f"{name}_half"

    def _as_float(self, name: str) -> str:
        if name in self.half and name not in self.both:
            self.both.add(name)
            self._cast(f"{name}_half", name, FLOAT)
        return name

    def _cast(self, source: str, target: str, kind: int) -> None:
        """Add a cast to ``kind``."""
        from onnx import helper

        self.nodes.append(helper.make_node("Cast", [source], [target], to=kind))
