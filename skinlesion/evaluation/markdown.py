"""Tables in Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from skinlesion.evaluation.metrics import format_figure


def make_markdown_table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Write a table; cells are written by `format_cell`."""
    lines = [[format_cell(cell).replace("|", "\\|") for cell in row] for row in (head, *rows)]
    lines.insert(1, ["---"] * len(head))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def format_cell(cell: Any) -> str:
    """Text unchanged; figures and counts by `format_figure`; undefined figures as a dash."""
    if isinstance(cell, str):
        return cell
    if not isinstance(cell, Mapping) or not pd.isna(cell.get("low")):
        return format_figure(cell)
    return "-" if pd.isna(cell["value"]) else f"{cell['value']:.3f}"
