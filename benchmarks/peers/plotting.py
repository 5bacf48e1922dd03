"""Draws the comparison, in an environment that has matplotlib: rows of the table as bars, each panel from zero."""

from typing import Any

import matplotlib  # pyright: ignore[reportMissingImports]  # in its own environment only

matplotlib.use("svg")
from matplotlib import pyplot  # pyright: ignore[reportMissingImports]

OURS, THEIRS = "#1f6feb", "#8c959f"
PALE = 0.45  # of the bars with slower flushes
STYLE = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "dotdo",  # the same figures give the same file
    "font.family": "sans-serif",
    "font.size": 9,
}


def draw(file: str, title: str, labels: list[str], ours: int, panels: list[dict[str, Any]]) -> None:
    """labels: of the systems, ours first. panels: `title`, `plain` and, if it was measured, `slow`: a value or None for
    each system."""
    with pyplot.rc_context(STYLE):
        columns = 2
        rows = -(-len(panels) // columns)
        figure, axes = pyplot.subplots(rows, columns, figsize=(10, 2.7 * rows), layout="constrained", squeeze=False)
        for axis, panel in zip(axes.flat, panels, strict=True):
            _panel(axis, panel, labels, ours)
        figure.suptitle(title, fontsize=10, x=0.01, ha="left")
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
        pyplot.close(figure)


def _panel(axis: Any, panel: dict[str, Any], labels: list[str], ours: int) -> None:
    kinds = [kind for kind in ("plain", "slow") if panel.get(kind)]
    height = 0.8 / len(kinds)
    for which, kind in enumerate(kinds):
        for place, value in enumerate(panel[kind]):
            y = place + (which - (len(kinds) - 1) / 2) * height
            colour = OURS if place < ours else THEIRS
            axis.barh(y, value or 0, height * 0.92, color=colour, alpha=1 if kind == "plain" else PALE, linewidth=0)
            text = "not measured" if value is None else _shown(value)
            axis.annotate(text, (value or 0, y), xytext=(3, 0), textcoords="offset points", va="center", fontsize=7)
    axis.set_title(panel["title"], loc="left", fontsize=9, fontweight="bold")
    axis.set_yticks(range(len(labels)), labels)
    axis.invert_yaxis()
    axis.margins(x=0.14)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(axis="y", length=0)


def _shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
