"""The limits of the gate: rounding in JAX equals float16 computed by hand, and limits follow the weights."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convert.export import gate
from convert.export.limits import ANYTHING, FACTOR, Limit
from convert.export.rounding import Kind, in_float16, int8, palette, stored

WEIGHTS, ACTIVATIONS, COORDINATES = Kind.CONSTANT, Kind.PENDING, Kind.EXACT


def half(x) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.asarray(x).astype(np.float16).astype(np.float32)


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def test_every_operation_rounds_its_weights_and_its_result():
    x, w, b = random(5, 64), random(64, 7), 100 * random(7)

    def layer(parameters, x):
        return jnp.exp((x @ parameters[0] + parameters[1]) / 100) * 3.3

    got = in_float16(layer, (WEIGHTS, ACTIVATIONS))((w, b), x)
    total = (half(x).astype(np.float64) @ half(w) + half(b)).astype(np.float32)  # rounded once, after the bias
    expected = half(half(np.exp(half(half(total) / 100))) * 3.3)
    np.testing.assert_allclose(got, expected, rtol=2**-10)  # a sum on the edge of two numbers
    assert np.array_equal(half(got), got) and np.abs(got - layer((w, b), x)).max() > 1e-3


def test_subnormal_numbers_and_overflow_are_those_of_float16():
    x = np.float32([1e-9, 3e-8, 1.1e-7, 5.5e-5, 2049, 65519, 65520, -1e9])
    got = in_float16(lambda x: x + jnp.zeros(8), (ACTIVATIONS,))(x)
    np.testing.assert_array_equal(got, half(x))


def test_coordinates_are_exact_up_to_their_sine():
    """At 1000 px, float16 resolves only half pixels."""
    phase = in_float16(lambda w, x: jnp.sin((x + 0.5) @ w), (WEIGHTS, COORDINATES))
    w, x = np.float32([[0.013], [0.007]]), np.float32([[1000.2, 900.3]])
    np.testing.assert_array_equal(phase(w, x), half(np.sin((x + np.float32(0.5)) @ w)))


def test_constants_are_computed_before_they_are_rounded():
    down, up, x = random(2, 64), random(64, 2), random(3, 64)
    got = in_float16(lambda w, x: x @ (w[0] + w[1] @ w[2]), (WEIGHTS, ACTIVATIONS))((random(64, 64), up, down), x)
    merged = half(random(64, 64) + up @ down)
    np.testing.assert_allclose(got, half(half(x) @ merged), rtol=2**-10, atol=1e-3)


def test_loops_round_inside():
    x = random(4, 33)

    def rows(x):
        return jax.lax.map(lambda row: jnp.exp(row) * 1.7, x)

    np.testing.assert_array_equal(in_float16(rows, (ACTIVATIONS,))(x), half(half(np.exp(half(x))) * np.float32(1.7)))


def test_loops_keep_constants_and_carry_values():
    x, w = random(4, 33), random(33)

    def rows(w, x):
        return jax.lax.scan(lambda total, row: (total + row, total * w), jnp.zeros(33), x)

    total, expected = np.zeros(33, np.float32), []
    for row in half(x):
        expected.append(half(total * half(w)))
        total = half(total + row)
    end, got = in_float16(rows, (WEIGHTS, ACTIVATIONS))(w, x)
    np.testing.assert_array_equal(end, total)
    np.testing.assert_array_equal(got, expected)


def test_int8_has_a_step_per_output_channel():
    kernel = random(1, 1, 60, 20) * np.geomspace(1e-3, 10, 20).astype(np.float32)
    got = int8(kernel, per_channel=True)
    step = np.abs(kernel).max((0, 1, 2)) / 127
    assert np.abs(got - kernel).max() <= 0.501 * step.max() and (np.abs(got - kernel) <= 0.501 * step).all()
    assert all(len(np.unique(got[..., i])) <= 255 for i in range(20))


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_palettes_are_the_best_of_their_size(bits):
    """For uniform numbers the best palette is equidistant; the error of one is range / 2^bits / sqrt(12)."""
    values = np.random.default_rng(0).uniform(-1, 1, (100, 400)).astype(np.float32)
    got = palette(values, bits)
    assert len(np.unique(got)) <= 2**bits
    np.testing.assert_allclose(np.sqrt(np.mean((got - values) ** 2)), 2 / 2**bits / np.sqrt(12), rtol=0.05)
    np.testing.assert_allclose(palette(np.round(values * 3), bits), np.round(values * 3), atol=1e-6)


def test_only_large_parameters_are_compressed():
    tree = {"params": {"a": {"kernel": random(32, 32), "bias": random(32)}}, "constants": {"m": random(2, 400)}}
    got = stored(tree, "palette4")
    assert len(np.unique(got["params"]["a"]["kernel"])) == 16
    assert (
        np.array_equal(got["params"]["a"]["bias"], tree["params"]["a"]["bias"])
        and got["constants"] is tree["constants"]
    )
    assert stored(tree, "none")["params"] is tree["params"]


def test_a_limit_is_a_floor_and_a_multiple_of_the_error():
    assert Limit(0.01, 0.001, 0.1).value == 0.001 + FACTOR * 0.01
    assert Limit(0.09, 0.001, 0.1).value == 0.1 and not Limit(0.09, 0.001, 0.1).exceeded
    for error in (0.2, np.inf, np.nan):  # overflow gives no limit, and so the ceiling
        assert Limit(error, 0.001, 0.1).value == 0.1 and Limit(error, 0.001, 0.1).exceeded


def test_the_largest_error_counts():
    """Not the first photo's: the one here has an error of 0 in its first photo."""

    def case(name: str, value: float) -> gate.Case:
        frame = np.full((32, 32, 3), value, np.uint8)
        model_embedding = np.full((1, 16, 2, 2), 1.0, np.float32)
        empty: tuple = ()
        return gate.Case(
            name, frame, (32, 32), empty, model_embedding, *(np.zeros((0, 4, 8, 8)), np.zeros((0, 4))), empty
        )

    class Rounded:
        def outputs(self, frame, filled):
            return [np.full((1, 16, 2, 2), 1 + frame[0, 0, 0] / 1000, np.float32)]

    verdict = gate.verify([case("a", 0), case("b", 3), case("c", 1)], Rounded(), None, ANYTHING, "stability")
    assert verdict.summary()["embedding"]["worst"] == pytest.approx(0.003, rel=1e-3)
