"""Core ML programs on Linux: each operation against torch, the rounding of float16, compressed weights, and faults."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("coremltools")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from convert import coreml, mil_evaluator  # noqa: E402
from edgesam_jax.config import UsageError  # noqa: E402


class Modules(nn.Module):
    """Functions of the same inputs, all converted at once."""

    def __init__(self, functions, layers=()):
        super().__init__()
        self.functions, self.layers = functions, nn.ModuleList(layers)

    def forward(self, *inputs):
        found = [layer(inputs[0]) for layer in self.layers] + [f(*inputs) for f in self.functions]
        return tuple(found)


def spread(module):
    """Norms and convolutions with parameters that matter."""
    torch.manual_seed(0)
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        if value.is_floating_point():
            value.data = torch.rand_like(value) + 0.5 if name.endswith("var") else torch.randn_like(value) / 2
    return module.eval().requires_grad_(False)


def converted(module, inputs, tmp_path, precision="float32"):
    """The module's program as the evaluator reads it from disk."""
    with torch.no_grad():
        count = len(module(*inputs))
    names = [f"y{i}" for i in range(count)]
    shapes = {f"x{i}": tuple(x.shape) for i, x in enumerate(inputs)}
    model = coreml.convert(module, shapes, names, precision)
    return mil_evaluator.load(coreml.save(model, tmp_path / "m.mlpackage", "", ""))


def check(module, inputs, tmp_path, precision, kinds):
    module = spread(module)
    program = converted(module, inputs, tmp_path, precision)
    found = program(**{f"x{i}": x.numpy() for i, x in enumerate(inputs)})
    with torch.no_grad():
        wanted = module(*inputs)
    assert program.outputs == list(found) and len(found) == len(wanted)
    for i, want in enumerate(wanted):
        got, want = found[f"y{i}"], want.float().numpy()
        assert got.shape == want.shape, i
        size = max(1.0, np.abs(want).max())
        np.testing.assert_allclose(got, want, atol=size * (5e-5 if precision == "float32" else 6e-3), err_msg=str(i))
    missing = kinds - {op.kind for op in program.operations()}
    assert not missing, f"the program does not have {missing}"


LAYERS = [
    nn.Conv2d(6, 8, 3, 2, 1),
    nn.Conv2d(6, 6, 3, 1, 1, groups=6),
    nn.Conv2d(6, 4, 3, 1, 2, dilation=2, bias=False),
    nn.ConvTranspose2d(6, 3, 2, 2),
    nn.ConvTranspose2d(6, 3, 3, 2, 1, output_padding=1),
    nn.BatchNorm2d(6),
    nn.InstanceNorm2d(6, affine=True),
    nn.LayerNorm(10),
    nn.GELU(),
    nn.SiLU(),
    nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
    nn.Upsample(scale_factor=3, mode="nearest"),
    nn.AvgPool2d(2),
    nn.MaxPool2d(3, 2, 1),
    nn.Sequential(nn.Conv2d(6, 4, 1), nn.ReLU(), nn.Sigmoid(), nn.Tanh()),
]


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_layers(tmp_path, precision):
    kinds = {
        "conv", "conv_transpose", "instance_norm", "layer_norm", "gelu", "silu", "upsample_bilinear",
        "upsample_nearest_neighbor", "avg_pool", "max_pool", "relu", "sigmoid", "tanh",
    }  # fmt: skip
    check(Modules([], LAYERS), [torch.randn(1, 6, 12, 10)], tmp_path, precision, kinds)


ARITHMETIC = [
    lambda x, y: x + y,
    lambda x, y: x - y,
    lambda x, y: x * y,
    lambda x, y: x / (y.abs() + 1),
    lambda x, y: torch.maximum(x, y),
    lambda x, y: torch.minimum(x, y),
    lambda x, y: (x.abs() + 1) ** 1.5,
    lambda x, y: torch.sqrt(x.abs()) + torch.rsqrt(y.abs() + 1),
    lambda x, y: x.exp(),
    lambda x, y: x.sin() + y.cos(),
    lambda x, y: torch.floor(x * 3 + 0.25),
    lambda x, y: x.clamp(-0.5, 0.75),
    lambda x, y: (x > y).float() + (x >= y).float() * 2 + (x < 0).float() * 4 + (y <= 0).float() * 8,
    lambda x, y: torch.logical_and(x > 0, y > 0).float() + torch.logical_or(x > 0, y > 0).float() * 2,
    lambda x, y: torch.logical_not(x > 0).float() + (torch.floor(x) == torch.floor(y)).float() * 2,
    lambda x, y: torch.where(x > 0, x, y * 2),
    lambda x, y: x.softmax(-1) + y.softmax(1),
]


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_arithmetic(tmp_path, precision):
    torch.manual_seed(1)
    # Multiples of 1/64 are themselves in float16, so that comparisons come out alike.
    x, y = (torch.round(torch.randn(1, 3, 4, 5) * 64) / 64 for _ in range(2))
    kinds = {
        "add", "sub", "mul", "real_div", "maximum", "minimum", "pow", "sqrt", "rsqrt", "exp", "sin", "cos", "floor",
        "clip", "greater", "greater_equal", "less", "less_equal", "equal", "logical_and", "logical_or", "logical_not",
        "select", "softmax", "abs", "cast",
    }  # fmt: skip
    check(Modules(ARITHMETIC), [x, y], tmp_path, precision, kinds)


SHAPES = [
    lambda x, y: x.reshape(1, 6, 20) * 1.5,
    lambda x, y: x.permute(0, 2, 3, 1) * 1.5,
    lambda x, y: torch.cat([x, y], 1),
    lambda x, y: torch.stack([x, y], 1),
    lambda x, y: x.split([2, 4], 1)[1] * 1.5,
    lambda x, y: x.chunk(3, 1)[2] * 1.5,
    lambda x, y: x[:, 1:5:2, :, -3:] * 1.5,
    lambda x, y: x[:, 2] * 1.5,
    lambda x, y: x[:, :1].squeeze(1).unsqueeze(3) * 1.5,
    lambda x, y: (x[:, :1] * 1.5).repeat(1, 3, 2, 1),
    lambda x, y: F.pad(x, (1, 2, 0, 1), value=0.5) * 1.5,
    lambda x, y: F.pad(x, (1, 2, 2, 1), mode="reflect") * 1.5,
    lambda x, y: F.pad(x, (1, 2, 2, 1), mode="replicate") * 1.5,
    lambda x, y: x.index_select(1, torch.tensor([4, 0, 1])) * 1.5,
    lambda x, y: x.mean((2, 3)) + x.sum(1).sum(2).mean() + y.amax((1, 2))[:, :1] + y.amin(3, keepdim=True).sum((2, 3)),
    lambda x, y: x.argmax(1).float(),
    lambda x, y: x.transpose(2, 3) @ y,
    lambda x, y: x @ y.transpose(2, 3),
    lambda x, y: F.linear(x, torch.arange(15).reshape(3, 5) / 7.0, torch.arange(3) / 2.0),
    lambda x, y: F.scaled_dot_product_attention(x, y, x),
]


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_shapes_sums_and_products(tmp_path, precision):
    torch.manual_seed(2)
    kinds = {
        "reshape", "transpose", "concat", "stack", "split", "slice_by_index", "squeeze", "expand_dims", "tile", "pad",
        "gather", "reduce_mean", "reduce_sum", "reduce_max", "reduce_min", "reduce_argmax", "matmul", "linear",
    }  # fmt: skip
    check(Modules(SHAPES), [torch.randn(1, 6, 4, 5), torch.randn(1, 6, 4, 5)], tmp_path, precision, kinds)


def test_forms_that_torch_does_not_reach(tmp_path):
    """Built by hand: coremltools 9.0 makes torch's tanh GELU an exact one, and crops in an operation of its own."""
    with coreml.quiet():
        import coremltools as ct
        from coremltools.converters.mil import Builder as mb

        @mb.program(input_specs=[mb.TensorSpec(shape=(1, 2, 4, 5))], opset_version=ct.target.iOS17)
        def program(x):
            tanh = mb.gelu(x=x, mode="TANH_APPROXIMATION", name="tanh")
            sigmoid = mb.gelu(x=x, mode="SIGMOID_APPROXIMATION", name="sigmoid")
            size = mb.slice_by_size(x=x, begin=[0, 1, 0, 2], size=[1, -1, 3, 2], name="size")
            resized = mb.resize_bilinear(
                x=x, target_size_height=7, target_size_width=9, sampling_mode="UNALIGN_CORNERS", name="resized"
            )
            hot = mb.one_hot(indices=mb.cast(x=mb.abs(x=x), dtype="int32"), one_hot_vector_size=4, name="hot")
            return tanh, sigmoid, size, resized, mb.cast(x=hot, dtype="fp32", name="y")

        model = ct.convert(program, minimum_deployment_target=ct.target.iOS17, skip_model_load=True,
                           compute_precision=ct.precision.FLOAT32)  # fmt: skip
    found = mil_evaluator.load(coreml.save(model, tmp_path / "b.mlpackage", "", ""))(
        x=(x := np.random.default_rng(0).normal(size=(1, 2, 4, 5)).astype(np.float32))
    )
    t = torch.from_numpy(x)
    np.testing.assert_allclose(found["tanh"], F.gelu(t, approximate="tanh"), atol=1e-6)
    np.testing.assert_allclose(found["sigmoid"], t * torch.sigmoid(1.702 * t), atol=1e-6)
    np.testing.assert_array_equal(found["size"], x[:, 1:, :3, 2:4])
    np.testing.assert_allclose(found["resized"], F.interpolate(t, (7, 9), mode="bilinear"), atol=1e-6)
    np.testing.assert_array_equal(found["y"], F.one_hot(t.abs().long(), 4))


def test_float16_overflows_and_rounds_as_float16_does(tmp_path):
    module = Modules([lambda x: x * 300, lambda x: x * 3])
    program = converted(module, [torch.zeros(1, 4)], tmp_path, "float16")
    x = np.array([[1.0, 250.0, -250.0, 1 / 3]], np.float32)
    large, small = program(x0=x).values()
    assert large.tolist()[0][:3] == [300.0, np.inf, -np.inf]
    np.testing.assert_array_equal(small, (x.astype(np.float16) * np.float16(3)).astype(np.float32))


class OneConvolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.c = nn.Conv2d(16, 8, 3, bias=False)

    def forward(self, x):
        return (self.c(x),)


def test_compressed_weights_are_what_compression_makes_of_them(tmp_path):
    module = spread(OneConvolution())
    x = torch.randn(1, 16, 6, 6)
    model = coreml.convert(module, {"x0": x.shape}, ["y0"], "float32")
    weight = module.c.weight.numpy()
    scale = np.abs(weight).max((1, 2, 3), keepdims=True) / 127
    exact = F.conv2d(x, torch.from_numpy(np.round(weight / scale) * scale)).numpy()
    differences = []
    for how in ("int8", "palette8", "palette6", "palette4"):
        path = coreml.save(coreml.compress(model, how), tmp_path / f"{how}.mlpackage", "", "")
        program = mil_evaluator.load(path)
        assert any(op.kind.startswith("constexpr_") and op.constant for op in program.operations())
        found = program(x0=x.numpy())["y0"]
        if how == "int8":
            np.testing.assert_allclose(found, exact, atol=1e-3)
        differences.append(float(np.abs(found - module(x)[0].numpy()).max()))
    assert 0 < differences[1] < differences[2] < differences[3]


def test_reports_and_faults(tmp_path):
    module = Modules([lambda x: (x + 1) * 2])
    program = converted(module, [torch.zeros(1, 4)], tmp_path)
    assert [op.kind for op in program.operations() if not op.constant] == ["add", "mul"]
    assert program.inputs == {"x0": ((1, 4), np.dtype(np.float32))} and program.outputs == ["y0"]
    with pytest.raises(UsageError, match="the program takes x0"):
        program(other=np.zeros((1, 4), np.float32))
    with pytest.raises(UsageError, match=r"x0: shape \(2, 4\)"):
        program(x0=np.zeros((2, 4), np.float32))
    with pytest.raises(UsageError, match=r"none\.mlpackage: no such package"):
        mil_evaluator.load(tmp_path / "none.mlpackage")
    damaged = tmp_path / "damaged.mlpackage"
    shutil.copytree(tmp_path / "m.mlpackage", damaged)
    (damaged / "Data/com.apple.CoreML/model.mlmodel").write_bytes(b"nothing")
    with pytest.raises(UsageError, match=r"damaged\.mlpackage: not a Core ML package"):
        mil_evaluator.load(damaged)


def test_an_unknown_operation_is_named(tmp_path):
    model = coreml.convert(Modules([lambda x: x.cumsum(1)]).eval(), {"x0": (1, 4)}, ["y0"], "float32")
    path = coreml.save(model, tmp_path / "c.mlpackage", "", "")
    with pytest.raises(UsageError, match=r"c\.mlpackage: cumsum .*does not know"):
        mil_evaluator.load(path)


def test_tensors_that_nobody_needs_are_freed(tmp_path):
    module = Modules([lambda x: torch.sin(torch.cos(torch.exp(x)))])
    program = converted(module, [torch.zeros(1, 4)], tmp_path)
    seen = []
    original = mil_evaluator.Call.__init__

    def counting(self, op, values):
        seen.append(len(values) - len(program._constants))
        original(self, op, values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mil_evaluator.Call, "__init__", counting)
        program(x0=np.zeros((1, 4), np.float32))
    assert seen == [1, 1, 1]
