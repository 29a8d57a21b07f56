"""The tables of ``eval efficiency``, with the paper's figures and an explanation of the differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgesam_jax.eval.report.published_numbers import COSTS
from edgesam_jax.reporting.tables import table as columns

PUBLISHED_SIZE = 1024
# The name in these tables and the registered model of systems in the paper's Table 1.
SYSTEMS = {"SAM": ("SAM-H", "sam_vit_h"), "MobileSAM": ("MobileSAM", "mobile_sam"), "EdgeSAM": ("EdgeSAM", "edge_sam")}
# Table 1: millions of parameters, 10^9 multiply-accumulates of encoder and decoder, photos/s of the encoder.
PUBLISHED: tuple[dict[str, Any], ...] = tuple(
    {
        "system": SYSTEMS[cost.model][0], "model": SYSTEMS[cost.model][1], "parameters": cost.parameters,
        "gmac": cost.macs,
        "fps": {"2080 Ti": cost.fps_2080ti, "iPhone 14": cost.fps_iphone14} if cost.fps_2080ti else {},
    }
    for cost in COSTS
    if cost.model in SYSTEMS
)  # fmt: skip
MOBILE_SAM_BY_RULE = 38.23  # calculated by hand from its layers
NONE = "-"


def compare_with_published(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The paper's rows, each with ``ours``: ``parameters`` (M), ``gmac``, ``gmac_by_rule`` and ``fps`` (batch size 1).

    A value is None if it is unknown; all except ``parameters`` are None if the image size is not the paper's 1024.
    """
    compared = []
    for row in PUBLISHED:
        measured: Mapping[str, Any] = next((r for r in rows if r["model"] == row["model"] and "gmac" in r), {})
        ours: dict[str, Any] = dict.fromkeys(("parameters", "gmac", "gmac_by_rule", "fps"))
        if measured:
            ours["parameters"] = measured["parameters"]["all"] / 1e6
        if measured and measured["image_size"] == PUBLISHED_SIZE:
            ours["gmac"] = measured["gmac"]["both"]
            ours["gmac_by_rule"] = measured["gmac"].get("layers", {}).get("both")
            speeds = [t for t in measured.get("timing", []) if (t["part"], t["size"]) == ("encoder", 1)]
            ours["fps"] = speeds[0].get("per_second") if speeds else None
        compared.append({**row, "ours": ours})
    return compared


def table(report: Mapping[str, Any]) -> str:
    """All tables of the report of ``command.run`` as text, with explanations."""
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
        "\nParameters: encoder, the image encoder; decoder, the prompt encoder and mask decoder; all, their sum;"
        "\nfolded, all at inference, with batch norms and branches folded."
        "\nG: 10^9 multiply-accumulates for one photo and one box, counted from shapes."
    )


def _failed(row: Mapping[str, Any]) -> str:
    return f"failed: {row['failed']}" if "failed" in row else ""


def _measured(report: Mapping[str, Any]) -> str:
    header = ("model", "part", "batch", "ms", "per second", "compile s", "peak GB", "")
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
    peak = "Peak: bytes in use on the device, in a separate process for each model."
    if on_cpu:
        peak = "Peak: resident memory of a separate process for each model, including Python, JAX and compilation."
    text = [
        f"On one device: {name}.",
        f"Median of {report['rounds']} calls after compilation and warm-up, with inputs on the device.",
        "Weights are random, because speed doesn't depend on them.",
        "Encoder: photos/s from uint8 images in the model's frame.",
        "Decoder: prompts/s for a batch of boxes on one photo with a precomputed embedding, four masks each.",
        "Compilation includes tracing and doesn't use a cache.",
        peak,
        "A peak never decreases: the decoder runs first and sizes increase, so each row shows the maximum so far.",
    ]
    if skipped:
        limit = f"{report['timing_limit_gmac']:g}"
        text.append(
            f"Skipped: on a CPU, encoder calls of more than {limit} GMAC, and models whose smallest call has more."
        )
        text.append("Pass --timing-limit 0 to time them all.")
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
        "\nM: millions of parameters. /s: photos per second of the encoder at batch size 1; ratio: here to the 2080 Ti."
    )


def _g(value: float | None, digits: int = 2) -> str:
    if value is None:
        return NONE
    return f"{value:,.{digits}f}" if value >= 0.1 or not value else f"{value:.5f}"


def _difference(ours: float | None, published: float) -> str:
    return NONE if ours is None else f"{ours - published:+,.2f}"


def _explanation(report: Mapping[str, Any]) -> str:
    text = [
        "Counted: the matrix products and convolutions of our program on an accelerator, including products of two",
        "activations (attention), but not taps on padding, norms and activation functions.",
        "By rule: a rule inferred from the paper's figures, which reproduces all three to within 0.06. It counts every",
        "convolution and linear layer of the published code, with padding, and two operations for each element that a",
        "batch or layer norm scales, but no product of two activations. For MobileSAM, calculated by hand, it gives",
        f"{MOBILE_SAM_BY_RULE} for the paper's 38.2.",
    ]
    rows = {row["model"]: row for row in report["models"]}
    for published in report["published"]:
        if published["ours"]["gmac_by_rule"] is not None:
            text += ["", *_terms(published, rows[published["model"]]["gmac"])]
    return "\n".join(text)


def _terms(published: Mapping[str, Any], gmac: Mapping[str, Any]) -> list[str]:
    """The difference between our count and the published one, as terms that add up to it."""
    layers, activations = gmac["layers"], gmac.get("activations", {})
    rest = gmac["unfolded"] - layers["encoder"] - sum(activations.values())
    counted, by_rule = _g(gmac["decoder"]), _g(layers["decoder"])
    terms = {
        "attention over the entire grid, not in the rule": activations.get("global", 0.0),
        "attention in windows, not in the rule": activations.get("windowed", 0.0),
        "relative positions, not in the rule": activations.get("positions", 0.0),
        "norms, in the rule but not counted here": -layers["norms"],
        f"decoder, {counted} instead of {by_rule}: projects a prompt's few tokens where SAM's code projects the image,"
        f"\n{'':13s}but includes the products of attention and masks": gmac["decoder"] - layers["decoder"],
        "branches folded into one": gmac["encoder"] - gmac["unfolded"],
        "rest of the encoder: taps on padding not counted, up-sampling counted as products": rest,
        "unexplained; the published figure is rounded to 0.1": layers["both"] - published["gmac"],
    }
    head = f"{published['system']}: {_g(gmac['both'])} counted - {published['gmac']:,.1f} published"
    lines = [f"{head} = {gmac['both'] - published['gmac']:+,.2f}"]
    return lines + [f"  {value:+9,.3f}  {reason}" for reason, value in terms.items() if value]
