"""The machines that a dry run plans for, and estimates of a run's time on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgesam_jax.config import Config
from edgesam_jax.planning.accelerators import ACCELERATORS

if TYPE_CHECKING:
    from edgesam_jax.planning.plan import Plan

LATENCY = 50e-6  # seconds of a small all-reduce over hosts, typical of a data centre's network


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
    compile: str = ""  # name of a TPU slice to compile the step for
    json: bool = False

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
