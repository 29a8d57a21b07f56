"""``train --dry-run``: the requirements and cost of a run on other machines, as tables.

``plan.py`` computes the numbers.  This module has the flags, the estimates of time and of scaling with hosts, and the
text.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgesam_jax.config import Config, UsageError
from edgesam_jax.config.derive import Length, arm_config
from edgesam_jax.planning.accelerators import ACCELERATORS
from edgesam_jax.reporting.tables import gigabytes, hours, table

if TYPE_CHECKING:
    from edgesam_jax.planning.plan import Plan


LATENCY = 50e-6  # seconds of a small all-reduce over hosts, typical of a data centre's network
HOSTS_SHOWN = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class Setup:
    """The machines to plan for; every field is a flag."""

    for_devices: int = 8
    for_hosts: int = 0  # 0: the usual number for these devices
    accelerator: str = "h100"
    utilisation: float = 0.3
    achieved_tflops: float = 0.0  # 0: the accelerator's peak times utilisation
    bandwidth_gbit: float = 100.0
    photos: int = 0
    teacher_model: str = ""

    @property
    def hosts(self) -> int:
        """Number of hosts."""
        return self.for_hosts or -(-self.for_devices // ACCELERATORS[self.accelerator].per_host)

    def flops(self, config: Config) -> float:
        """Assumed FLOP/s of one device during a step."""
        return self.achieved_tflops * 1e12 or self.utilisation * self.peak(config)

    def peak(self, config: Config) -> float:
        """Published peak FLOP/s of one device for the student's ``compute_dtype``."""
        return float(getattr(ACCELERATORS[self.accelerator], config.model.compute_dtype))


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


def setup_of(args: argparse.Namespace) -> Setup:
    """Read and check the flags.

    Raises:
      UsageError: a number out of range, or a flag of the dry run without ``--dry-run``.
    """
    setup = Setup(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Setup)})
    if not args.dry_run and setup != Setup():
        raise UsageError("--for-devices and the other flags of the dry run need --dry-run")
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


# ----------------------------------------------------------------------------------------------------------- estimate


def exchange_seconds(plan: Plan, setup: Setup, hosts: int) -> float:
    """Return the seconds of all-reduces over this many hosts in a step: a ring's traffic, and batch norm's latency.

    Communication within a host counts as free, and no overlap with computation is assumed.
    """
    traffic = 2 * (hosts - 1) / hosts * plan.step.reduced / (setup.bandwidth_gbit * 1e9 / 8)
    return traffic + (plan.step.waits * LATENCY if hosts > 1 else 0.0)


def step_seconds(plan: Plan, setup: Setup, flops: float, hosts: int) -> float:
    """Return the seconds of a step with this many FLOPs on each device."""
    return flops / setup.flops(plan.config) + exchange_seconds(plan, setup, hosts)


def run_seconds(plan: Plan, setup: Setup) -> float:
    """Return the seconds of all steps."""
    steps = plan.config.train.steps
    return plan.run_flops / setup.flops(plan.config) + steps * exchange_seconds(plan, setup, setup.hosts)


# --------------------------------------------------------------------------------------------------------------- text


def report(config: Config, setup: Setup) -> str:
    """Return the complete text of the dry run, with a part for each arm of a study.

    Raises:
      UsageError: see ``plan.plan`` and ``plan.teacher_config``.
    """
    import jax

    # Tracing creates constants.  They belong on the CPU: this machine's accelerators may be busy.
    jax.config.update("jax_platforms", "cpu")
    from edgesam_jax.planning import plan as planning

    if not config.study:
        teacher = planning.teacher_config(config, setup.teacher_model)
        return describe(planning.plan(config, teacher, setup.for_devices), setup)

    texts: list[str] = []
    earlier: dict[str, Length] = {}
    for arm in config.study:  # with time_from an arm lasts as long as the estimates of others
        derived = arm_config(config, arm, earlier)
        teacher = planning.teacher_config(derived, setup.teacher_model)
        arm_plan = planning.plan(derived, teacher, setup.for_devices)
        earlier[arm.name] = Length(derived.train.steps, run_seconds(arm_plan, setup))
        texts.append(describe(arm_plan, setup))
    return "\n\n\n".join(texts)


def describe(plan: Plan, setup: Setup) -> str:
    """Return the text of one plan."""
    blocks = [
        _heading(plan, setup), _shapes(plan), _parameters(plan), _work(plan), _memory(plan, setup),
        _length(plan, setup), _times(plan, setup), _growth(plan, setup),
    ]  # fmt: skip
    return "\n\n".join(blocks)


def _heading(plan: Plan, setup: Setup) -> str:
    config = plan.config
    targets = f"teacher {config.teacher}" if plan.teacher else "ground truth"
    source = f", its embeddings from {', '.join(config.data.embeddings)}" if config.data.embeddings else ""
    return (
        f"{config.name}: {config.distill.mode}, {targets}{source}\n"
        f"planned for {plan.devices} {setup.accelerator} on {setup.hosts} host{'s' * (setup.hosts > 1)};"
        " nothing is trained, loaded or written"
    )


def _shapes(plan: Plan) -> str:
    model, p = plan.config.model, plan.config.data.max_prompts
    total = plan.config.data.batch_size

    def shape(*sizes: int) -> str:
        return " x ".join(map(str, sizes))

    each: dict[str, tuple[int, ...]] = {
        "photos (uint8)": (model.image_size, model.image_size, 3),
        "embedding": (model.grid, model.grid, model.embed_dim),
    }
    if plan.rounds:
        each["boxes and points"] = (p, 6)
        each["masks of a round"] = (p, model.decoder.num_mask_tokens, model.mask_size, model.mask_size)
    rows = [(name, shape(total, *sizes), shape(plan.images, *sizes)) for name, sizes in each.items()]
    return table(("shapes", "global batch", "on a device"), rows)


def _parameters(plan: Plan) -> str:
    rows = [(name, f"{n:,}", f"{learns:,}") for name, (n, learns) in plan.parameters.items()]
    student = [value for name, value in plan.parameters.items() if name != "teacher"]
    rows.insert(len(student), ("student", f"{sum(n for n, _ in student):,}", f"{sum(n for _, n in student):,}"))
    return table(("parameters", "all", "learn"), rows)


def _work(plan: Plan) -> str:
    total = plan.step.products
    rows = [
        (name, f"{flops / 1e9:,.1f}", f"{flops / plan.images / 1e9:,.1f}", f"{flops / total:.1%}")
        for name, flops in (*plan.parts.items(), ("step", total))
    ]
    others = plan.step.others / 1e9
    return (
        table(("GFLOP of a step", "on a device", "an image", "share"), rows)
        + "\nMatrix products and convolutions, a multiply-add as two; other operations: "
        + f"{others:,.1f} G. All devices: {total * plan.devices / 1e12:,.1f} TFLOP a step."
    )


def _memory(plan: Plan, setup: Setup) -> str:
    total = sum(plan.memory.values())
    rows = [(name, gigabytes(size)) for name, size in (*plan.memory.items(), ("sum", total))]
    limit = ACCELERATORS[setup.accelerator].memory
    verdict = "fits" if 1.75 * total < limit else "may not fit" if total < limit else "does not fit"
    return (
        table(("memory of a device", "GB"), rows)
        + f"\n{setup.accelerator} has {limit / 1e9:.0f} GB: it {verdict}. Activations are read from the program without"
        " compiling it;\nXLA took 1.1 to 1.7 times as much where it was compared (docs/scale.md)."
    )


def _length(plan: Plan, setup: Setup) -> str:
    from edgesam_jax.planning import plan as planning

    config, keep = plan.config, plan.config.train.keep_checkpoints + plan.config.train.keep_best
    photos, unknown = (setup.photos, "") if setup.photos else planning.photos_of(config)
    drawn = config.train.steps * config.data.batch_size
    rows = [
        ("steps", f"{config.train.steps:,} of {config.data.batch_size} photos: {drawn:,} photos"),
        ("photos in the data", f"{photos:,}" if photos else f"unknown: {unknown}"),
        ("epochs", f"{drawn / photos:.2f}" if photos else "unknown"),
        ("disk: checkpoints", f"{gigabytes((keep + 1) * plan.checkpoint)} GB: {keep} kept, 1 being written"),
        ("disk: model at the end", f"{gigabytes(plan.model_file)} GB"),
    ]
    if plan.teacher and config.data.source != "scenes":
        one = planning.stored_bytes(config)
        size = f"{gigabytes(one * photos)} GB" if photos else f"{one / 1e6:.2f} MB a photo"
        dtype = planning.stored_dtype(config)
        share = plan.parts.get("teacher: encoder", 0.0) / plan.step.products
        note = "" if config.data.embeddings else f"; not used: it would save {share:.0%} of the FLOPs"
        rows.append(("disk: teacher's store", f"{size} in {dtype}{note}"))
    return table(("run", ""), rows)


def _times(plan: Plan, setup: Setup) -> str:
    from edgesam_jax.planning import plan as planning

    config = plan.config
    names = [setup.accelerator] if setup.achieved_tflops else list(ACCELERATORS)
    rows = []
    for name in names:
        machine = dataclasses.replace(setup, accelerator=name)
        seconds = step_seconds(plan, machine, plan.step.products, machine.hosts)
        run = run_seconds(plan, machine)
        photos = config.data.batch_size / seconds
        row = [name, f"{machine.hosts}", f"{machine.flops(config) / 1e12:.0f}", f"{seconds:.3g}", f"{photos:,.0f}"]
        if config.data.embeddings:
            row.append(f"{photos * planning.stored_bytes(config) / 1e9:.2g}")
        rows.append((*row, hours(run), f"{run * plan.devices / 3600:,.1f}"))
    rate = f"{setup.achieved_tflops:g} TFLOP/s (--achieved-tflops)."
    if not setup.achieved_tflops:
        rate = (
            f"{setup.utilisation:.0%} of the published {config.model.compute_dtype} peak, which is an"
            " assumption:\nmeasure the MFU of a run and pass it as --utilisation, or pass --achieved-tflops."
        )
    store = ["store GB/s"] if config.data.embeddings else []
    header = ["estimate of time", "hosts", "TFLOP/s", "s a step", "photos/s", *store, "run", "device-hours"]
    return (
        table(header, rows) + f"\nAn estimate, not a measurement: each device at {rate}\nphotos/s is what the data"
        " pipeline must deliver. Compilation, checkpoints and evaluation come on top."
    )


def _growth(plan: Plan, setup: Setup) -> str:
    each, total = plan.devices // setup.hosts, plan.config.data.batch_size
    alone = plan.step.products * plan.devices / each / setup.flops(plan.config)  # seconds of a step on one host
    steps = plan.run_flops / plan.step.products  # in steps of the most expensive phase
    rows = []
    for hosts in sorted({*HOSTS_SHOWN, setup.hosts}):
        devices, exchange = hosts * each, exchange_seconds(plan, setup, hosts)
        row = [f"{hosts}", f"{devices}", f"{exchange * 1e3:.1f}"]
        for divides, seconds, length in (
            (total % devices == 0, alone / hosts, steps),
            (True, alone, steps / hosts),
        ):
            combined = seconds + exchange
            known = f"{combined:.3g}", f"{seconds / combined:.0%}", f"{combined * length * devices / 3600:,.1f}"
            row += known if divides else ("", "", "")
        rows.append(row)
    columns = "s a step", "efficiency", "device-h"
    return (
        f"growth with hosts of {each} {setup.accelerator}: first at the same batch of {total}, then at one that grows"
        " with the hosts\n"
        + table(("hosts", "devices", "exchange ms", *columns, *columns), rows)
        + f"\nComputing divides by the hosts; each step's {plan.step.reduced / 1e6:.1f} MB of gradients and statistics"
        f" do not: a ring at {setup.bandwidth_gbit:g} Gbit/s\na host, and {plan.step.waits} sums that wait for one"
        f" another (batch norm's) at {LATENCY * 1e6:.0f} us. No overlap is assumed.\n"
        "Hosts of one TPU slice are joined by faster links than that. Empty: the batch can't be split over this many."
    )
