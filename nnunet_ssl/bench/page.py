"""The page of a benchmark: its curves, dots and tables in one file that needs nothing else."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Sequence
from typing import Any

from nnunet_ssl.bench.grid import Grid
from nnunet_ssl.bench.report import Arm
from nnunet_ssl.bench.tables import HEADINGS, shown, table_rows

# Okabe and Ito's colours, which all eyes tell apart, and a marker for each
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP*"
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1180px; margin: 2em auto; padding: 0 1em; color: #111; }
table { border-collapse: collapse; font-size: 13px; width: 100%; }
td, th { padding: 3px 8px; border-bottom: 1px solid #ccc; text-align: right; vertical-align: bottom; }
td:nth-child(3), th:nth-child(3), td:last-child { text-align: left; }
img { max-width: 100%; } .missing { color: #a00; } @media print { body { margin: 0; } }
"""


def as_html(grid: Grid, arms: Sequence[Arm]) -> str:
    """The whole page."""
    parts = [f"<h1>{html.escape(grid.name)}</h1>", f"<p>{html.escape(_facts(arms))}</p>"]
    for dataset in grid.datasets:
        own = [arm for arm in arms if arm.key[0] == dataset.id]
        parts.append(f"<h2>Dataset {dataset.id}</h2>")
        for figure, words in (
            (_few_shot(own), "Dice by labelled cases"),
            (_classes(own), "Dice by class"),
            (_parameters(own), "Dice by parameters that learn"),
        ):
            parts.append(f'<img alt="{words}" src="data:image/png;base64,{figure}">')
        parts.append(_table(own))
    parts.append(
        "<p>Dice: mean over subjects (of their mean over classes) on the original grid, background left out, draws "
        "averaged; 95 % intervals by bootstrap over draws and subjects; NSD: surface Dice at the tolerance of the "
        "file. Minus scratch: paired with the same network trained from random weights, on the same draws and "
        "subjects; a sign a draw; Wilcoxon signed-rank over subjects, corrected by Holm over this page. Few draws say "
        "little about other draws: look at their signs.</p>"
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(grid.name)}</title>'
        f"<style>{STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def _facts(arms: Sequence[Arm]) -> str:
    jobs, done = sum(len(arm.jobs) for arm in arms), sum(len(arm.rows) for arm in arms)
    hours = sum(row["seconds"] for arm in arms for row in arm.rows) / 3600
    missing = "" if jobs == done else f" {jobs - done} jobs are missing; rows that lack some say so."
    mirrored = sorted({str(row["mirror_axes"]) for arm in arms for row in arm.rows})
    leaked = sum(arm.note.startswith("LEAKED") for arm in arms)
    if leaked:
        missing += f" {leaked} rows are of pretrainings that have seen scored cases; they are marked."
    return f"{done} of {jobs} jobs, {hours:.1f} hours. Mirrored axes: {', '.join(mirrored) or 'unknown'}.{missing}"


def _table(arms: Sequence[Arm]) -> str:
    lines = []
    for row in table_rows(arms):
        cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in shown(row))
        marked = row["dice"] is None or row["note"].startswith("LEAKED")
        lines.append(f"<tr{' class=missing' if marked else ''}>{cells}</tr>")
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading in HEADINGS)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def _encoded(figure: Any, ax: Any) -> str:
    ax.grid(alpha=0.3)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    stream = io.BytesIO()
    figure.savefig(stream, dpi=110)
    return base64.b64encode(stream.getvalue()).decode()


def _titles(arms: Sequence[Arm]) -> dict[str, tuple[str, str]]:
    """Arm -> its colour and marker, the same in every figure."""
    titles = list(dict.fromkeys(arm.title for arm in arms))
    return {title: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, title in enumerate(titles)}


def _few_shot(arms: Sequence[Arm]) -> str:
    figure, ax = _figure(9, 4.2)
    numbers = list(dict.fromkeys(arm.key[1] for arm in arms))
    looks = _titles(arms)
    for index, (title, (colour, marker)) in enumerate(looks.items()):
        found = {arm.key[1]: arm.summaries["dice"] for arm in arms if arm.title == title}
        places = [x + 0.06 * (index - len(looks) / 2) for x in range(len(numbers))]
        known = [found.get(number) for number in numbers]  # a missing one breaks the line
        means = [s.mean if s else math.nan for s in known]
        errors = [[s.mean - s.low if s else 0 for s in known], [s.high - s.mean if s else 0 for s in known]]
        if any(known):
            ax.errorbar(places, means, errors, color=colour, marker=marker, capsize=3, label=title)
    ax.set_xticks(range(len(numbers)), [str(n) for n in numbers])
    ax.set_xlabel("labelled cases")
    ax.set_ylabel("Dice, 95 % interval")
    return _encoded(figure, ax)


def _classes(arms: Sequence[Arm]) -> str:
    names = list(dict.fromkeys(name for arm in arms for name in arm.classes))
    figure, ax = _figure(9, 1.6 + 0.42 * len(names))
    numbers = [arm.key[1] for arm in arms if arm.rows]
    most = "all" if "all" in numbers else max(numbers, default=None)
    for title, (colour, marker) in _titles(arms).items():
        for arm in arms:
            if arm.title == title and arm.key[1] == most:
                points = [(value, names.index(name)) for name, value in arm.classes.items() if value is not None]
                ax.plot(*zip(*points, strict=True), linestyle="", color=colour, marker=marker, label=title)
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.set_xlabel(f"Dice at N = {most}")
    return _encoded(figure, ax)


def _parameters(arms: Sequence[Arm]) -> str:
    figure, ax = _figure(9, 3.6)
    for title, (colour, marker) in _titles(arms).items():
        points = [
            (arm.parameters, arm.summaries["dice"].mean)
            for arm in arms
            if arm.title == title and arm.parameters and arm.summaries["dice"]
        ]
        if points:
            ax.plot(*zip(*points, strict=True), linestyle="", color=colour, marker=marker, label=title)
    ax.set_xscale("log")
    ax.set_xlabel("parameters that learn")
    ax.set_ylabel("Dice")
    return _encoded(figure, ax)
