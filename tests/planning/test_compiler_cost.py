"""Reading the compiler's text: cycles, loops, paths and exchanges."""

from pathlib import Path

import pytest

from edgesam_jax.planning import compile_report, compiler_cost

# What libtpu 0.0.50 prints for a v5e:2x2 and this program, mapped over "d":
#   with named_scope("student"): y = fori_loop(0, 3, lambda i, x: tanh(x @ w) + x.T, x)
#   return pmean(y, "d")                                                    # all arrays (512, 512) float32
TEXT = Path(__file__).with_name("loop_and_sum_v5e.txt").read_text()
LOOP = "student/while/body/dot_general"


def test_a_loop_counts_as_often_as_it_runs():
    cost = compiler_cost.read(TEXT)
    product = next(op for op in cost.operations if op.opcode == "fusion" and op.times == 3)
    assert compiler_cost.short_path(product.path) == LOOP
    figures = {op.name: (op.cycles, op.times) for op in cost.operations if op.cycles}
    assert cost.cycles == sum(cycles * times for cycles, times in figures.values())
    assert figures["copy.17"] == (80, 3) and figures["convert.1"] == (6272, 1)
    assert cost.open_loops == 0


def test_a_loop_of_unknown_length_is_counted_once_and_said():
    text = TEXT.replace("constant(3)", "parameter(9)")
    cost = compiler_cost.read(text)
    assert cost.open_loops == 1
    assert cost.cycles < compiler_cost.read(TEXT).cycles


def test_moving_data_is_told_from_computing():
    cost = compiler_cost.read(TEXT)
    moving = {op.name for op in cost.operations if op.moves and op.cycles}
    assert moving == {"copy.17", "copy.5"}
    assert cost.moving == 3 * (80 + 100)


def test_exchanges_between_devices_have_their_bytes():
    (total,) = compiler_cost.read(TEXT).collectives
    assert (total.opcode, total.size, total.times) == ("all-reduce", 512 * 512 * 4, 1)


def test_text_without_a_program_is_refused():
    with pytest.raises(ValueError, match="no entry"):
        compiler_cost.read("HloModule nothing")


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("bf16[50,14,14,3840]{3,0,2,1:T(8,128)(2,1)S(1)}", 2 * 50 * 14 * 14 * 3840),
        ("(f32[3]{0}, /*index=1*/pred[8]{0}, s32[])", 12 + 8 + 4),
        ("f8e4m3fn[7]{0}", 7),
        ("token[]", 0),
    ],
)
def test_bytes_of_a_shape(shape, size):
    assert compiler_cost.shape_bytes(shape) == size


@pytest.mark.parametrize(
    ("path", "short"),
    [
        ("jit(train_step)/jvp(student)/Sam.encode_image/a_1/add", "student/Sam.encode_image/a_1/add"),
        ("jit(f)/transpose(jvp(student))/Sam.encode_image/mul", "student'/Sam.encode_image/mul"),
        ("jit(_fun)/shard_map/optimiser/add", "optimiser/add"),
        ("", ""),
    ],
)
def test_short_paths_keep_modules_and_mark_the_backward_pass(path, short):
    assert compiler_cost.short_path(path) == short


def test_parts_add_up_and_blocks_of_a_stack_are_listed_together():
    cost = compiler_cost.read(TEXT)
    parts = compile_report.by_part(cost.operations, (("loop", "while/body"), ("rest", ".")))
    assert sum(cycles for cycles, _ in parts.values()) == cost.cycles
    assert parts["loop"][0] > parts["rest"][0]
    listed = compile_report.costliest(cost.operations)
    assert sum(cycles for cycles, *_ in listed) == cost.cycles
    assert (listed[0][1], listed[0][3]) == (3, LOOP)


def test_a_conditional_costs_its_dearest_branch():
    cycles = '"estimated_cycles":"{}"'
    text = "\n".join(
        [
            "%cheap (p: f32[8]) -> f32[8] {",
            f"  ROOT %copy.1 = f32[8]{{0}} copy(%p), backend_config={{{cycles.format(5)}}}",
            "}",
            "%dear (p: f32[8]) -> f32[8] {",
            f"  ROOT %copy.2 = f32[8]{{0}} copy(%p), backend_config={{{cycles.format(70)}}}",
            "}",
            "ENTRY %main (p: f32[8], i: s32[]) -> f32[8] {",
            "  ROOT %c = f32[8]{0} conditional(%i, %p, %p), branch_computations={%cheap, %dear}",
            "}",
        ]
    )
    assert compiler_cost.read(text).cycles == 70
