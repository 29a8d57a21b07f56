"""Where a model's weights come from: its metadata's ``provenance``, and the model card made from it.

``provenance`` is JSON with the keys

- ``started_from``, ``teacher``: name, SHA-256 and licence of a checkpoint (``origin``), or None;
- ``data``: kind, number of photos, and the SHA-256 of their names, of each data set; no paths;
- ``recipe``: the run's config, with the last part of each path alone; ``steps`` and, if known, ``seconds`` of training;
- ``figures``: what was measured, as lines of Markdown;
- ``versions`` of the libraries, and the ``commit`` of this package's source, if it is in a git checkout.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePath
from typing import Any

from edgesam_jax.checkpoints.digest import digest_of
from edgesam_jax.checkpoints.model import Model
from edgesam_jax.files import sha256_of

CARD = "MODEL_CARD.md"
PROVENANCE = "provenance.json"  # in a run's folder: the metadata of its models, while it is being trained
LIBRARIES = ("edgesam_jax", "jax", "flax", "optax", "numpy")
UNKNOWN_LICENCE = "not recorded"


def origin(path: str | Path, model: Model) -> dict[str, str]:
    """Return name, SHA-256 and licence of a checkpoint: the file's sum, or of a folder that of its arrays."""
    file = Path(path)
    sha256 = sha256_of(file) if file.is_file() else digest_of(model.variables)
    return {
        "name": PurePath(path).name,
        "sha256": sha256,
        "licence": str(model.metadata.get("licence", UNKNOWN_LICENCE)),
    }


def inherited_licence(origins: Sequence[Mapping[str, str] | None]) -> str:
    """Return the licence of weights made from others: theirs, each once; "" if there are none."""
    return "; ".join(dict.fromkeys(origin["licence"] for origin in origins if origin))


def without_paths(value: Any) -> Any:
    """Return JSON in which each text that is a path is only its last part."""
    if isinstance(value, dict):
        return {name: without_paths(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(inner) for inner in value]
    return re.split(r"[/\\]", value.rstrip("/\\"))[-1] if isinstance(value, str) else value


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that computed."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """Return the commit of this package's source, with a note if files differ from it; "" outside of a checkout."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ("git", "-C", str(folder), *arguments)
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        if not git("ls-files", Path(__file__).name):  # installed inside of another project's checkout
            return ""
        return git("rev-parse", "HEAD") + (" with local changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def card(model: Model, name: str = "") -> str:
    """Return a model card as Markdown; what isn't known is said so."""
    metadata = model.metadata
    known: Mapping[str, Any] = metadata.get("provenance", {})
    config = model.config
    lines = [
        f"# {name or metadata.get('model') or metadata.get('source') or 'Model'}",
        "",
        "Promptable segmentation: a mask for points or a box in a photo. Made with edgesam_jax.",
        "",
        f"- **Licence of the weights**: {metadata.get('licence') or UNKNOWN_LICENCE}",
        f"- **Model**: {type(config.encoder).__name__.removesuffix('Config')} encoder, frame of {config.image_size} px,"
        f" {_count(model):,} parameters",
        f"- **Source**: {metadata.get('source') or 'not recorded'}",
    ]
    if not known:
        lines += ["", "How these weights were trained is not recorded."]
        return "\n".join(lines) + "\n"
    lines += ["", "## Trained from", ""]
    for key, what in (("started_from", "start"), ("teacher", "teacher")):
        entry = known.get(key)
        lines.append(
            f"- {what}: {entry['name']}, SHA-256 `{entry['sha256']}`, licence: {entry['licence']}"
            if entry
            else f"- {what}: none"
        )
    lines += ["", "## Data", ""]
    lines += [f"- {_described(entry)}" for entry in known.get("data", [])] or ["- not recorded"]
    figures = known.get("figures") or ["None were measured."]
    lines += ["", "## Figures", "", *figures, "", "## Recipe", ""]
    seconds = f", {known['seconds']:.0f} s in steps" if "seconds" in known else ""
    lines.append(f"{known.get('steps', 0):,} steps{seconds}.")
    lines += ["", "```json", json.dumps(known.get("recipe", {}), indent=1), "```", "", "## Software", ""]
    lines += [f"- {library} {number}" for library, number in known.get("versions", {}).items()]
    lines.append(f"- commit: {known.get('commit') or 'not recorded'}")
    return "\n".join(lines) + "\n"


def _described(entry: Mapping[str, Any]) -> str:
    rest = {name: value for name, value in entry.items() if name not in ("use", "source")}
    facts = ", ".join(f"{name} {f'`{value}`' if name == 'sha256' else value}" for name, value in rest.items())
    return f"{entry.get('use', 'training')}: {entry.get('source', '')}{f', {facts}' if facts else ''}"


def _count(model: Model) -> int:
    import jax

    return sum(int(leaf.size) for leaf in jax.tree.leaves(model.variables.get("params", {})))
