"""One evaluation from end to end: photos, systems, rows on disk, reports."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from edgesam_jax.config import UsageError
from edgesam_jax.data.readers.coco import CocoSource
from edgesam_jax.data.readers.records import is_integer
from edgesam_jax.data.schema import BadExample
from edgesam_jax.data.source import Source, skipped_entries
from edgesam_jax.eval.report.contact_sheet import Case, choose_cases, sheet
from edgesam_jax.eval.report.plots import plots
from edgesam_jax.eval.report.report import markdown
from edgesam_jax.eval.report.summary import clicks, summarise
from edgesam_jax.eval.scoring.average_precision import LVIS_RESULTS, average_precision, boundary_average_precision
from edgesam_jax.eval.scoring.detections import run_detections
from edgesam_jax.eval.scoring.ground_truth import read_ground_truth
from edgesam_jax.eval.scoring.photos import choose_instances, load, read_ahead
from edgesam_jax.eval.scoring.prompted import run_prompted, score_photo
from edgesam_jax.eval.scoring.protocol import Settings
from edgesam_jax.eval.scoring.results import check_results, read_results, top_per_image
from edgesam_jax.eval.scoring.rows import Row, Rows
from edgesam_jax.eval.scoring.systems import PredictionsSystem, System, input_size
from edgesam_jax.files import sha256_of, write_atomically

FORMAT = 1  # of the rows
LISTED = 1000  # entries left out that a report names one by one
LeftOutRow = tuple[str, str]


def count_compilations() -> Callable[[], int]:
    """Start to count programs that are compiled, or loaded from the cache; returns how many so far."""
    import jax

    found = [0]

    def note(event: str, duration_secs: float, **also: str | int) -> None:
        found[0] += event.endswith("backend_compile_duration")

    jax.monitoring.register_event_duration_secs_listener(note)
    return lambda: found[0]


@dataclass
class Job:
    """What is asked of every system.

    ``prompt`` is the command line's: "detections" or one of the protocol's.  ``left_out`` lists what could not be used,
    whoever is scored.
    """

    settings: Settings
    dataset: str
    data_root: str
    prompt: str
    detections_file: Path
    part: tuple[int, int] = (0, 1)
    at_once: int = 2
    boundary: bool = True
    left_out: list[LeftOutRow] = field(default_factory=list)
    places: dict[int | str, int] = field(default_factory=dict)  # of photos with instances, in the data set

    def open(self, source: Source) -> None:
        """Take the photos, and the detector's boxes where they are the prompts.

        Raises:
          UsageError: no photos, or a file of boxes that can't be read.
        """
        self.source = source
        self.coco = source if isinstance(source, CocoSource) else None
        self.left_out += skipped_entries(source).rows
        if not source.annotated:
            raise UsageError(f"--data-root {self.data_root}: no photo there has annotations")
        if self.prompt == "detections" and self.coco is not None:
            named = next((i for i in self.coco.image_ids() if not is_integer(i)), None)
            if named is not None:
                raise UsageError(f"{self.coco.annotation_file}: image id {named!r}: AP's tools want whole numbers")
        self.detections: dict[int | str, list[dict[str, Any]]] = defaultdict(list)
        if self.prompt == "detections" and self.detections_file.name:
            for detection in self._checked(self.detections_file, "--detections", "bbox"):
                self.detections[detection["image_id"]].append(detection)

    def _checked(self, path: Path, flag: str, need: Any) -> list[dict[str, Any]]:
        """A file's results that belong to the photos; the others are listed."""
        if self.coco is None:
            raise UsageError(f"{flag} {path}: only with --dataset coco or lvis, whose image ids it uses")
        kept, rows = check_results(read_results(path, flag), self.coco.sizes, self.coco.categories or None, need)
        self.left_out += [(kind, f"{path}: {message}") for kind, message in rows]
        return top_per_image(kept, LVIS_RESULTS) if self.dataset == "lvis" else kept

    def predictions(self, path: Path) -> System:
        """A file of masks as a system.

        Raises:
          UsageError: it can't be read, or the data set has no image ids.
        """
        found = self._checked(path, "--predictions", "segmentation")
        assert self.coco is not None
        return PredictionsSystem(path.name, sha256_of(path), found, self.coco.sizes)

    def score(self, system: System, stem: Path | None) -> dict[str, Any] | None:
        """Score one system, going on from its rows; None where other hosts' parts are still missing.

        Raises:
          UsageError: rows of another evaluation, a full disk, or nothing that could be scored.
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
                    if self.prompt == "detections":
                        run_detections(
                            system, photos, self.detections, rows, self.settings.box_noise, self.settings.seed,
                            self.at_once, bar.update,
                        )  # fmt: skip
                    else:
                        run_prompted(
                            system, photos, self.settings, rows, self.at_once, self.boundary, bar.update
                        )  # fmt: skip
                rows.refresh()
                if any(i not in rows for i in range(len(self.source))):
                    return None
            found = rows.in_order()
        finally:
            rows.close()
        report = self._what(system) | self._skipped(found)
        if self.prompt == "detections":
            results = [dict(r) for row in found for r in row.get("results", ())] if ready is None else ready
            report |= self._average_precision(results, found)
            if stem is not None:
                write_atomically(stem.with_name(f"{stem.name}.results.json"), json.dumps(results))
        else:
            report |= self._summary(found)
        stages: Counter[str] = Counter()
        for row in found:
            stages.update(row.get("seconds", {}))
        return report | {"stage_seconds": {name: round(value, 3) for name, value in stages.items()}}

    def _header(self, system: System) -> dict[str, Any]:
        """What decides the rows."""
        files = [self.coco.annotation_file] if self.coco else []
        files += [self.detections_file] if self.prompt == "detections" and self.detections_file.name else []
        names: list[str] = getattr(self.source, "names", list)()
        return {
            "format": FORMAT, "system": system.digest, "settings": asdict(self.settings), "prompt": self.prompt,
            "boundary": self.boundary, "photos": len(self.source),
            "names": hashlib.sha256(json.dumps(names).encode()).hexdigest(), "files": [sha256_of(f) for f in files],
        }  # fmt: skip

    def _what(self, system: System) -> dict[str, Any]:
        return {
            "system": system.name, "dataset": self.dataset, "data_root": self.data_root,
            "annotations": str(self.coco.annotation_file) if self.coco else "", "prompt": self.prompt,
            "checkpoint": system.name,
            **{k: v for k, v in asdict(self.settings).items() if k != "prompt" and v is not None},
        }  # fmt: skip

    def _skipped(self, rows: Sequence[Row]) -> dict[str, Any]:
        listed = [*self.left_out, *(tuple(row["skipped"]) for row in rows if "skipped" in row)]
        if not listed:
            return {}
        return {
            "skipped": {
                "counts": dict(Counter(kind for kind, _ in listed)),
                "listed": [list(r) for r in listed[:LISTED]],
            }
        }

    def _summary(self, rows: Sequence[Row]) -> dict[str, Any]:
        instances = [instance for row in rows for instance in row.get("instances", ())]
        self.places |= {row["instances"][0]["image_id"]: row["photo"] for row in rows if row.get("instances")}
        if not instances:
            raise UsageError(f"--data-root {self.data_root}: no photo there has an instance to prompt with")
        found = {
            "num_images": sum("instances" in row for row in rows), "num_instances": len(instances),
            **summarise(instances, self.coco.categories if self.coco else {}),
        }  # fmt: skip
        if self.settings.prompt != "box":
            found["noc"] = clicks(instances, 1 + self.settings.refine)
        return found | {"instances": instances}

    def _average_precision(self, results: Sequence[Mapping[str, Any]], rows: Sequence[Row]) -> dict[str, Any]:
        assert self.coco is not None
        style: Any = "lvis" if self.dataset == "lvis" else "coco"
        ids = [row["image_id"] for row in rows if "image_id" in row] or self.coco.image_ids()
        own = set(ids)
        kept = [dict(r) for r in results if r["image_id"] in own]
        found: dict[str, Any] = {"num_images": len(ids), "num_detections": len(kept)}
        truth = read_ground_truth(self.coco.annotation_file, ids)
        found["ap"] = average_precision(truth, kept, style=style)
        if self.boundary:
            found["boundary_ap"] = boundary_average_precision(truth, kept, style=style)
        return found

    # ------------------------------------------------------------------------------------------------------- reports

    def write(
        self, output: Path, systems: Sequence[System], found: list[dict[str, Any]], pictures: bool = True
    ) -> None:
        """The JSON, and beside it Markdown, plots and sheets of the worst and of typical cases.

        Raises:
          UsageError: the folder can't be written.
        """
        content: dict[str, Any] = found[0] if len(found) == 1 else {"systems": found}
        beside = output.with_name(output.stem)
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(output, json.dumps(content, indent=1))
            shown = []
            if pictures and self.prompt != "detections":
                shown += plots(found, beside)
                for number, (system, one) in enumerate(zip(systems, found, strict=True)):
                    name = f"{beside.name}{f'.{number + 1}' if len(found) > 1 else ''}.sheet.png"
                    if self._sheet(system, one, beside.with_name(name)):
                        shown.append(beside.with_name(name))
            text = markdown(found) + "".join(f"\n![{path.stem}]({path.name})\n" for path in shown)
            write_atomically(beside.with_name(f"{beside.name}.md"), text)
        except OSError as error:
            raise UsageError(f"--output {output}: cannot write there ({error.strerror})") from None

    def _sheet(self, system: System, found: dict[str, Any], path: Path) -> bool:
        """Score the photos of the worst and of some typical cases again, and draw them."""
        instances = found["instances"]
        worst, typical = choose_cases(instances)
        wanted: dict[Any, list[tuple[int, str]]] = defaultdict(list)
        for kind, chosen in (("worst", worst), ("typical", typical)):
            for i in chosen:
                wanted[instances[i]["image_id"]].append((instances[i]["annotation_id"], kind))
        drawn: dict[tuple[Any, int], Case] = {}
        for image_id in wanted:
            try:
                photo = load(self.source, self.places[image_id])
            except BadExample:  # gone since
                continue
            photo = choose_instances(photo, self.settings.max_instances, self.settings.seed)
            scored = score_photo(system, photo, self.settings)
            frame = input_size(photo, system)
            scale = np.array(photo.size[::-1]) / frame[::-1]
            for annotation_id, kind in wanted[photo.image_id]:
                i = photo.ids.tolist().index(annotation_id)
                true = np.zeros(photo.size, bool)
                if photo.masks[i]:
                    photo.masks[i].paste(true)
                used = scored.slots.valid[i] & (scored.slots.labels[i] >= 0)
                title = f"{kind}: IoU {scored.iou[i, -1]:.2f}, image {photo.image_id}"
                drawn[photo.image_id, annotation_id] = Case(
                    photo.image, true, scored.last[i].mask, scored.slots.coords[i][used] * scale,
                    scored.slots.labels[i][used], title,
                )  # fmt: skip
        order = [(instances[i]["image_id"], instances[i]["annotation_id"]) for i in (*worst, *typical)]
        cases = [drawn[name] for name in order if name in drawn]
        if cases:
            sheet(cases, path)
        return bool(cases)
