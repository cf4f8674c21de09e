"""The page of a benchmark: its curves, dots and tables in one file that needs nothing else."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from nnunet_ssl.bench import figures
from nnunet_ssl.bench.cubes import ORIGINAL
from nnunet_ssl.bench.grid import Grid
from nnunet_ssl.bench.published_rows import Published
from nnunet_ssl.bench.published_rows import as_html as published_html
from nnunet_ssl.bench.report import Arm
from nnunet_ssl.bench.specs import Dataset
from nnunet_ssl.bench.svg import Drawing
from nnunet_ssl.bench.tables import HEADINGS, shown, table_rows
from nnunet_ssl.bench.task import load_task

STYLE = """
body { font: 15px/1.5 system-ui, 'DejaVu Sans', sans-serif; max-width: 1180px; margin: 2em auto; padding: 0 1em;
  color: #111; background: #fff; }
h2 { margin-top: 2em; border-bottom: 2px solid #111; }
figure { margin: 1em 0 1.6em; } figure svg { max-width: 100%; height: auto; display: block; }
figcaption { font-size: 13px; color: #444; } figcaption b { color: #111; }
table { border-collapse: collapse; font-size: 12.5px; line-height: 1.35; width: 100%;
  font-variant-numeric: tabular-nums; }
td, th { padding: 3px 6px; border-bottom: 1px solid #ccc; text-align: right; vertical-align: bottom; }
.arm, .note { text-align: left; } .interval, .difference_interval, .time { white-space: nowrap; }
.note { overflow-wrap: anywhere; max-width: 15em; }
.signs { overflow-wrap: anywhere; min-width: 6em; max-width: 10em; }
.grid, .labelled, .jobs { white-space: nowrap; }
tr.first td { border-top: 2px solid #555; } .arm { min-width: 12.5em; }
.missing { color: #8a1c00; font-style: italic; }
.published { border: 1px dashed #555; padding: 0 1em 1em; margin: 1.5em 0; }
.published table { width: auto; } .about { font-size: 13.5px; }
@page { size: A4 landscape; margin: 11mm; } @page upright { size: A4 portrait; margin: 11mm; }
@media print { body { margin: 0; max-width: none; padding: 0; font-size: 10pt; } table { font-size: 8pt; }
  figure.tall { page: upright; } figure.tall svg { max-height: 255mm; } figure svg { max-height: 170mm; }
  figure, tr, .published { break-inside: avoid; } thead { display: table-header-group; }
  h2, h3 { break-after: avoid; } }
"""
TALL = 640  # px of a figure that gets an upright sheet
ABOUT = (
    "Dice: mean over subjects (of their mean over classes), without background, draws averaged. SD: between subjects. "
    "Intervals: 95 %, by bootstrap over draws and subjects, each resampled by itself. NSD: surface Dice at the "
    "tolerance named above each table. Minus scratch: paired with the same network trained from random weights under "
    "the same protocol, on the same draws and subjects. Draws: the sign of every draw's difference; five alone "
    "cannot reach p < .05. "
    "p: Wilcoxon signed-rank over subjects, draws averaged first, corrected by Holm over all rows of the page on one "
    "grid. Grid: of the voxels on which Dice is counted. Trainable: parameters that learn. Time a job: training, "
    "prediction and scoring. Jobs: finished ones, of those that the file asks for."
)


def figures_of(grid: Grid, arms: Sequence[Arm], means: Sequence[Mapping[str, Any]]) -> dict[str, Drawing]:
    """File name -> figure: three of every dataset with results, and the mean over tasks where there are several."""
    looks, found = figures.looks_for(arms), {}
    of_mean = [row for row in means if row["grid"] == ORIGINAL and row["whole"]]
    if of_mean:
        points: dict[str, dict[Any, figures.Point]] = {}
        for row in of_mean:
            points.setdefault(row["arm"], {})[row["labelled"]] = (row["dice"], row["low"], row["high"])
        numbers = list(dict.fromkeys(row["labelled"] for row in means))
        found["few_shot_mean"] = figures.few_shot(points, numbers, looks, "Dice by labelled cases, mean over all tasks")
    for dataset in grid.datasets:
        own = [arm for arm in figures.drawn(arms) if arm.key[0] == dataset.id]
        if not any(arm.rows for arm in own):
            continue
        curves, where = figures.by_number(own), f"dataset {dataset.id}"
        found[f"few_shot_{dataset.id}"] = figures.few_shot(curves, dataset.labelled, looks,
                                                           f"Dice by labelled cases, {where}")  # fmt: skip
        found[f"classes_{dataset.id}"] = figures.dots(own, looks, f"Dice by class, {where}")
        found[f"parameters_{dataset.id}"] = figures.parameters(own, looks, f"Dice by trainable parameters, {where}")
    return found


def as_html(
    grid: Grid,
    arms: Sequence[Arm],
    means: Sequence[Mapping[str, Any]],
    drawings: Mapping[str, Drawing],
    published: Sequence[Published],
) -> str:
    """The whole page."""
    parts = [f"<h1>{html.escape(grid.name)}</h1>", f"<p>{html.escape(_facts(arms))}</p>"]
    if means:
        parts.append("<h2>Mean over all tasks</h2><p>Every class of every dataset counts once.</p>")
        parts += [_figure(drawings[name], _partial(means)) for name in ("few_shot_mean",) if name in drawings]
        parts.append(_table(means))
    for dataset in grid.datasets:
        parts.append(f"<h2>{html.escape(_title(dataset))}</h2>")
        own = [arm for arm in arms if arm.key[0] == dataset.id]
        for kind in ("few_shot", "classes", "parameters"):
            if figure := drawings.get(f"{kind}_{dataset.id}"):
                parts.append(_figure(figure, _lacking(own)))
        parts.append(f"<p>{html.escape(_scored(dataset, own))}</p>{_table(table_rows(own))}")
        known = load_task(dataset.task).name if dataset.task else None
        parts += [published_html(one) for one in published if one.task == known]
    parts.append(f'<h2>How to read this</h2><p class="about">{html.escape(ABOUT)}</p>')
    parts += [f'<p class="about">{html.escape(line)}</p>' for line in _protocols(grid)]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width"><title>{html.escape(grid.name)}</title><style>{STYLE}</style></head>'
        f"<body>{''.join(parts)}</body></html>\n"
    )


def _title(dataset: Dataset) -> str:
    return f"Dataset {dataset.id}" + (f", {dataset.task}" if dataset.task else "")


def _scored(dataset: Dataset, arms: Sequence[Arm]) -> str:
    subjects = sorted({len(arm.cube.subjects) for arm in arms if arm.cube is not None})
    number = " to ".join(dict.fromkeys(map(str, (subjects or [0])[:1] + subjects[-1:])))
    return f"{number} scored subjects; tolerance of the NSD {dataset.tolerance_mm:g} mm."


def _facts(arms: Sequence[Arm]) -> str:
    own = figures.drawn(arms)
    jobs, done = sum(len(arm.jobs) for arm in own), sum(len(arm.rows) for arm in own)
    hours = sum(arm.seconds or 0.0 for arm in own) / 3600
    missing = "" if jobs == done else f" Missing jobs: {jobs - done}; rows that lack some say so."
    mirrored = sorted({str(row["mirror_axes"] or "none") for arm in own for row in arm.rows})
    leaked = sum(arm.note.startswith("LEAKED") for arm in own)
    if leaked:
        missing += f" Rows of pretrainings that have seen scored cases: {leaked}; they are marked."
    return f"{done} of {jobs} jobs, {hours:.1f} hours. Mirrored axes: {', '.join(mirrored) or 'unknown'}.{missing}"


def _protocols(grid: Grid) -> list[str]:
    """What the protocols of evaluation other than nnU-Net's are, and where they differ from their source."""
    presets = {p.preset.name: p.preset for p in grid.protocols if p.preset.grid}
    return [
        f"Protocol {one.name}: {one.title} ({one.source}). Here: {'; '.join(one.deviations)}. Scored on the original "
        f"grid, and on one of {one.grid}, to which the masks of prediction and reference are resampled by nearest "
        "neighbour."
        for one in presets.values()
    ]


def _lacking(arms: Sequence[Arm]) -> str:
    """What a figure does not show, and what it shows of unequal sets of jobs."""
    nothing = [f"{arm.title}, N = {arm.key[1]}" for arm in figures.drawn(arms) if not arm.rows]
    partly = [f"{arm.title}, N = {arm.key[1]} ({len(arm.rows)} of {len(arm.jobs)} jobs)"
              for arm in figures.drawn(arms) if 0 < len(arm.rows) < len(arm.jobs)]  # fmt: skip
    parts = [f"<b>{words}</b> {html.escape('; '.join(names))}." for words, names in
             (("Missing:", nothing), ("Incomplete:", partly)) if names]  # fmt: skip
    return " ".join(parts)


def _partial(means: Sequence[Mapping[str, Any]]) -> str:
    """The means that are not drawn, as they are over other tasks than the rest."""
    names = [f"{row['arm']}, N = {row['labelled']}" for row in means if row["grid"] == ORIGINAL and not row["whole"]]
    words = "Not drawn, as the mean is not over all datasets:"
    return f"<b>{words}</b> {html.escape('; '.join(names))}." if names else ""


def _figure(figure: Drawing, caption: str) -> str:
    below = f"<figcaption>{caption}</figcaption>" if caption else ""
    tall = ' class="tall"' if figure.height > TALL else ""
    return f"<figure{tall}>{figure.inline}{below}</figure>"


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Without columns that say the same in all rows of a section."""
    one_grid = {row["grid"] for row in rows} == {ORIGINAL}
    left_out = {"dataset": True, "grid": one_grid, "note": not any(row["note"] for row in rows)}
    left_out |= {key: all(row[key] is None for row in rows) for key in ("sd", "nsd", "p_holm")}
    columns = [key for key in HEADINGS if not left_out.get(key, False)]
    lines, before = [], None
    for row in rows:
        cells = shown(row)
        marked = row["dice"] is None or row["note"].startswith("LEAKED")
        names = " ".join(["missing"] * marked + ["first"] * (row["labelled"] != before))
        before = row["labelled"]
        content = "".join(f'<td class="{key}">{html.escape(cells[key])}</td>' for key in columns)
        lines.append(f'<tr class="{names}">{content}</tr>')
    head = "".join(f'<th class="{key}">{html.escape(HEADINGS[key])}</th>' for key in columns)
    grids = "<p>Scored on the original grid of the images.</p>" if one_grid else ""
    return f"{grids}<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
