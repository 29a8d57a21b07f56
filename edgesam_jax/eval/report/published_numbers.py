"""The numbers reported in the EdgeSAM paper, as data, and their match with an evaluation report.

Source: Zhou, Li, Loy, Dai, "EdgeSAM: Prompt-In-the-Loop Distillation", arXiv 2312.06660, Tables 1 to 4.  mIoU and AP
are in percent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Overlap:
    """mIoU in percent with ground-truth prompts (Tables 2 and 3): first prompt, then +1 and +2 points if reported."""

    model: str
    dataset: str
    prompt: str
    miou: tuple[float, ...]

    @property
    def source(self) -> str:
        """The paper's table."""
        return "Table 2" if self.prompt == "box" else "Table 3"


@dataclass(frozen=True)
class Precision:
    """Mask AP in percent on COCO val 2017 with a detector's boxes (Table 4).

    ``sizes`` is the AP of small, medium and large objects, where reported; ``boundary`` the column "BIoU", assumed to
    be AP based on boundary IoU.
    """

    model: str
    detector: str
    ap: float
    sizes: tuple[float, float, float] | None = None
    boundary: float | None = None
    dataset: str = "coco"
    prompt: str = "detections"
    source: str = "Table 4"


@dataclass(frozen=True)
class Cost:
    """Size and speed at 1024x1024 (Table 1): millions of parameters, 10^9 multiply-accumulates, photos per second."""

    model: str
    parameters: float | None = None
    macs: float | None = None
    fps_2080ti: float | None = None
    fps_iphone14: float | None = None


def _overlaps(dataset: str, prompt: str, **models: tuple[float, ...]) -> list[Overlap]:
    return [Overlap(name.replace("__", "-"), dataset, prompt, miou) for name, miou in models.items()]


OVERLAPS: tuple[Overlap, ...] = (
    *_overlaps(
        "sa1b",
        "box",
        SAM=(86.7, 86.7, 87.1),
        MobileSAM=(82.0, 82.4, 82.7),
        EdgeSAM=(83.0, 83.7, 84.1),
    ),
    *_overlaps(
        "coco",
        "box",
        SAM=(77.3, 77.7, 78.1),
        MobileSAM=(74.4, 74.8, 75.1),
        EfficientSAM__Ti=(75.2, 76.0, 76.6),
        EdgeSAM=(76.7, 78.1, 79.0),
    ),
    *_overlaps(
        "lvis",
        "box",
        SAM=(77.8, 78.3, 78.5),
        MobileSAM=(73.1, 73.7, 74.0),
        EfficientSAM__Ti=(74.6, 75.2, 75.1),
        EdgeSAM=(76.2, 77.3, 78.0),
    ),
    *_overlaps(
        "sa1b",
        "center",
        SAM=(76.5, 83.4, 85.1),
        MobileSAM=(64.6, 73.4, 76.2),
        EdgeSAM=(67.5, 76.1, 79.0),
    ),
    *_overlaps(
        "coco",
        "center",
        SAM=(53.6, 67.4, 71.7),
        MobileSAM=(50.9, 63.0, 66.8),
        EfficientSAM__Ti=(49.8, 60.5, 65.7),
        EdgeSAM=(48.0, 61.8, 68.7),
        EdgeSAM__RPN=(54.3,),
    ),
    *_overlaps(
        "lvis",
        "center",
        SAM=(60.5, 68.1, 70.7),
        MobileSAM=(52.1, 59.9, 63.0),
        EfficientSAM__Ti=(56.4, 62.5, 65.4),
        EdgeSAM=(53.7, 63.4, 67.7),
    ),
)

PRECISIONS: tuple[Precision, ...] = (
    Precision("SAM", "ViTDet-H", 46.1, (33.6, 51.9, 57.7)),
    Precision("MobileSAM", "ViTDet-H", 39.4),
    Precision("EfficientSAM-Ti", "ViTDet-H", 42.3),
    Precision("EdgeSAM", "ViTDet-H", 42.2, (29.6, 47.6, 53.9)),
    Precision("EdgeSAM-3x", "ViTDet-H", 42.7, (30.0, 48.6, 54.5)),
    Precision("EdgeSAM-10x", "ViTDet-H", 43.0, (30.3, 48.9, 55.1)),
    Precision("SAM", "Detic", 38.8, boundary=26.8),
    Precision("MobileSAM", "Detic", 33.1, boundary=20.2),
    Precision("EdgeSAM", "Detic", 35.2, boundary=22.5),
)
BOX_AP = {"ViTDet-H": 58.7, "Detic": 47.4}  # box AP of the detectors on COCO val 2017

COSTS: tuple[Cost, ...] = (
    Cost("SAM", parameters=641.1, macs=2734.8),  # with the ViT-H encoder
    Cost("MobileSAM", parameters=9.8, macs=38.2, fps_2080ti=103.5, fps_iphone14=4.9),
    Cost("EdgeSAM", parameters=9.6, macs=22.1, fps_2080ti=164.3, fps_iphone14=38.7),
    Cost("EdgeSAM-RPN", fps_2080ti=123.9, fps_iphone14=34.1),
)

# Number of photos in the data sets of the paper, and their names.
PHOTOS = {"coco": 5000, "lvis": 19809, "sa1b": 1000}
SETS = {"coco": "COCO val 2017", "lvis": "LVIS v1 val", "sa1b": "SA-1K"}


def matching_rows(report: Mapping[str, Any]) -> list[Overlap | Precision]:
    """The paper's rows for a report's data set and prompt, in the paper's order."""
    rows: list[Overlap | Precision] = [*OVERLAPS, *PRECISIONS]
    return [row for row in rows if (row.dataset, row.prompt) == (report.get("dataset"), report.get("prompt"))]


def warnings(report: Mapping[str, Any]) -> list[str]:
    """Reasons why a report's numbers may not be comparable with the paper's; empty without a matching row."""
    if not matching_rows(report):
        return []
    dataset = report["dataset"]
    notes: list[str] = []
    full, photos = PHOTOS[dataset], report.get("num_images", 0)
    # Photos without annotations have nothing to score; a loader may skip and count them.
    bare = report.get("skipped", {}).get("counts", {}).get("no annotations", 0)
    if photos != full and photos + bare != full:
        notes.append(
            f"Not comparable: {photos:,} photos here, {full:,} photos of {SETS[dataset]} in the paper. "
            "The differences below reflect the choice of photos as well as the model."
        )
    elif dataset == "sa1b":
        notes.append(
            "Possibly not comparable: the paper scores 64 masks sampled from each of 1,000 photos; "
            "whether these are the same photos and masks is not checked."
        )
    else:
        notes.append(f"The number of photos matches {SETS[dataset]}; whether they are the same photos is not checked.")
    if report["prompt"] == "detections":
        strengths = ", ".join(f"{value} ({name})" for name, value in BOX_AP.items())
        notes.append(
            f"AP depends on the detector as much as on the masks: the paper's detectors have a box AP of {strengths}."
        )
    elif report.get("protocol") != "published":
        notes.append(
            "The paper used the published protocol, so part of a difference may come from the protocol, not the model."
        )
    if report.get("num_masks", 1) != 1 or report.get("select", "first") != "first":
        notes.append("The paper scores the first mask token; here the mask was selected differently.")
    if report.get("box_noise"):
        notes.append("Noise was added to the boxes here, but not in the paper.")
    if report.get("priors", "off") != "off":
        notes.append("Clicks have a box from proposals here; in the paper, only EdgeSAM-RPN's do.")
    if report.get("refine") and report.get("refine_point", "random") != "random":
        notes.append("The paper's refinement points are random wrong pixels; here they are not.")
    return notes
