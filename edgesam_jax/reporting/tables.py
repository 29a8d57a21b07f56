"""Text tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def gigabytes(size: float) -> str:
    """Format a number of bytes in GB, with fewer decimals from 10 GB on."""
    return f"{size / 1e9:,.3f}" if size < 10e9 else f"{size / 1e9:,.1f}"


def hours(seconds: float) -> str:
    """Format seconds as minutes, hours or, from 72 hours on, days."""
    if seconds < 3600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 72 * 3600 else f"{seconds / 86400:.1f} days"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a plain table. The first column and columns without a header are aligned left, all others right."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    words = [i == 0 or header[i] == "" for i in range(len(header))]
    text = [
        "  ".join(
            cell.ljust(width) if left else cell.rjust(width)
            for cell, width, left in zip(line, widths, words, strict=True)
        ).rstrip()
        for line in lines
    ]
    return "\n".join([text[0], "-" * max(map(len, text)), *text[1:]])


def aligned_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a table that is both readable text and Markdown. The first column is aligned left, the others right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        aligned = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return "| " + " | ".join(aligned) + " |"

    rule = ["-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join([line(header), line(rule), *map(line, rows)])
