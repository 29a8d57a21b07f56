"""``train --dry-run``: the requirements and cost of a run on other machines, as tables or JSON.

``plan.py`` computes the numbers, ``setup.py`` the times, ``compiling.py`` the cost that a compiler gives.  This module
has the flags and puts the output together.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from edgesam_jax.cli.command import print_note
from edgesam_jax.config import Config, UsageError
from edgesam_jax.config.derive import Length, arm_config
from edgesam_jax.planning.accelerators import ACCELERATORS
from edgesam_jax.planning.setup import Setup, run_seconds, step_seconds
from edgesam_jax.planning.topology import EXAMPLES, Topology, check_name
from edgesam_jax.planning.topology import describe as describe_topology

if TYPE_CHECKING:
    from edgesam_jax.planning.compiling import Compiled, Program
    from edgesam_jax.planning.plan import Plan


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a dry run to a parser, as a group."""
    group = parser.add_argument_group("dry run", "plan a run on other machines; needs no --workdir")
    group.add_argument(
        "--dry-run", action="store_true", help="print shapes, operations, memory, disk space and time; don't train"
    )
    group.add_argument(
        "--for-devices", type=int, default=8, metavar="N", help="devices to plan for, over all hosts; default 8"
    )
    group.add_argument(
        "--for-hosts",
        type=int,
        default=0,
        metavar="M",
        help="hosts of these devices; default: as usual for the accelerator",
    )
    group.add_argument("--accelerator", choices=ACCELERATORS, default="h100", help="kind of device; default h100")
    group.add_argument(
        "--utilisation",
        type=float,
        default=0.3,
        metavar="SHARE",
        help="fraction of the published peak that a step achieves; default 0.3",
    )
    group.add_argument(
        "--achieved-tflops",
        type=float,
        default=0.0,
        metavar="T",
        help="measured TFLOP/s of one device, instead of --utilisation",
    )
    group.add_argument(
        "--bandwidth-gbit",
        type=float,
        default=100.0,
        metavar="G",
        help="network bandwidth of a host in Gbit/s; default 100",
    )
    group.add_argument(
        "--photos", type=int, default=0, metavar="N", help="photos in the data set, if it isn't on this machine"
    )
    group.add_argument(
        "--teacher-model",
        default="",
        metavar="NAME",
        help="teacher's architecture (vit_b, vit_l, vit_h, ...), if its file isn't on this machine",
    )
    add_compile_flags(group)


def add_compile_flags(group: argparse._ArgumentGroup) -> None:
    """Add the flags of every command that compiles its programs for a described slice."""
    group.add_argument(
        "--compile",
        default="",
        metavar="CHIP:SHAPE",
        help="compile for this TPU slice or these GPUs, without owning them, and print the compiler's memory and, for"
        f" TPUs, cycles: {EXAMPLES}",
    )
    group.add_argument("--json", action="store_true", help="print JSON instead of text; with --compile or --dry-run")


def require(parser: argparse.ArgumentParser, args: argparse.Namespace, flags: Sequence[str]) -> None:
    """Check the flags that a command needs, which are others if it only plans; ends it with the parser's message."""
    if args.dry_run != bool(args.compile) or (args.json and not args.dry_run):
        parser.error("--dry-run and --compile CHIP:SHAPE: give both or none; --json: only with them")
    missing = [flag for flag in flags if not getattr(args, flag.removeprefix("--").replace("-", "_"))]
    if missing and not args.dry_run:
        parser.error(f"the following arguments are required: {', '.join(missing)}")


def setup_of(args: argparse.Namespace) -> Setup:
    """Read and check the flags.

    Raises:
      UsageError: a number out of range, or a flag of the dry run without ``--dry-run``.
    """
    setup = Setup(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Setup)})
    if not args.dry_run and setup != Setup():
        raise UsageError("--for-devices and the other flags of the dry run need --dry-run")
    if setup.compile:
        check_name(setup.compile)
        machine = dataclasses.replace(
            Setup(), photos=setup.photos, teacher_model=setup.teacher_model, compile=setup.compile, json=setup.json
        )
        if setup != machine:
            raise UsageError("--compile: names chips and hosts; omit --accelerator, --for-devices, --utilisation, ...")
    for flag, wrong in {
        f"--for-devices {setup.for_devices}: must be at least 1": setup.for_devices < 1,
        f"--for-hosts {setup.for_hosts}: must be at least 1": setup.for_hosts < 0,
        f"--for-devices {setup.for_devices}: must be a multiple of the {setup.hosts} hosts; change it or --for-hosts": (
            setup.for_devices >= 1 and setup.for_devices % setup.hosts != 0
        ),
        f"--utilisation {setup.utilisation}: must be above 0 and at most 1": not 0 < setup.utilisation <= 1,
        f"--achieved-tflops {setup.achieved_tflops}: must be above 0 and finite": (
            not 0 <= setup.achieved_tflops < math.inf
        ),
        f"--bandwidth-gbit {setup.bandwidth_gbit}: must be above 0 and finite": (
            not 0 < setup.bandwidth_gbit < math.inf
        ),
        f"--photos {setup.photos}: must be above 0": setup.photos < 0,
    }.items():
        if wrong:
            raise UsageError(flag)
    return setup


def report(config: Config, setup: Setup) -> str:
    """Return the complete output of the dry run, with a part for each arm of a study.

    Raises:
      UsageError: see ``plan.plan``, ``plan.teacher_config``, ``topology.describe`` and ``compiling.compile_for``.
    """
    import jax

    # Tracing creates constants.  They belong on the CPU: this machine's accelerators may be busy.
    jax.config.update("jax_platforms", "cpu")
    from edgesam_jax.planning import plan as planning
    from edgesam_jax.planning import plan_text

    topology = describe_topology(setup.compile) if setup.compile else None
    if topology:
        setup = dataclasses.replace(
            setup, for_devices=len(topology.devices), for_hosts=topology.hosts, accelerator=topology.chip
        )
    arms = [arm.name for arm in config.study] or [""]
    found: dict[str, str | dict[str, Any]] = {}
    earlier: dict[str, Length] = {}
    for name in arms:  # with time_from an arm lasts as long as the estimates of others
        derived = next((arm_config(config, arm, earlier) for arm in config.study if arm.name == name), config)
        teacher = planning.teacher_config(derived, setup.teacher_model)
        arm_plan = planning.plan(derived, teacher, setup.for_devices, setup.accelerator)
        earlier[name] = Length(derived.train.steps, run_seconds(arm_plan, setup))
        if setup.json:
            found[name] = as_json(arm_plan, setup) | (_compiled_json(arm_plan, topology) if topology else {})
        elif topology:
            found[name] = _compiled_text(arm_plan, setup, topology)
        else:
            found[name] = plan_text.describe(arm_plan, setup)
    if setup.json:
        return json.dumps(found if config.study else found[""], indent=1)
    return "\n\n\n".join(map(str, found.values()))


def inference_report(slice_name: str, programs: Callable[[], list[Program]], as_json: bool) -> str:
    """Compile programs for one chip of a slice; return the output, text or JSON.

    Args:
      programs: makes them, from ``planning.programs``; called after JAX is set up for the slice.

    Raises:
      UsageError: see ``topology.describe`` and ``compiling.compile_for``.
    """
    topology = describe_topology(slice_name)
    from edgesam_jax.planning import compile_report, compiling

    found = []
    for program in programs():
        print_note(f"compiling {program.name} for {topology.name}; a large model takes minutes")
        found.append(compiling.compile_for(topology, program))
    if as_json:
        return json.dumps([compile_report.as_json(compiled) for compiled in found], indent=1)
    return "\n\n\n".join(map(compile_report.report, found))


def as_json(plan: Plan, setup: Setup) -> dict[str, Any]:
    """Return the numbers of a plan: bytes, FLOPs and seconds."""
    return {
        "config": plan.config.name, "accelerator": setup.accelerator, "devices": plan.devices, "hosts": setup.hosts,
        "photos_of_a_device": plan.images, "steps": plan.config.train.steps, "parameters": plan.parameters,
        "flops": {"step_of_a_device": plan.step.products, "others": plan.step.others, "by_part": plan.parts},
        "product_bytes_of_a_device": plan.step.traffic,
        "memory": plan.memory, "checkpoint": plan.checkpoint, "model_file": plan.model_file,
        "exchange": {"bytes": plan.step.reduced, "waits": plan.step.waits},
        "seconds": {
            "step": step_seconds(plan, setup, plan.step.products, setup.hosts), "run": run_seconds(plan, setup),
            "assumed_flops": setup.flops(plan.config),
        },
    }  # fmt: skip


def _compile(plan: Plan, topology: Topology) -> Compiled:
    from edgesam_jax.planning import compiling, programs

    print_note(f"compiling {plan.config.name} for {topology.name}; a large model takes minutes")
    return compiling.compile_for(topology, programs.step_program(plan, topology))


def _compiled_text(plan: Plan, setup: Setup, topology: Topology) -> str:
    from edgesam_jax.planning import compile_report, plan_text

    compiled = _compile(plan, topology)
    estimated, steps = sum(plan.memory.values()), plan.config.train.steps
    return f"{plan_text.heading(plan, setup)}\n\n{compile_report.report(compiled, estimated, steps)}"


def _compiled_json(plan: Plan, topology: Topology) -> dict[str, Any]:
    from edgesam_jax.planning import compile_report

    steps = plan.config.train.steps
    return {"compiled": compile_report.as_json(_compile(plan, topology), sum(plan.memory.values()), steps)}
