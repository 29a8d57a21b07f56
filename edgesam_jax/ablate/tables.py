"""The paper's ablation tables as data: the runs in their rows, the paper's numbers and its conclusions.

Source: Zhou, Li, Loy, Dai, "EdgeSAM: Prompt-In-the-Loop Distillation", arXiv 2312.06660, Tables 5 and 6, as far as the
numbers are known here: mIoU in percent on SA-1K for a box and for a centre click, each alone and after two more points.
The letters 5a, 5c and 5g are certain; those of the other ablations are not, hence a name for each table.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from edgesam_jax.config import UsageError

Column = tuple[str, int]  # prompt, and number of points after it
BOX, BOX2, CENTRE, CENTRE2 = ("box", 0), ("box", 2), ("center", 0), ("center", 2)
SHOWN: tuple[Column, ...] = (BOX, BOX2, CENTRE, CENTRE2)  # columns of the paper's numbers and of the plots


@dataclass(frozen=True)
class Row:
    """A row: the name of its run, its title in this table, and the paper's numbers where known."""

    arm: str
    title: str = ""  # empty: the title of the run
    paper: Mapping[Column, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Claim:
    """A conclusion of the paper from two rows in one column.

    ``difference`` is ``first`` minus ``second`` in points of mIoU, or None if the paper only says that the first is
    better.
    """

    first: str
    second: str
    column: Column
    difference: float | None = None


@dataclass(frozen=True)
class Table:
    """One table, with its ``letter`` in the paper and its ``name`` on the command line.

    With ``scores`` the correlation of the model's scores with the true overlap is measured and shown; with ``cost`` the
    parameters and operations of the students are shown.
    """

    letter: str
    name: str
    title: str
    rows: tuple[Row, ...]
    claims: tuple[Claim, ...] = ()
    scores: bool = False
    cost: bool = False

    @property
    def arms(self) -> tuple[str, ...]:
        """Names of the rows' runs."""
        return tuple(row.arm for row in self.rows)


def _paper(box: float, centre: float, box2: float | None = None, centre2: float | None = None) -> dict[Column, float]:
    values = {BOX: box, CENTRE: centre, BOX2: box2, CENTRE2: centre2}
    return {column: value for column, value in values.items() if value is not None}


_NO_LOOP = _paper(83.1, 67.4, 83.4, 72.4)
_ONE_LOOP = _paper(83.0, 67.5, 84.1, 79.0)


def tables(arms: Sequence[str]) -> tuple[Table, ...]:
    """Return all tables; Tables 5c and 5d have a row for every name in ``arms`` that begins with student_ or data_."""
    students = tuple(name for name in arms if name.startswith("student_"))
    data = tuple(name for name in arms if name.startswith("data_") and not name.endswith("_encoder"))
    return (
        Table(
            "5a", "techniques", "Prompt-in-the-loop distillation against encoder-only",
            (
                Row("encoder", paper=_paper(82.0, 64.6, 82.8, 76.2)),
                Row("encoder_longer"),
                Row("loop0", paper=_NO_LOOP),
                Row("loop1", paper=_ONE_LOOP),
            ),
            (
                Claim("loop1", "encoder_longer", BOX, 1.0),
                Claim("loop1", "encoder_longer", BOX2, 1.3),
                Claim("loop1", "encoder_longer", CENTRE, 2.9),
                Claim("loop1", "encoder_longer", CENTRE2, 2.8),
            ),
        ),
        Table(
            "5c", "students", "Image encoders, and two ways of keeping the resolution (stage 1)",
            (Row("short", "RepViT, fusion"), *(Row(name) for name in students)),
            cost=True,
        ),
        Table(
            "5d", "data", "Amount of training data, at equal epochs (both stages)",
            tuple(Row(name) for name in data),
            tuple(Claim(later, earlier, column) for earlier, later in itertools.pairwise(data)
                  for column in (BOX, CENTRE)),
        ),
        Table(
            "5f", "feature-losses", "Loss between the embeddings (stage 1)",
            (Row("short", "pixel-wise"), Row("channel"), Row("correlation"), Row("pixel_channel"),
             Row("pixel_correlation")),
            tuple(Claim(more, "short", column, 0.0) for more in ("pixel_channel", "pixel_correlation")
                  for column in (BOX, CENTRE)),
        ),
        Table(
            "5g", "loops", "Loops of new prompts",
            (
                Row("loop0", "none", _NO_LOOP),
                Row("loop1", "one", _ONE_LOOP),
                Row("loop2", "two", _paper(82.9, 67.3, 84.1, 79.2)),
            ),
            (
                Claim("loop1", "loop0", BOX2, 0.7),
                Claim("loop1", "loop0", CENTRE2, 6.6),
                Claim("loop2", "loop1", BOX2, 0.0),
                Claim("loop2", "loop1", CENTRE2, 0.2),
            ),
        ),
        Table(
            "5h", "decoder-losses", "Losses between the decoders",
            (
                Row("loop1", "masks", _paper(83.1, 67.4)),
                Row("attention", "masks and attention maps", _paper(82.8, 67.0)),
                Row("iou_head", "masks and IoU predictions", _paper(82.5, 67.1)),
                Row("query", "masks and hypernetwork queries"),
                Row("features", "upscaled features alone", _paper(71.6, 55.0)),
            ),
            (
                Claim("loop1", "attention", BOX, 0.3), Claim("loop1", "attention", CENTRE, 0.4),
                Claim("loop1", "iou_head", BOX, 0.6), Claim("loop1", "iou_head", CENTRE, 0.3),
                Claim("loop1", "features", BOX, 11.5), Claim("loop1", "features", CENTRE, 12.4),
            ),
            scores=True,
        ),
        Table(
            "5i", "prompts", "Prompts per image",
            (Row("prompts_few"), Row("loop1", "as published"), Row("prompts_many")),
            (Claim("loop1", "prompts_few", BOX, 0.0), Claim("prompts_many", "loop1", BOX, 0.0)),
        ),
        Table(
            "6a", "frozen", "Parts trained in stage 2",
            (
                Row("frozen_encoder", paper=_paper(82.3, 65.7)),
                Row("frozen_decoder", paper=_paper(83.5, 67.7)),
                Row("lora", paper=_paper(82.9, 66.8)),
                Row("loop1", "everything", _paper(83.1, 67.4)),
            ),
            (
                Claim("loop1", "frozen_encoder", BOX, 0.8), Claim("loop1", "frozen_encoder", CENTRE, 1.7),
                Claim("loop1", "frozen_decoder", BOX, -0.4), Claim("loop1", "frozen_decoder", CENTRE, -0.3),
                Claim("loop1", "lora", BOX, 0.2), Claim("loop1", "lora", CENTRE, 0.6),
            ),
        ),
        Table(
            "6b", "stages", "Two stages against one",
            (Row("joint", paper=_paper(81.2, 63.2)), Row("loop1", "one stage after the other", _paper(83.1, 67.4))),
            (Claim("loop1", "joint", BOX, 1.9), Claim("loop1", "joint", CENTRE, 4.2)),
        ),
        Table(
            "6c", "starts", "First prompts of the loop",
            (Row("from_boxes"), Row("from_points"), Row("loop1", "boxes or points")),
            (Claim("loop1", "from_points", BOX),),
        ),
    )  # fmt: skip


def choose(available: tuple[Table, ...], names: list[str]) -> tuple[Table, ...]:
    """Select tables by letters or names, or all with ``all``, in the paper's order.

    Raises:
      UsageError: an unknown letter or name.
    """
    known = {key for table in available for key in (table.letter, table.name)}
    for name in names:
        if name != "all" and name not in known:
            listed = ", ".join(f"{table.letter} ({table.name})" for table in available)
            raise UsageError(f"--table {name}: unknown table; choose from {listed}, or all")
    return tuple(t for t in available if "all" in names or t.letter in names or t.name in names)
