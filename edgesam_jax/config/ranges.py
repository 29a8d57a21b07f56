"""Types of the schema's numeric fields, each with the range of its values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

LARGEST = 2**31 - 1  # of integers: devices count in int32
SEEDS = 2**32  # random keys are made from 32 bits


@dataclass(frozen=True)
class Range:
    """A range of finite numbers, with ``least`` and ``most`` included unless they are open."""

    least: float = 0
    most: float = math.inf
    open_below: bool = False
    open_above: bool = False

    def __contains__(self, value: Any) -> bool:
        if not abs(value) < math.inf:  # math.isfinite would convert an integer of any size
            return False
        above = value > self.least if self.open_below else value >= self.least
        return above and (value < self.most if self.open_above else value <= self.most)

    def fault(self, value: Any) -> str:
        """Return what a number outside the range must be, for a message."""
        if not abs(value) < math.inf:
            return "must be a finite number"
        low = f"above {self.least:.15g}" if self.open_below else f"at least {self.least:.15g}"
        if self.most in (math.inf, LARGEST) and value < self.most:
            return f"must be {low}"
        return f"must be {low} and {'below' if self.open_above else 'at most'} {self.most:.15g}"


Natural = Annotated[int, Range(0, LARGEST)]
Count = Annotated[int, Range(1, LARGEST)]
Seed = Annotated[int, Range(0, SEEDS, open_above=True)]
Positive = Annotated[float, Range(0, open_below=True)]
NonNegative = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]
ShareBelow1 = Annotated[float, Range(0, 1, open_above=True)]
Probability = Annotated[float, Range(0, 1, open_below=True, open_above=True)]
