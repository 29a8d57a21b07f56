"""One evaluation from start to finish: data set, systems, rows on disk, reports."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from edgesam_jax.config import UsageError
from edgesam_jax.data.readers.annotations import is_integer
from edgesam_jax.data.readers.coco import CocoSource
from edgesam_jax.data.readers.ranged import RangedSource
from edgesam_jax.data.schema import BadExample
from edgesam_jax.data.source import SkippedRow, Source, reasons, skipped_entries
from edgesam_jax.eval.report.contact_sheet import Case, choose_cases, sheet
from edgesam_jax.eval.report.plots import plots
from edgesam_jax.eval.report.report import markdown
from edgesam_jax.eval.report.summary import clicks, summarise
from edgesam_jax.eval.scoring.average_precision import LVIS_RESULTS, average_precision, boundary_average_precision
from edgesam_jax.eval.scoring.detections import run_detections
from edgesam_jax.eval.scoring.everything import GENERATE, EverythingSystem, ResultsSystem, recall, run_everything
from edgesam_jax.eval.scoring.ground_truth import IMAGE_DAMAGED, read_ground_truth
from edgesam_jax.eval.scoring.photos import Photo, choose_instances, load, read_ahead
from edgesam_jax.eval.scoring.prompted import Scored, run_prompted, score_photo
from edgesam_jax.eval.scoring.protocol import Settings
from edgesam_jax.eval.scoring.results import check_results, read_results, top_per_image
from edgesam_jax.eval.scoring.systems import PredictionsSystem, System, input_size
from edgesam_jax.files import sha256_of, write_atomically
from edgesam_jax.reporting.rows import Row, Rows

FORMAT = 2  # of the rows
LISTED = 1000  # skipped entries that a report lists individually


def count_compilations() -> Callable[[], int]:
    """Start counting programs that are compiled or loaded from the cache; returns a function for the current count."""
    import jax

    count = [0]

    def listener(event: str, duration_secs: float, **metadata: str | int) -> None:
        count[0] += event.endswith("backend_compile_duration")

    jax.monitoring.register_event_duration_secs_listener(listener)
    return lambda: count[0]


@dataclass
class Job:
    """An evaluation's data and settings, the same for every system.

    Call ``open`` with the data set before the other methods.

    Attributes:
      settings: prompts, protocol, masks and seeds; the defaults in everything mode.
      dataset, data_root: as named on the command line, for messages and reports.
      prompt: the command line's: "detections", "everything", or one of the protocol's.
      detections_file: a detector's boxes, for the prompt "detections".
      part: number of this host (from 0) and number of hosts; each scores every n-th photo.
      at_once: photos in flight; affects speed, not results.
      boundary: also measure boundary IoU and boundary AP.
      skipped: entries of the data set and of results files that can't be used, for any system.
      indices: position in the data set of each scored photo with instances, by image id.
      source: the data set; ``coco`` is the same if it is in COCO format, else None.
      detections: the detector's boxes by image id.
    """

    settings: Settings
    dataset: str
    data_root: str
    prompt: str
    detections_file: Path | None = None
    part: tuple[int, int] = (0, 1)
    at_once: int = 2
    boundary: bool = True
    skipped: list[SkippedRow] = field(init=False, default_factory=list)
    indices: dict[int | str, int] = field(init=False, default_factory=dict)
    source: Source = field(init=False)
    coco: CocoSource | None = field(init=False, default=None)
    detections: dict[int | str, list[dict[str, Any]]] = field(init=False)

    def open(self, source: Source) -> None:
        """Set the data set, and read the detector's boxes if they are the prompts.

        Raises:
          UsageError: the data set has no annotated photos, or the file of boxes can't be read.
        """
        self.source = source
        inner = source.source if isinstance(source, RangedSource) else source
        self.coco = inner if isinstance(inner, CocoSource) else None
        self.skipped += skipped_entries(source).rows
        if not source.annotated:
            why = f" ({reasons(self.skipped)})" if self.skipped else ""
            raise UsageError(f"--data-root {self.data_root}: no photo there has annotations{why}")
        if self.prompt == "detections" and self.coco is not None:
            unsupported = next((i for i in self.coco.image_ids() if not is_integer(i)), None)
            if unsupported is not None:
                raise UsageError(
                    f"{self.coco.annotation_file}: image id {unsupported!r} is not an integer, as average precision"
                    " needs; renumber the images"
                )
        self.detections = defaultdict(list)
        if self.prompt == "detections" and self.detections_file is not None:
            for detection in self._checked(self.detections_file, "--detections", "bbox"):
                self.detections[detection["image_id"]].append(detection)

    def _checked(self, path: Path, flag: str, need: Any) -> list[dict[str, Any]]:
        """A file's usable results; the others are added to ``skipped``.

        Raises:
          UsageError: the file can't be read, or none of its results can be used.
        """
        if self.coco is None:
            raise UsageError(f"{flag} {path}: needs --dataset coco or lvis, because its entries refer to image ids")
        results = read_results(path, flag)
        everything = self.prompt == "everything"  # all masks count, whatever their category
        categories = None if everything else self.coco.categories or None
        kept, rows = check_results(results, self.coco.sizes, categories, need)
        if not kept:
            why = reasons(rows) if rows else "it is an empty list"
            raise UsageError(f"{flag} {path}: none of its {len(results)} entries can be used: {why}")
        self.skipped += [(kind, f"{path}: {message}") for kind, message in rows]
        return top_per_image(kept, LVIS_RESULTS) if self.dataset == "lvis" and not everything else kept

    def predictions(self, path: Path) -> System | EverythingSystem:
        """Make a system of a file of masks.

        Raises:
          UsageError: the file can't be read, or the data set is not in COCO format.
        """
        results = self._checked(path, "--predictions", "segmentation")
        assert self.coco is not None
        if self.prompt == "everything":
            return ResultsSystem(path.name, sha256_of(path), results)
        return PredictionsSystem(path.name, sha256_of(path), results, self.coco.sizes)

    def score(self, system: System | EverythingSystem, stem: Path | None) -> dict[str, Any] | None:
        """Score one system, resuming from its rows.

        Args:
          stem: path of the files for rows and results, without suffix; None writes no files.

        Returns:
          The report, or None if other hosts' parts are missing.

        Raises:
          UsageError: the files hold rows of another evaluation or can't be written, or no photo has an instance.
        """
        ready = system.results if self.prompt == "detections" and isinstance(system, PredictionsSystem) else None
        rows = Rows(stem, self._header(system), self.part)
        try:
            todo = [i for i in range(self.part[0], len(self.source), self.part[1]) if i not in rows]
            title = f"{self.prompt} on {self.dataset}: {system.name}"
            if ready is None:
                with tqdm(
                    total=len(range(self.part[0], len(self.source), self.part[1])), unit="photo", desc=title,
                    dynamic_ncols=True,
                ) as bar:  # fmt: skip
                    bar.update(bar.total - len(todo))
                    bar.unpause()
                    photos = read_ahead(self.source, todo)
                    if isinstance(system, EverythingSystem):
                        run_everything(system, photos, rows, self.at_once, bar.update)
                    elif self.prompt == "detections":
                        run_detections(
                            system, photos, self.detections, self.settings, rows, self.at_once, bar.update
                        )  # fmt: skip
                    else:
                        run_prompted(
                            system, photos, self.settings, rows, self.at_once, self.boundary, bar.update
                        )  # fmt: skip
                rows.refresh()
                if any(i not in rows for i in range(len(self.source))):
                    return None
            scored = rows.in_order()
        finally:
            rows.close()
        report = self._description(system)
        if self.prompt == "detections":
            results = [dict(r) for row in scored for r in row.get("results", ())] if ready is None else ready
            report |= self._average_precision(results, scored)
            if stem is not None:
                write_atomically(stem.with_name(f"{stem.name}.results.json"), json.dumps(results))
        else:
            report |= self._skipped(self._listed(scored)) | self._summary(scored)
        stages: Counter[str] = Counter()
        for row in scored:
            stages.update(row.get("seconds", {}))
        if GENERATE in stages:
            times = [row["seconds"][GENERATE] for row in scored if "seconds" in row]
            report["seconds_per_photo"] = round(statistics.median(times), 3)  # the first photos include compilation
        return report | {"stage_seconds": {name: round(value, 3) for name, value in stages.items()}}

    def _header(self, system: System | EverythingSystem) -> dict[str, Any]:
        """Everything that determines the rows."""
        files = [self.coco.annotation_file] if self.coco else []
        files += [self.detections_file] if self.prompt == "detections" and self.detections_file is not None else []
        names: list[str] = getattr(self.source, "names", list)()
        return {
            "format": FORMAT, "system": system.digest, "settings": asdict(self.settings), "prompt": self.prompt,
            "boundary": self.boundary, "photos": len(self.source),
            "names": hashlib.sha256(json.dumps(names).encode()).hexdigest(), "files": [sha256_of(f) for f in files],
            **self._pixel_range(), **(system.options if isinstance(system, EverythingSystem) else {}),
        }  # fmt: skip

    def _pixel_range(self) -> dict[str, str]:
        """The range that photos are read with, if one was given."""
        return {"pixel_range": self.source.pixel_range} if isinstance(self.source, RangedSource) else {}

    def _description(self, system: System | EverythingSystem) -> dict[str, Any]:
        if isinstance(system, EverythingSystem):
            settings = {"protocol": self.settings.protocol, "refine": 0, **system.options}
        else:
            settings = {k: v for k, v in asdict(self.settings).items() if k != "prompt" and v is not None}
        return {
            "system": system.name, "dataset": self.dataset, "data_root": self.data_root,
            "annotations": str(self.coco.annotation_file) if self.coco else "", "prompt": self.prompt,
            "checkpoint": system.name, "resize": self.settings.resize,
            **settings, **self._pixel_range(),
        }  # fmt: skip

    def _skipped(self, listed: Sequence[SkippedRow]) -> dict[str, Any]:
        if not listed:
            return {}
        counts = Counter(kind for kind, _ in listed)
        return {"skipped": {"counts": dict(counts), "listed": [list(row) for row in listed[:LISTED]]}}

    def _listed(self, rows: Sequence[Row]) -> list[SkippedRow]:
        """What is not scored: entries of the data set and of results files, photos, and annotations of others."""
        photos = [row["skipped"] for row in rows if "skipped" in row]
        annotations = [unused for row in rows for unused in row.get("unused", ())]
        return [*self.skipped, *((kind, message) for kind, message in (*photos, *annotations))]

    def _summary(self, rows: Sequence[Row]) -> dict[str, Any]:
        instances = [instance for row in rows for instance in row.get("instances", ())]
        self.indices |= {row["instances"][0]["image_id"]: row["photo"] for row in rows if row.get("instances")}
        if not instances:
            listed = self._listed(rows)
            why = reasons(listed) if listed else "the photos have no annotations"
            use = "score" if self.prompt == "everything" else "prompt with"
            raise UsageError(f"--data-root {self.data_root}: no photo there has an instance to {use}: {why}")
        summary: dict[str, Any] = {
            "num_images": sum("instances" in row for row in rows), "num_instances": len(instances)
        }  # fmt: skip
        if self.prompt == "everything":
            return summary | {"everything": recall(rows), "instances": instances}
        summary |= summarise(instances, self.coco.categories if self.coco else {})
        if self.settings.prompt != "box":
            summary["noc"] = clicks(instances, 1 + self.settings.refine)
        return summary | {"instances": instances}

    def _average_precision(self, results: Sequence[Mapping[str, Any]], rows: Sequence[Row]) -> dict[str, Any]:
        assert self.coco is not None
        style: Any = "lvis" if self.dataset == "lvis" else "coco"
        ids = [row["image_id"] for row in rows if "image_id" in row] or self.coco.image_ids()
        evaluated = set(ids)
        kept = [dict(r) for r in results if r["image_id"] in evaluated]
        truth = read_ground_truth(self.coco.annotation_file, ids)
        unused = [row for row in truth.skipped if row[0] != IMAGE_DAMAGED]  # the data set has those already
        if all(annotation["iscrowd"] for annotation in truth.annotations):
            why = reasons(unused) if unused else "crowd regions only" if truth.annotations else "the list is empty"
            raise UsageError(f"annotations {truth.path}: no object in it to compare with: {why}")
        scores = self._skipped([*self._listed(rows), *unused])
        scores |= {"num_images": len(ids), "num_detections": len(kept)}
        scores["ap"] = average_precision(truth, kept, style=style)
        if self.boundary:
            scores["boundary_ap"] = boundary_average_precision(truth, kept, style=style)
        return scores

    # ------------------------------------------------------------------------------------------------------- reports

    def write(
        self,
        output: Path,
        systems: Sequence[System | EverythingSystem],
        reports: list[dict[str, Any]],
        pictures: bool = True,
    ) -> None:
        """Write the JSON and, in the same folder, Markdown, plots and contact sheets.

        Args:
          output: the JSON file.
          systems, reports: in the same order.
          pictures: write plots and contact sheets (plots alone in everything mode).

        Raises:
          UsageError: a file can't be written.
        """
        content: dict[str, Any] = reports[0] if len(reports) == 1 else {"systems": reports}
        stem = output.with_name(output.stem)
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(output, json.dumps(content, indent=1))
            shown = []
            if pictures and self.prompt != "detections":
                shown += plots(reports, stem)
                for number, (system, report) in enumerate(zip(systems, reports, strict=True)):
                    name = f"{stem.name}{f'.{number + 1}' if len(reports) > 1 else ''}.sheet.png"
                    if isinstance(system, EverythingSystem):  # its masks belong to no annotation
                        continue
                    if self._sheet(system, report, stem.with_name(name)):
                        shown.append(stem.with_name(name))
            text = markdown(reports) + "".join(f"\n![{path.stem}]({path.name})\n" for path in shown)
            write_atomically(stem.with_name(f"{stem.name}.md"), text)
        except OSError as error:
            raise UsageError(f"--output {output}: cannot write ({error.strerror})") from None

    def _sheet(self, system: System, report: dict[str, Any], path: Path) -> bool:
        """Draw the worst and some typical cases, scoring their photos again; False if there are none."""
        instances = report["instances"]
        worst, typical = choose_cases(instances)
        by_photo: dict[Any, list[tuple[int, str]]] = defaultdict(list)
        for kind, selected in (("worst", worst), ("typical", typical)):
            for i in selected:
                by_photo[instances[i]["image_id"]].append((instances[i]["annotation_id"], kind))
        drawn: dict[tuple[Any, int], Case] = {}
        for image_id in by_photo:
            try:
                photo = load(self.source, self.indices[image_id])
            except BadExample:  # removed since it was scored
                continue
            photo = choose_instances(photo, self.settings.max_instances, self.settings.seed)
            scored = score_photo(system, photo, self.settings)
            for annotation_id, kind in by_photo[photo.image_id]:
                i = photo.ids.tolist().index(annotation_id)
                title = f"{kind}: IoU {scored.iou[i, -1]:.2f}, image {photo.image_id}"
                drawn[photo.image_id, annotation_id] = case_of(system, photo, scored, i, title)
        order = [(instances[i]["image_id"], instances[i]["annotation_id"]) for i in (*worst, *typical)]
        cases = [drawn[name] for name in order if name in drawn]
        if cases:
            sheet(cases, path)
        return bool(cases)


def case_of(system: System, photo: Photo, scored: Scored, instance: int, title: str) -> Case:
    """Return an instance of a scored photo as a case of a contact sheet, with the prompt and mask of the last round."""
    scale = np.array(photo.size[::-1]) / input_size(photo, system)[::-1]
    truth = np.zeros(photo.size, bool)
    if photo.masks[instance]:
        photo.masks[instance].paste(truth)
    slots = scored.slots
    used = slots.valid[instance] & (slots.labels[instance] >= 0)
    return Case(
        photo=photo.image, truth=truth, prediction=scored.last[instance].mask,
        coords=slots.coords[instance][used] * scale, labels=slots.labels[instance][used], title=title,
    )  # fmt: skip
