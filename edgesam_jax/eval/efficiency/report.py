"""The tables of ``eval efficiency``, the paper's figures beside them, and why counts of work differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgesam_jax.reporting.tables import table as columns

PUBLISHED_SIZE = 1024
# Table 1 of the paper: parameters in M, G multiply-accumulates of encoder and decoder, photos/s of the encoder.
PUBLISHED: tuple[dict[str, Any], ...] = (
    {"system": "SAM-H", "model": "sam_vit_h", "parameters": 641.1, "gmac": 2734.8, "fps": {}},
    {"system": "MobileSAM", "model": "mobile_sam", "parameters": 9.8, "gmac": 38.2,
     "fps": {"2080 Ti": 103.5, "iPhone 14": 4.9}},
    {"system": "EdgeSAM", "model": "edge_sam", "parameters": 9.6, "gmac": 22.1,
     "fps": {"2080 Ti": 164.3, "iPhone 14": 38.7}},
)  # fmt: skip
MOBILE_SAM_BY_RULE = 38.23  # worked out by hand from its layers
NONE = "-"


def beside_published(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The paper's rows, each with ``ours``: ``parameters`` (M), ``gmac``, ``gmac_by_rule`` and ``fps``.

    A value is None where it is not known, or the photo's size is not the paper's 1024; ``fps`` is that of batch 1.
    """
    found = []
    for row in PUBLISHED:
        mine: Mapping[str, Any] = next((r for r in rows if r["model"] == row["model"] and "gmac" in r), {})
        ours: dict[str, Any] = dict.fromkeys(("parameters", "gmac", "gmac_by_rule", "fps"))
        if mine:
            ours["parameters"] = mine["parameters"]["all"] / 1e6
        if mine and mine["image_size"] == PUBLISHED_SIZE:
            ours["gmac"] = mine["gmac"]["both"]
            ours["gmac_by_rule"] = mine["gmac"].get("layers", {}).get("both")
            speeds = [t for t in mine.get("timing", []) if (t["part"], t["size"]) == ("encoder", 1)]
            ours["fps"] = speeds[0].get("per_second") if speeds else None
        found.append({**row, "ours": ours})
    return found


def table(report: Mapping[str, Any]) -> str:
    """All tables of ``efficiency.run``'s report as text, with what one must know to read them."""
    blocks = [_counted(report["models"])]
    if any("timing" in row for row in report["models"]):
        blocks.append(_measured(report))
    blocks += [_published(report["published"]), _explanation(report)]
    return "\n\n".join(blocks)


def _counted(rows: Sequence[Mapping[str, Any]]) -> str:
    header = (
        "model", "px", "encoder", "decoder", "all", "folded", "encoder G", "decoder G", "both G", "by rule G", "",
    )  # fmt: skip
    lines = []
    for row in rows:
        line = [row["model"], str(row["image_size"])]
        if "gmac" in row:
            p, g = row["parameters"], row["gmac"]
            line += [f"{p[name]:,}" for name in ("encoder", "decoder", "all", "inference")]
            line += [_g(g["encoder"]), _g(g["decoder"]), _g(g["both"]), _g(g.get("layers", {}).get("both"))]
        lines.append([*line, *[NONE] * (len(header) - 1 - len(line)), _failed(row)])
    return columns(header, lines) + (
        "\nParameters of the image encoder, of prompt encoder and mask decoder, of all, and of all at inference, where"
        "\nbatch norms and branches are folded. G: multiply-accumulates of one photo and of one box on it, from shapes."
    )


def _failed(row: Mapping[str, Any]) -> str:
    return f"failed: {row['failed']}" if "failed" in row else ""


def _measured(report: Mapping[str, Any]) -> str:
    header = ("model", "part", "at once", "ms", "per second", "compile s", "peak GB", "")
    lines, skipped = [], False
    for row in report["models"]:
        for t in row.get("timing", ()):
            line = [row["model"], t["part"], str(t["size"])]
            if "seconds" in t:
                line += [f"{1e3 * t['seconds']:,.1f}", f"{t['per_second']:,.2f}", f"{t['compile_seconds']:.1f}"]
                line += [f"{t['peak_memory_bytes'] / 1e9:.2f}", ""]
            else:
                skipped |= "skipped" in t
                line += [*[NONE] * 4, f"skipped: {t['skipped']}" if "skipped" in t else _failed(t)]
            lines.append(line)
    device = report["device"]
    on_cpu = device.get("platform") == "cpu"
    cores = f", {device['cores']} cores" if on_cpu else ""
    name = f"{device['name']}{cores}, jax {device['jax']}" if device else "an unknown device"
    peak = "Peak: bytes in use on the device, in a process of its own for each model."
    if on_cpu:
        peak = "Peak: resident memory of a process of its own for each model, with Python, JAX and compilation in it."
    text = [
        f"On one device: {name}.",
        f"Compiled and warm, inputs on the device, the median of {report['rounds']} calls. Weights are random: speed",
        "does not depend on them. Encoder: photos/s from uint8 in the model's frame. Decoder: prompts/s of boxes on",
        "one photo whose embedding is there, four masks each. Compilation with tracing, without a cache.",
        peak,
        "A peak never falls: the decoder comes first and sizes grow, so that each row shows the most up to there.",
    ]
    if skipped:
        limit = f"{report['timing_limit_gmac']:g}"
        text.append(
            f"Skipped: on a CPU, encoder calls of more than {limit} GMAC, and models whose smallest call has more."
        )
        text.append("--timing-limit 0 times them all.")
    return columns(header, lines) + "\n" + "\n".join(text)


def _published(rows: Sequence[Mapping[str, Any]]) -> str:
    header = (
        "published", "M paper", "M ours", "diff", "G paper", "by rule", "diff", "counted", "diff",
        "2080 Ti /s", "iPhone 14 /s", "here /s", "ratio",
    )  # fmt: skip
    lines = []
    for row in rows:
        ours, fps = row["ours"], row["fps"]
        line = [row["system"], f"{row['parameters']:,.1f}", _g(ours["parameters"], 2)]
        line += [_difference(ours["parameters"], row["parameters"]), f"{row['gmac']:,.1f}"]
        for name in ("gmac_by_rule", "gmac"):
            line += [_g(ours[name]), _difference(ours[name], row["gmac"])]
        card, here = fps.get("2080 Ti"), ours["fps"]
        line += [_g(card, 1), _g(fps.get("iPhone 14"), 1), _g(here)]
        lines.append([*line, f"{here / card:.1%}" if card and here else NONE])
    return columns(header, lines) + (
        "\nM: parameters. /s: photos through the encoder, one at a time, on each device; ratio: here to the 2080 Ti."
    )


def _g(value: float | None, digits: int = 2) -> str:
    if value is None:
        return NONE
    return f"{value:,.{digits}f}" if value >= 0.1 or not value else f"{value:.5f}"


def _difference(ours: float | None, published: float) -> str:
    return NONE if ours is None else f"{ours - published:+,.2f}"


def _explanation(report: Mapping[str, Any]) -> str:
    text = [
        "Counted: the matrix products and convolutions that our program does on an accelerator, products of two",
        "activations (attention) among them; taps on padding, norms and activation functions are not.",
        "By rule: how the paper counted is inferred from its figures. All three come out to 0.06 if every convolution",
        "and linear layer of the published code counts, with padding, and two operations for each element that a batch",
        "or layer norm scales, but no product of two activations. By hand the rule gives"
        f" {MOBILE_SAM_BY_RULE} for MobileSAM's 38.2.",
    ]
    rows = {row["model"]: row for row in report["models"]}
    for published in report["published"]:
        if published["ours"]["gmac_by_rule"] is not None:
            text += ["", *_terms(published, rows[published["model"]]["gmac"])]
    return "\n".join(text)


def _terms(published: Mapping[str, Any], gmac: Mapping[str, Any]) -> list[str]:
    """The difference between our count and the published one, in terms that add up to it."""
    layers, activations = gmac["layers"], gmac.get("activations", {})
    rest = gmac["unfolded"] - layers["encoder"] - sum(activations.values())
    ours, theirs = _g(gmac["decoder"]), _g(layers["decoder"])
    terms = {
        "attention over the whole grid, not in the rule": activations.get("global", 0.0),
        "attention in windows, not in the rule": activations.get("windowed", 0.0),
        "relative positions, not in the rule": activations.get("positions", 0.0),
        "norms, in the rule but not counted here": -layers["norms"],
        f"decoder, {ours} for {theirs}: projects a prompt's few tokens, where SAM's code projects the whole image, but"
        f"\n{'':13s}with the products of attention and masks": gmac["decoder"] - layers["decoder"],
        "branches folded into one": gmac["encoder"] - gmac["unfolded"],
        "rest of the encoder: taps on padding left out, up-sampling counted as products": rest,
        "not explained; the published figure is rounded to 0.1": layers["both"] - published["gmac"],
    }
    head = f"{published['system']}: {_g(gmac['both'])} counted - {published['gmac']:,.1f} published"
    lines = [f"{head} = {gmac['both'] - published['gmac']:+,.2f}"]
    return lines + [f"  {value:+9,.3f}  {reason}" for reason, value in terms.items() if value]
