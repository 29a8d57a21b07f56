"""The text of a plan: shapes, parameters, operations, memory, length, times and growth, as tables."""

from __future__ import annotations

import dataclasses

from edgesam_jax.planning import plan as planning
from edgesam_jax.planning.accelerators import ACCELERATORS
from edgesam_jax.planning.plan import Plan
from edgesam_jax.planning.setup import LATENCY, Setup, exchange_seconds, run_seconds, step_seconds
from edgesam_jax.reporting.tables import gigabytes, hours, table

HOSTS_SHOWN = (1, 2, 4, 8, 16, 32)
# The margin with which a program surely fits, and what the estimate was compared with.
TPU_FOUND = 1.3, "XLA's TPU compiler took 0.95 to 1.25 times as much in all where it was compared"
CPU_FOUND = 1.75, "XLA took 1.1 to 1.7 times as much on a CPU, where it was compared"


def heading(plan: Plan, setup: Setup) -> str:
    """Return what is planned, for which machines, its shapes and its parameters."""
    return "\n\n".join([_title(plan, setup), _shapes(plan), _parameters(plan)])


def describe(plan: Plan, setup: Setup) -> str:
    """Return the text of one plan."""
    blocks = [
        heading(plan, setup), _work(plan), _memory(plan, setup), _length(plan, setup), _times(plan, setup),
        _growth(plan, setup),
    ]  # fmt: skip
    return "\n\n".join(blocks)


def _title(plan: Plan, setup: Setup) -> str:
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
        f"photos ({plan.config.data.photo_dtype})": (model.image_size, model.image_size, 3),
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
    margin, found = TPU_FOUND if setup.accelerator.startswith("tpu-") else CPU_FOUND
    verdict = "fits" if margin * total < limit else "may not fit" if total < limit else "does not fit"
    return (
        table(("memory of a device", "GB"), rows)
        + f"\n{setup.accelerator} has {limit / 1e9:.0f} GB: it {verdict}. Activations are read from the program without"
        f" compiling it;\n{found} (docs/scale.md)."
    )


def _length(plan: Plan, setup: Setup) -> str:
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
