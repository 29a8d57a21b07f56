"""The evaluator of Core ML programs: each op is compared with torch, or with documented values."""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
import subprocess
import sys
import warnings
import weakref

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("coremltools")

import coremltools as ct
import torch
import torch.nn.functional as F
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import types
from coremltools.optimize import coreml as compression
from torch import nn

from convert.coreml import mil_evaluator
from convert.coreml.mil_evaluator import load
from edgesam_jax.config import UsageError

IOS16, IOS17, IOS18 = ct.target.iOS16, ct.target.iOS17, ct.target.iOS18
PRECISIONS = {"fp32": ct.precision.FLOAT32, "fp16": ct.precision.FLOAT16}


@contextlib.contextmanager
def quiet():
    """Silence coremltools' warnings at every conversion: deprecations of torch and its own, and temporary folders."""
    logger, level = logging.getLogger("coremltools"), logging.getLogger("coremltools").level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):  # progress bars
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def convert(source, path, precision="fp32", target=IOS17, compress=None, **options):
    with quiet():
        model = ct.convert(
            source,
            convert_to="mlprogram",
            minimum_deployment_target=target,
            compute_precision=PRECISIONS[precision],
            skip_model_load=True,
            **options,
        )
        if compress is not None:
            model = compress(model)
        model.save(str(path))
    return path


def from_torch(module, examples, path, precision="fp32", target=IOS17, **options):
    module = module.eval()
    with quiet():
        exported = torch.export.export(module, examples, strict=False).run_decompositions({})
    return convert(exported, path, precision, target, **options)


class Calls(nn.Module):
    """A module from a function of tensors, which may use ``children``."""

    def __init__(self, function, **children):
        super().__init__()
        self.function = function
        for name, child in children.items():
            setattr(self, name, child)

    def forward(self, *inputs):
        return tuple(self.function(self, *inputs))


def kinds(program):
    return {op.kind for op in program.operations()}


def assert_close(got, expected, precision="fp32", name=""):
    expected = np.asarray(expected)
    assert got.shape == expected.shape, name
    if got.dtype.kind != "f":
        assert expected.dtype.kind in "iub" and np.array_equal(got, expected), name
        return
    scale = max(1.0, float(np.abs(expected).max()))
    tolerance = {"fp32": 1e-5, "fp16": 4e-3}[precision] * scale
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance, err_msg=name)


def check(module, examples, tmp_path, precision, required, target=IOS17):
    """Convert, evaluate and compare every output; the program must contain ops of the ``required`` kinds."""
    torch.manual_seed(0)
    module = module.eval()
    with torch.no_grad():
        expected = module(*examples)
    program = load(from_torch(module, examples, tmp_path / "m.mlpackage", precision, target))
    assert set(required.split()) <= kinds(program), set(required.split()) - kinds(program)
    arrays = [e.numpy().astype(np.int32) if not e.is_floating_point() else e.numpy() for e in examples]
    got = program(**dict(zip(program.inputs, arrays, strict=True)))
    assert list(got) == program.outputs and len(got) == len(expected)
    for name, value in zip(program.outputs, expected, strict=True):
        if value.is_floating_point():
            assert got[name].dtype == (np.float16 if precision == "fp16" else np.float32), name
        assert_close(got[name], value.numpy(), precision, f"{program.outputs.index(name)} {name}")


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


@pytest.fixture(params=["fp32", "fp16"])
def precision(request):
    return request.param


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# ------------------------------------------------------------------------------------------------- against torch


def test_convolutions(tmp_path, precision):
    torch.manual_seed(1)
    layers = {
        "plain": nn.Conv2d(4, 6, 3),
        "padded": nn.Conv2d(4, 6, (3, 5), stride=(2, 1), padding=(1, 2), bias=False),
        "depthwise": nn.Conv2d(4, 8, 3, padding=2, dilation=2, groups=4),
        "same": nn.Conv2d(4, 3, (5, 3), padding="same"),
        "transposed": nn.ConvTranspose2d(4, 6, 2, stride=2),
        "cut": nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, groups=2, bias=False),
        "longer": nn.ConvTranspose2d(4, 2, 3, stride=2, padding=1, output_padding=1),
    }

    def forward(self, x):
        yield from (getattr(self, name)(x) for name in layers)
        yield self.line(x[:, :, 0])

    module = Calls(forward, **layers, line=nn.Conv1d(4, 2, 3, padding=1))
    check(module, (rand(2, 4, 9, 8),), tmp_path, precision, "conv conv_transpose crop")


def test_pixels_from_channels(tmp_path, precision):
    module = Calls(lambda self, x: (F.pixel_shuffle(x, 2), F.pixel_shuffle(x[:, :9], 3)))
    check(module, (rand(1, 12, 3, 5),), tmp_path, precision, "pixel_shuffle")


def test_pools(tmp_path, precision):
    def forward(self, x):
        yield F.max_pool2d(x, 3, 2, padding=1)
        yield F.max_pool2d(x, 2, 2, ceil_mode=True)
        yield F.max_pool2d(x, 3, 2, padding=1, ceil_mode=True)
        yield F.max_pool2d(x, 2, 2, padding=1, ceil_mode=True)  # the last window would start in the padding
        yield F.avg_pool2d(x, 3, 2, padding=1)
        yield F.avg_pool2d(x, 3, 2, padding=1, ceil_mode=True)
        yield F.avg_pool2d(x, 3, 2, padding=1, count_include_pad=False)
        yield F.avg_pool2d(x, 2, 2, ceil_mode=True, count_include_pad=False)
        yield F.avg_pool2d(x, 3, 2, padding=1, ceil_mode=True, count_include_pad=False)
        yield F.adaptive_avg_pool2d(x, 1)

    check(Calls(forward), (rand(1, 3, 9, 10) - 3,), tmp_path, precision, "max_pool avg_pool reduce_mean")


def test_elementwise(tmp_path, precision):
    def forward(self, x, y):
        yield from (x + y, x - y, x * y, x / (y.abs() + 1), torch.maximum(x, y), torch.minimum(x, y), -x)
        positive = x.abs() + 0.1
        yield from (positive**1.5, positive.sqrt(), positive.rsqrt(), x * x, x**3, torch.log(positive))
        yield from (torch.exp(x), torch.sin(3 * x), torch.cos(3 * x), torch.floor(4 * x), torch.ceil(4 * x))
        yield from (torch.round(4 * x), torch.erf(x), torch.sign(x), x.abs(), x.clamp(-0.5, 0.7), torch.exp2(x))
        yield from (F.relu(x), F.relu6(4 * x), F.leaky_relu(x, 0.1), F.silu(x), torch.sigmoid(x), torch.tanh(x))
        yield from (F.gelu(x), torch.remainder(x, 0.7), torch.floor_divide(3 * x, 0.7))

    required = "add sub mul real_div maximum minimum pow sqrt rsqrt exp sin cos floor ceil round erf sign abs clip exp2"
    required += " relu relu6 leaky_relu silu sigmoid tanh gelu log floor_div"
    check(Calls(forward), (rand(2, 5, 3), rand(5, 1, seed=1)), tmp_path, precision, required)


def test_norms(tmp_path, precision):
    torch.manual_seed(2)
    batch, instance = nn.BatchNorm2d(4), nn.InstanceNorm2d(4, affine=True)
    layer, grid = nn.LayerNorm(6, eps=1e-3), nn.LayerNorm((5, 6), elementwise_affine=False)
    for norm in (batch, instance, layer):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    batch.running_mean.normal_()
    batch.running_var.uniform_(0.5, 2)

    def forward(self, x):
        yield from (self.batch(torch.sin(x)), self.instance(x), self.layer(x), self.grid(x))
        centred = x - x.mean(1, keepdim=True)  # over the channels, as the exports write it
        yield centred * torch.rsqrt((centred * centred).mean(1, keepdim=True) + 1e-3)
        yield from (x.softmax(1), (9 * x).softmax(-1))

    module = Calls(forward, batch=batch, instance=instance, layer=layer, grid=grid)
    check(module, (rand(2, 4, 5, 6),), tmp_path, precision, "batch_norm instance_norm layer_norm softmax")


def test_reductions(tmp_path, precision):
    def forward(self, x):
        yield from (x.mean((1, 2)), x.mean(), x.sum(0, keepdim=True), x.sum((0, -1)), x.amax(1), x.amin((0, 1)))
        yield from (x.argmax(1), x.argmax(-1, keepdim=True), x.argmin(0))

    required = "reduce_mean reduce_sum reduce_max reduce_min reduce_argmax"
    check(Calls(forward), (rand(3, 4, 5),), tmp_path, precision, required)


def test_products(tmp_path, precision):
    torch.manual_seed(3)

    def forward(self, x, y):
        yield from (self.linear(x), self.plain(x), x @ y, x @ x.mT, x.mT @ x, torch.einsum("bij,jk->bki", x, y))
        q = self.plain(x)[:, None]
        yield F.scaled_dot_product_attention(q, 2 * q, q + 1)

    module = Calls(forward, linear=nn.Linear(6, 4), plain=nn.Linear(6, 6, bias=False))
    check(module, (rand(2, 3, 6), rand(6, 5)), tmp_path, precision, "linear matmul softmax")


def test_attention_op(tmp_path, precision):
    """From iOS18 on, attention is one op; a boolean mask selects keys, a float mask is added."""
    mask = torch.tensor([True, True, False, True, False])

    def forward(self, q, k, v, bias):
        yield F.scaled_dot_product_attention(q, k, v)
        yield F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        yield F.scaled_dot_product_attention(q, k, v, attn_mask=mask.expand(3, 5))

    examples = rand(1, 2, 3, 8), rand(1, 2, 5, 8), rand(1, 2, 5, 8, seed=1), rand(3, 5)
    check(Calls(forward), examples, tmp_path, precision, "scaled_dot_product_attention", target=IOS18)


def test_shapes(tmp_path, precision):
    def forward(self, x, y):
        yield from (torch.cat([x, y], 1), torch.stack([x, y], -1), x.reshape(2, -1), x.permute(2, 0, 3, 1))
        yield from (x[0].unsqueeze(1).unsqueeze(-1), x[:, :1].squeeze(1), x.repeat(1, 2, 1, 3))
        yield from (*x.split([1, 2], 1), *(part * 2 for part in y.chunk(2, -1)))
        yield from (x[:, 1:, ::2, -3:], x[:, -1], x[..., 1:4:2], x[1, 0, 0], y[:, :, 3, None])
        yield from (F.pad(x, (1, 2)), F.pad(x, (1, 0, 2, 3), value=0.5))
        yield from (F.pad(x, (2, 1, 1, 3), mode="reflect"), F.pad(x, (2, 1, 1, 3), mode="replicate"))

    required = "concat stack reshape transpose expand_dims squeeze tile split slice_by_index pad"
    check(Calls(forward), (rand(2, 3, 4, 6), rand(2, 3, 4, 6, seed=1)), tmp_path, precision, required)


def test_logic(tmp_path, precision):
    def forward(self, x, y, n):
        a, b = x > y, x <= 0.1
        yield torch.where(torch.logical_and(a, b), x, y)
        yield torch.where(torch.logical_or(a, torch.logical_not(b)), x, torch.zeros(()))
        yield from ((x >= y).int(), (x < y).int(), (n == 2).int(), (n != 2).int(), torch.logical_xor(a, b).int())
        yield from (n.float() * 0.5, (x * 5).int(), n * 2 + 1, F.one_hot(n.long(), 5))

    examples = rand(4, 3), rand(4, 3, seed=1), torch.tensor([0, 2, 4, 1])
    required = (
        "select greater less_equal less greater_equal equal not_equal logical_and logical_or logical_not one_hot cast"
    )
    check(Calls(forward), examples, tmp_path, precision, required)


def test_gathers(tmp_path, precision):
    torch.manual_seed(4)

    def forward(self, x, rows, columns):
        yield from (x.index_select(1, rows), self.embedding(rows), x[:, rows, columns])
        yield from (x[rows], x.gather(1, rows[None, :, None].expand(2, 3, 5)), x[..., rows])

    module = Calls(forward, embedding=nn.Embedding(4, 6))
    examples = rand(2, 4, 5), torch.tensor([1, 0, 1]), torch.tensor([4, 0, 2])
    check(module, examples, tmp_path, precision, "gather gather_along_axis gather_nd")


def test_resizes(tmp_path, precision):
    def forward(self, x):
        yield F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
        yield F.interpolate(x, size=(15, 12), mode="bilinear", align_corners=False)
        yield F.interpolate(x, size=(9, 7), mode="bilinear", align_corners=True)
        yield F.interpolate(x, scale_factor=3.0, mode="nearest")

    required = "upsample_bilinear upsample_nearest_neighbor"
    check(Calls(forward), (rand(1, 2, 5, 4),), tmp_path, precision, required)


def test_flexible_length(tmp_path):
    def forward(self, x):
        count = x.shape[1]
        yield torch.cat([x, torch.zeros(1, 1, 3)], 1) + torch.full((count + 1, 1), 2.0)
        yield x.reshape(count, 3) * torch.arange(count)[:, None]

    length = torch.export.Dim("length", min=1, max=9)
    module = Calls(forward).eval()
    with quiet():
        exported = torch.export.export(module, (rand(1, 4, 3),), dynamic_shapes=(({1: length},),), strict=False)
        exported = exported.run_decompositions({})
    program = load(convert(exported, tmp_path / "m.mlpackage"))
    assert {"shape", "range_1d", "fill"} <= kinds(program)
    ((name, (shape, dtype)),) = program.inputs.items()
    assert shape == (1, -1, 3) and dtype == np.float32
    assert any(-1 in shape for op in program.operations() for shape in op.shapes)
    for count in (1, 4, 7):
        x = rand(1, count, 3)
        for got, expected in zip(program(**{name: x.numpy()}).values(), module(x), strict=True):
            assert_close(got, expected.numpy())
    with pytest.raises(UsageError, match=r"has shape \(1, -1, 3\), not \(1, 4, 2\)"):
        program(**{name: np.zeros((1, 4, 2))})


# -------------------------------------------------------------------------- programs that torch does not produce


def build(function, path, *arrays, target=IOS17, **options):
    """Build a program with MIL's own builder; its inputs are named a, b, c."""
    dtypes = {"f": types.fp32, "i": types.int32}
    specs = [mb.TensorSpec(shape=array.shape, dtype=dtypes[array.dtype.kind]) for array in arrays]
    with quiet():
        # mb.program reads the inputs' names from the function's signature
        decorated = [lambda: function(), lambda a: function(a), lambda a, b: function(a, b)][len(arrays)]
        return convert(mb.program(input_specs=specs, opset_version=target)(decorated), path, target=target, **options)


def evaluate(function, path, *arrays, target=IOS17):
    program = load(build(function, path, *arrays, target=target))
    return list(program(**dict(zip("ab", arrays, strict=False))).values())


def test_same_padding(tmp_path):
    """TensorFlow's rule: ceil(n / stride) outputs; an odd cell goes after, or before with same_lower."""
    x = rand(1, 2, 7, 8)
    weight = rand(3, 2, 4, 3)
    same, lower = (1, 1, 1, 2), (1, 1, 2, 1)  # left, right, top, bottom for kernel (4, 3), stride (2, 1)
    kernel, strides = [4, 3], [2, 1]

    def function(a):
        for pad_type in ("same", "same_lower"):
            yield mb.conv(x=a, weight=weight.numpy(), strides=strides, pad_type=pad_type)
            yield mb.max_pool(x=a, kernel_sizes=kernel, strides=strides, pad_type=pad_type)
            for exclude in (True, False):
                options = {"exclude_padding_from_average": exclude, "pad_type": pad_type}
                yield mb.avg_pool(x=a, kernel_sizes=kernel, strides=strides, **options)

    got = evaluate(lambda a: tuple(function(a)), tmp_path / "m.mlpackage", x.numpy())
    expected = []
    for pads in (same, lower):
        padded, count = F.pad(x, pads), F.pad(torch.ones_like(x), pads)
        expected += [F.conv2d(padded, weight, stride=strides)]
        expected += [F.max_pool2d(F.pad(x, pads, value=-100.0), kernel, strides)]
        expected += [F.avg_pool2d(padded, kernel, strides) / F.avg_pool2d(count, kernel, strides)]
        expected += [F.avg_pool2d(padded, kernel, strides)]
    assert len(got) == 8
    for index, (value, reference) in enumerate(zip(got, expected, strict=True)):
        assert_close(value, reference.numpy(), name=str(index))


def test_transposed_convolutions_of_a_given_size(tmp_path):
    x, weight = rand(1, 2, 3, 4), rand(2, 3, 3, 3)

    def function(a):
        options = {"x": a, "weight": weight.numpy(), "strides": [2, 2]}
        yield mb.conv_transpose(**options, pad_type="same")
        yield mb.conv_transpose(**options, pad_type="custom", pad=[1, 0, 0, 1], bias=np.float32([1, 2, 3]))
        yield mb.conv_transpose(**options, pad_type="custom", pad=[1, 1, 1, 1], output_shape=[1, 3, 6, 8])

    got = evaluate(lambda a: tuple(function(a)), tmp_path / "m.mlpackage", x.numpy())
    full = F.conv_transpose2d(x, weight, stride=2)  # 7 x 9
    assert_close(got[0], full[:, :, :6, :8].numpy())  # one cell too many: it goes at the end
    assert_close(got[1], (full[:, :, 1:, :-1] + torch.tensor([1.0, 2, 3])[:, None, None]).numpy())
    assert_close(got[2], F.conv_transpose2d(x, weight, stride=2, padding=1, output_padding=1).numpy())


# The examples in the documentation of resize_bilinear: samples of [0, 1].
GRIDS = {
    ("UNALIGN_CORNERS", 5): [0, 0.1, 0.5, 0.9, 1],
    ("STRICT_ALIGN_CORNERS", 5): [0, 0.25, 0.5, 0.75, 1],
    ("ALIGN_CORNERS", 5): [0, 0.25, 0.5, 0.75, 1],
    ("DEFAULT", 5): [0, 0.4, 0.8, 1, 1],
    ("OFFSET_CORNERS", 5): [0.1, 0.3, 0.5, 0.7, 0.9],
    ("UNALIGN_CORNERS", 6): [0, 0, 1 / 3, 2 / 3, 1, 1],
    ("STRICT_ALIGN_CORNERS", 6): [0, 0.2, 0.4, 0.6, 0.8, 1],
    ("DEFAULT", 6): [0, 1 / 3, 2 / 3, 1, 1, 1],
    ("OFFSET_CORNERS", 6): [1 / 12, 3 / 12, 5 / 12, 7 / 12, 9 / 12, 11 / 12],
    ("STRICT_ALIGN_CORNERS", 1): [0],
    ("ALIGN_CORNERS", 1): [0.5],
}


def test_sampling_modes(tmp_path):
    def function(a):
        for mode, size in GRIDS:
            yield mb.resize_bilinear(x=a, target_size_height=3, target_size_width=size, sampling_mode=mode)
        yield mb.resize_nearest_neighbor(x=a, target_size_height=3, target_size_width=4)

    x = np.float32([[[[0, 1]], [[10, 8]]]])
    *got, nearest = evaluate(lambda a: tuple(function(a)), tmp_path / "m.mlpackage", x)
    for (key, grid), value in zip(GRIDS.items(), got, strict=True):
        expected = np.stack([np.tile(grid, (3, 1)), 10 - 2 * np.tile(grid, (3, 1))])[None]
        np.testing.assert_allclose(value, expected, atol=1e-6, err_msg=str(key))
    assert np.array_equal(nearest, np.tile(x.repeat(2, -1), (1, 1, 3, 1)))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda a: mb.resize_nearest_neighbor(x=a, target_size_height=5, target_size_width=4),
            "only integer factors are supported",
        ),
        (
            lambda a: mb.upsample_bilinear(x=a, scale_factor_height=2, align_corners=False, half_pixel_centers=False),
            "half_pixel_centers",
        ),
        (lambda a: mb.cast(x=mb.mul(x=a, y=np.float32(1e30)), dtype="int32"), "a value is out of range for int32"),
        (lambda a: mb.l2_norm(x=a), r"op l2_norm \(seek\) is not supported by the evaluator"),
    ],
)
def test_unsupported_ops_and_values_are_errors(tmp_path, function, message):
    def named(a):
        return mb.identity(x=function(a), name="out")

    program = load(build(named, tmp_path / "m.mlpackage", np.ones((1, 2, 2, 2), np.float32)))
    with pytest.raises(UsageError, match=message.replace(r"\(seek\)", r"\(\w+\)")) as caught:
        program(a=np.ones((1, 2, 2, 2)))
    assert str(tmp_path) in str(caught.value)


def test_indexing(tmp_path):
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    at = np.int32([[1, 0], [2, 2]])

    def function(a, b):
        slices = {"begin": [1, -1, 3], "end": [2, 0, -4], "stride": [1, -2, -1]}
        yield mb.slice_by_index(x=a, **slices, begin_mask=[True, False, False], end_mask=[True, True, False])
        yield mb.slice_by_index(x=a, **slices, squeeze_mask=[True, True, False])
        yield mb.slice_by_size(x=a, begin=[0, 1, 2], size=[2, 1, -1])
        yield mb.gather(x=a, indices=b, axis=1)
        yield mb.gather(x=a, indices=b, axis=-2, batch_dims=1)
        yield mb.gather_nd(x=a, indices=b, batch_dims=1)
        yield mb.gather_nd(x=mb.reduce_sum(x=a, axes=[0]), indices=b)
        yield mb.gather_along_axis(x=mb.reshape(x=a, shape=[12, 2]), indices=b, axis=0)
        yield mb.one_hot(indices=b, one_hot_vector_size=3, axis=1, on_value=2.0, off_value=-1.0)
        yield mb.concat(values=[a, mb.sub(x=0.0, y=a)], axis=-1, interleave=True)
        yield mb.concat(values=[mb.gather(x=mb.shape(x=a), indices=np.int32(1)), 7], axis=0)
        yield mb.reduce_argmin(x=a, axis=1, keep_dims=True)
        yield mb.pad(x=a, pad=[1, 0, 0, 1, 2, 1], mode="constant", constant_val=9.0)
        yield mb.range_1d(start=mb.reduce_min(x=b), end=7, step=3)
        yield mb.reshape(x=a, shape=[1, 0, -1, 0])
        yield mb.floor_div(x=mb.sub(x=b, y=3), y=2)
        yield mb.mod(x=mb.sub(x=b, y=3), y=2)
        yield mb.fill(shape=mb.shape(x=b), value=2.5)

    def wrapped(a, b):
        return tuple(mb.identity(x=value, name=f"out{i}") for i, value in enumerate(function(a, b)))

    got = evaluate(wrapped, tmp_path / "m.mlpackage", x, at)
    batched = np.stack([x[i, at[i]] for i in range(2)])
    expected = [
        x[:, 2::-2, 3:0:-1][..., :3],
        x[1, 2, 3:0:-1],
        x[:2, 1:2, 2:],
        x[:, at],
        batched,
        np.stack([x[i][tuple(at[i])] for i in range(2)]),
        x.sum(0)[at[:, 0], at[:, 1]],
        np.take_along_axis(x.reshape(12, 2), at, 0),
        np.stack([np.where(at == i, 2.0, -1.0) for i in range(3)], 1),
        np.stack([x, -x], -1).reshape(2, 3, 8),
        np.int32([3, 7]),
        x.argmin(1)[:, None],
        np.pad(x, ((1, 0), (0, 1), (2, 1)), constant_values=9.0),
        np.int32([0, 3, 6]),
        x[None],
        (at - 3) // 2,
        (at - 3) % 2,
        np.full((2, 2), 2.5),
    ]
    for index, (value, reference) in enumerate(zip(got, expected, strict=True)):
        assert_close(value, reference, name=str(index))
    for bad in (3, -1):
        with pytest.raises(UsageError, match="an index is out of range"):
            load(tmp_path / "m.mlpackage")(a=x, b=np.int32([[1, bad], [0, 0]]))


def test_negative_indices_before_ios17(tmp_path):
    x, at = np.float32([[1, 2, 3]]), np.int32([-1, 0])
    (got,) = evaluate(lambda a, b: mb.gather(x=a, indices=b, axis=1), tmp_path / "m.mlpackage", x, at, target=IOS16)
    assert np.array_equal(got, [[3, 1]])


def test_small_ones(tmp_path):
    x = rand(2, 3, 4, 3).numpy()

    def function(a):
        yield mb.gelu(x=a, mode="SIGMOID_APPROXIMATION")
        yield mb.gelu(x=a, mode="TANH_APPROXIMATION")  # coremltools 9.0 doesn't convert torch's to it
        yield mb.matmul(x=a, y=a, transpose_x=True)
        yield mb.einsum(values=[a, mb.transpose(x=a, perm=[0, 3, 2, 1])], equation="nchw,nwhu->nchu")
        yield mb.layer_norm(x=a, axes=[1, 3], gamma=np.ones((3, 3), np.float32) * 2, epsilon=np.float32(0.1))
        yield mb.square(x=a)
        yield mb.inverse(x=mb.abs(x=a), epsilon=np.float32(0.5))
        yield mb.upsample_bilinear(x=a, scale_factor_height=2, scale_factor_width=3, align_corners=True)
        yield mb.logical_and(x=mb.greater(x=a, y=0.0), y=mb.less(x=a, y=1.0))

    got = evaluate(lambda a: tuple(function(a)), tmp_path / "m.mlpackage", x)
    mean, var = x.mean((1, 3), keepdims=True), x.var((1, 3), keepdims=True)
    expected = [
        x / (1 + np.exp(-1.702 * x)),
        0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
        x.swapaxes(-1, -2) @ x,
        np.einsum("nchw,nuhw->nchu", x, x),
        2 * (x - mean) / np.sqrt(var + 0.1),
        x * x,
        1 / (np.abs(x) + 0.5),
        F.interpolate(torch.from_numpy(x), size=(8, 9), mode="bilinear", align_corners=True).numpy(),
        (x > 0) & (x < 1),
    ]
    for index, (value, reference) in enumerate(zip(got, expected, strict=True)):
        assert_close(value, reference, name=str(index))


# --------------------------------------------------------------------------------------------- types and weights


def test_float16_overflows_and_rounds(tmp_path):
    """A sum of 70000 ones is inf in float16, a mean is not; 2049 has no float16; a float32 program keeps all."""

    def forward(self, x):
        yield from (x.sum(), x.mean(), x[:3] * 2049.0)

    results = {}
    for precision in PRECISIONS:
        program = load(from_torch(Calls(forward), (torch.ones(70000),), tmp_path / f"{precision}.mlpackage", precision))
        results[precision] = list(program(**{next(iter(program.inputs)): np.ones(70000)}).values())
    total, mean, product = results["fp16"]
    assert np.isposinf(total) and mean == 1 and np.array_equal(product, [2048] * 3) and total.dtype == np.float16
    total, mean, product = results["fp32"]
    assert total == 70000 and mean == 1 and np.array_equal(product, [2049] * 3)


def test_the_edge_of_float16():
    values = torch.tensor([65504.0, 65519.0, 65520.0, -7e4, 2.0**-24, 1e-9])
    stored = mil_evaluator.rounded(values, "fp16")
    assert stored.tolist() == [65504, 65504, np.inf, -np.inf, 2.0**-24, 0] and stored.dtype == torch.float32
    assert mil_evaluator.rounded(torch.tensor([40000, -1]), "int16").tolist() == [40000 - 65536, -1]
    assert mil_evaluator.rounded(torch.tensor([-1, 300]), "uint8").tolist() == [255, 44]
    assert mil_evaluator.rounded(torch.tensor([-1.7, 1.7]), "int32").tolist() == [-1, 1]


def quantised(model):
    config = compression.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=0)
    return compression.linear_quantize_weights(model, compression.OptimizationConfig(global_config=config))


def palettised(model):
    config = compression.OpPalettizerConfig(mode="uniform", nbits=4, weight_threshold=0)
    return compression.palettize_weights(model, compression.OptimizationConfig(global_config=config))


def quantised_values(weight):
    scale = np.abs(weight).reshape(len(weight), -1).max(1).reshape(-1, 1, 1, 1) / 127
    return np.round(weight / scale) * scale


def palettised_values(weight):
    palette = np.linspace(weight.min(), weight.max(), 16)
    return palette[np.abs(weight[..., None] - palette).argmin(-1)]


@pytest.mark.parametrize(
    ("compress", "target", "kind", "dense"),
    [
        (quantised, IOS17, "constexpr_affine_dequantize", quantised_values),
        (quantised, IOS18, "constexpr_blockwise_shift_scale", quantised_values),
        (palettised, IOS17, "constexpr_lut_to_dense", palettised_values),
        (palettised, IOS18, "constexpr_lut_to_dense", palettised_values),
    ],
)
def test_compressed_weights(tmp_path, compress, target, kind, dense):
    """The program computes with the dequantised weights, worked out here from the definition of the compression."""
    torch.manual_seed(5)
    module, x = nn.Conv2d(4, 6, 3, bias=False), rand(1, 4, 6, 6)
    path = from_torch(module, (x,), tmp_path / "m.mlpackage", target=target, compress=compress)
    program = load(path)
    assert kind in {op.kind for op in program.operations() if op.constant}
    (got,) = program(**{next(iter(program.inputs)): x.numpy()}).values()
    weight = module.weight.detach().numpy()
    expected = F.conv2d(x, torch.from_numpy(dense(weight).astype(np.float32))).numpy()
    assert_close(got, expected)
    assert np.abs(expected - module(x).detach().numpy()).max() > 1e-3  # the plain weights would not pass


def test_image_input(tmp_path, precision):
    """Pixels go in raw: the scale and the bias are ops of the program."""
    torch.manual_seed(6)
    module, x = nn.Conv2d(3, 2, 3), torch.zeros(1, 3, 6, 8)
    image = ct.ImageType(name="photo", shape=(1, 3, 6, 8), scale=1 / 50, bias=[-1.0, -2.0, -2.5])
    path = from_torch(module, (x,), tmp_path / "m.mlpackage", precision, inputs=[image])
    program = load(path)
    assert program.inputs == {"photo": ((1, 3, 6, 8), np.dtype(np.uint8))}
    assert {"mul", "add"} <= kinds(program)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 3, 6, 8), dtype=np.uint8)
    (got,) = program(photo=pixels).values()
    normalised = torch.from_numpy(pixels) / 50 + torch.tensor([-1.0, -2.0, -2.5])[:, None, None]
    assert_close(got, module(normalised).detach().numpy(), precision)
    (again,) = program(photo=pixels.astype(np.float64)).values()
    assert np.array_equal(got, again)
    for bad in (pixels / 255, pixels * 2.0, pixels - 1.0):
        with pytest.raises(UsageError, match=r"photo is an image: expected integers from 0 to 255"):
            program(photo=bad)


# --------------------------------------------------------------------------------------------------- the program


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """A chain of ten ops on 12 numbers; the last also reads the output of the first."""

    def function(a):
        first = x = mb.relu(x=a)
        for _ in range(8):
            x = mb.sin(x=x)
        return mb.add(x=x, y=first, name="out")

    return build(function, tmp_path_factory.mktemp("chain") / "m.mlpackage", np.zeros((3, 4), np.float32))


def test_dead_tensors_are_freed(chain, monkeypatch):
    alive, most = weakref.WeakSet(), []

    def watched(value, dtype):
        result = value.clone()
        alive.add(result)
        most.append(len(alive))
        return result

    program = load(chain)
    monkeypatch.setattr(mil_evaluator, "rounded", watched)
    (got,) = program(a=np.ones((3, 4))).values()
    expected = np.ones((3, 4))
    for _ in range(8):
        expected = np.sin(expected)
    np.testing.assert_allclose(got, expected + 1, rtol=1e-6)
    assert len(most) == 11  # the input and ten ops
    assert max(most) <= 4  # the first, the one read, the one written, and one about to be freed


def test_operations(chain):
    program = load(chain)
    computed = [op for op in program.operations() if not op.constant]
    assert [op.kind for op in computed] == ["relu"] + ["sin"] * 8 + ["add"]
    assert computed[-1].name == "out" and program.outputs == ["out"]
    assert {(op.shapes, op.dtypes, op.rank) for op in computed} == {(((3, 4),), ("fp32",), 2)}


def test_wrong_inputs(chain):
    program = load(chain)
    with pytest.raises(UsageError, match=r"the inputs are \['a'\], not \['b'\]"):
        program(b=np.zeros((3, 4)))
    with pytest.raises(UsageError, match=r"input a has shape \(3, 4\), not \(4, 3\)"):
        program(a=np.zeros((4, 3)))


def test_an_integer_input_takes_no_floats(tmp_path):
    program = load(build(lambda a: mb.add(x=a, y=1), tmp_path / "m.mlpackage", np.zeros(2, np.int32)))
    assert next(iter(program(a=np.int64([1, 2])).values())).tolist() == [2, 3]
    with pytest.raises(UsageError, match="input a has dtype int32, not float64"):
        program(a=np.zeros(2))


def test_files_that_cannot_be_read(tmp_path):
    def refused(path):
        with pytest.raises(UsageError) as caught:
            load(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
        return str(caught.value)

    package = from_torch(nn.Conv2d(3, 4, 3), (torch.zeros(1, 3, 6, 6),), tmp_path / "m.mlpackage")
    data = package / "Data" / "com.apple.CoreML"
    model, weights = data / "model.mlmodel", data / "weights" / "weight.bin"
    load(package)
    assert "no such" in refused(tmp_path / "other.mlpackage")
    (tmp_path / "text.mlpackage").write_text("not a model")
    refused(tmp_path / "text.mlpackage")
    content, stored = model.read_bytes(), weights.read_bytes()
    for damaged in (b"", content[: len(content) // 2], b"\xff" * 100):
        model.write_bytes(damaged)
        refused(package)
    model.write_bytes(content)
    for damaged in (b"", stored[:50], stored[:-200]):
        weights.write_bytes(damaged)
        refused(package)
    weights.unlink()
    refused(package)
    weights.write_bytes(stored)
    load(package)
    shutil.rmtree(data)
    refused(package)


def test_another_kind_of_model_is_refused(tmp_path):
    with quiet():
        spec = ct.proto.Model_pb2.Model()
        spec.specificationVersion = 4
        spec.description.input.add().name = "x"
        spec.description.input[0].type.multiArrayType.shape.append(1)
        spec.description.input[0].type.multiArrayType.dataType = 65568
        spec.description.output.add().CopyFrom(spec.description.input[0])
        spec.identity.SetInParent()
        ct.models.utils.save_spec(spec, str(tmp_path / "m.mlmodel"))
    with pytest.raises(UsageError, match=r"m\.mlmodel: expected an ML Program, not identity"):
        load(tmp_path / "m.mlmodel")


def test_outputs_of_one_name_are_refused(tmp_path):
    """coremltools merges equal ops, and with them two outputs; the package is unusable."""
    path = from_torch(Calls(lambda self, x: (x + 1, 1 + x)), (torch.ones(2),), tmp_path / "m.mlpackage", "fp16")
    with pytest.raises(UsageError, match="more than one output is named"):
        load(path)


def test_nothing_is_printed(chain):
    """coremltools warns eight times at its first import off macOS, with or without warnings as errors."""
    code = f"from convert.coreml.mil_evaluator import load; print(load({str(chain)!r}).outputs)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "['out']\n", "")
