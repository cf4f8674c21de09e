"""Tables of arms and of single scores: CSV, Markdown, LaTeX. What is missing shows as missing."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from nnunet_ssl.bench.cubes import METRICS, Cube, scores_of
from nnunet_ssl.bench.marks import mark_of
from nnunet_ssl.bench.report import Arm, Target
from nnunet_ssl.bench.statistics import Comparison, Scores, Summary, mean_of


def row_of(arm: Arm) -> dict[str, Any]:
    """One arm as a row; None where there is nothing to say. seconds: wall time of all its jobs together."""
    return {
        "dataset": arm.key[0],
        "labelled": arm.key[1],
        "arm": arm.title,
        "protocol": arm.jobs[0].protocol.preset.name,
        "grid": arm.key[4],
        **_scores(arm.summaries, arm.comparison, arm.p_holm),
        "parameters": arm.parameters,
        "seconds": arm.seconds,
        "jobs": len(arm.rows),
        "asked": len(arm.jobs),
        "note": arm.note,
        "whole": len(arm.rows) == len(arm.jobs),
    }


def _scores(
    summaries: Mapping[str, Summary | None], comparison: Comparison | None, p_holm: float | None
) -> dict[str, Any]:
    dice, nsd = summaries.get("dice"), summaries.get("nsd")
    return {
        "dice": dice and dice.mean,
        "sd": dice and dice.sd,
        "sd_draws": dice and dice.sd_draws,
        "low": dice and dice.low,
        "high": dice and dice.high,
        "nsd": nsd and nsd.mean,
        "draws": dice and dice.draws,
        "subjects": dice and dice.subjects,
        "difference": comparison and comparison.difference,
        "difference_low": comparison and comparison.low,
        "difference_high": comparison and comparison.high,
        "signs": comparison and comparison.signs,
        "p": comparison and comparison.p,
        "p_holm": p_holm,
    }


def table_rows(arms: Iterable[Arm]) -> list[dict[str, Any]]:
    """One row an arm."""
    return [row_of(arm) for arm in arms]


def _place_of(arm: Arm) -> dict[str, Any]:
    return {"dataset": arm.key[0], "labelled": arm.key[1], "arm": arm.title, "grid": arm.key[4]}


def target_rows(arms: Iterable[Arm]) -> list[dict[str, Any]]:
    """One row a class of an arm; one without class for an arm that has no result."""
    rows = []
    for arm in arms:
        where = _place_of(arm)
        for target in arm.targets or [Target("", {})]:
            rows.append({**where, "class": target.name, **_scores(target.summaries, target.comparison, target.p_holm),
                         "note": arm.note})  # fmt: skip
    return rows


def draw_rows(arms: Iterable[Arm]) -> list[dict[str, Any]]:
    """One row a draw of an arm: means over subjects of their mean over classes; the difference to scratch on the
    subjects that both have, None where there is no such draw.
    """
    rows = []
    for arm in arms:
        if arm.cube is None:
            continue
        where = _place_of(arm)
        scores = {metric: _mean_of_draws(arm.cube, arm.cube.table(metric)) for metric in METRICS}
        gains: dict[int, float | None] = {}
        if arm.twin is not None and arm.twin.cube is not None:
            own, theirs, _ = arm.cube.shared(arm.twin.cube)
            gains = _mean_of_draws(own, own.table("dice") - theirs.table("dice"))
        rows += [{**where, "draw": draw, **{metric: scores[metric][draw] for metric in METRICS},
                  "difference": gains.get(draw)} for draw in arm.cube.draws]  # fmt: skip
    return rows


def _mean_of_draws(cube: Cube, table: Scores) -> dict[int, float | None]:
    means = zip(cube.draws, table, strict=True)
    return {draw: mean_of(row[None]) if np.isfinite(row).any() else None for draw, row in means}


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Comma-separated, with a header; nothing where there is None."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def subjects_csv(arms: Iterable[Arm]) -> str:
    """Every single score; ``leakage``: "leaked" for a subject that the pretraining has seen, "unchecked", or empty."""
    keys = ("dataset", "pretraining", "protocol", "labelled", "draw", "fold")
    lines = [",".join([*keys, "grid", "subject", "class", "dice", "nsd", "leakage"])]
    for arm in arms:  # hundreds of thousands of lines: written out, half the time of csv.writer
        for row in arm.rows:
            job = ",".join(_quoted(str(row["job"][key])) for key in keys)
            for subject, classes in scores_of(row, arm.key[4]).items():
                start, mark = f"{job},{_quoted(arm.key[4])},{_quoted(subject)}", mark_of(row, subject)
                lines += [f"{start},{_quoted(name)},{_empty(s['dice'])},{_empty(s['nsd'])},{mark}"
                          for name, s in classes.items()]  # fmt: skip
    return "\n".join(lines) + "\n"


@lru_cache(maxsize=4096)
def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if any(c in text for c in ',"\r\n') else text


def _empty(value: float | None) -> float | str:
    return "" if value is None else value


HEADINGS = {
    "dataset": "data",
    "labelled": "N",
    "arm": "arm",
    "grid": "grid",
    "dice": "Dice",
    "sd": "SD",
    "interval": "95 % interval",
    "nsd": "NSD",
    "difference": "minus scratch",
    "difference_interval": "95 % interval",
    "signs": "draws",
    "p_holm": "p (Holm)",
    "parameters": "trainable",
    "time": "time a job",
    "jobs": "jobs",
    "note": "note",
}


def shown(row: Mapping[str, Any]) -> dict[str, str]:
    """A row as text, under the keys of HEADINGS; a missing mean is "missing"."""

    def number(key: str, form: str = ".3f", nothing: str = "") -> str:
        return nothing if row[key] is None else format(row[key], form)

    def interval(low: str, high: str, form: str) -> str:
        return "" if row[low] is None else f"{row[low]:{form}} to {row[high]:{form}}"

    return {
        "dataset": str(row["dataset"]),
        "labelled": str(row["labelled"]),
        "arm": row["arm"],
        "grid": row["grid"],
        "dice": number("dice", nothing="missing"),
        "sd": number("sd"),
        "interval": interval("low", "high", ".3f"),
        "nsd": number("nsd"),
        "difference": number("difference", "+.3f"),
        "difference_interval": interval("difference_low", "difference_high", "+.3f"),
        "signs": row["signs"] or "",
        "p_holm": number("p_holm", ".2g"),
        "parameters": number("parameters", ","),
        "time": duration(row["seconds"] / row["jobs"]) if row["jobs"] else "",
        "jobs": str(row["jobs"]) if row["jobs"] == row["asked"] else f"{row['jobs']} of {row['asked']}",
        "note": row["note"],
    }


def duration(seconds: float) -> str:
    """Wall time in the unit that suits it."""
    for unit, length in (("h", 3600.0), ("min", 60.0)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def as_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table for a README."""
    lines = ["| " + " | ".join(HEADINGS.values()) + " |", "|" + "---|" * len(HEADINGS)]
    return "\n".join([*lines, *("| " + " | ".join(shown(row).values()) + " |" for row in rows)]) + "\n"


def escaped(text: str) -> str:
    """Text for LaTeX."""
    return "".join("\\" + c if c in "%&_#$" else c for c in text)


def as_latex(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table for a paper (booktabs)."""
    content = [list(HEADINGS.values()), *(list(shown(row).values()) for row in rows)]
    lines = [" & ".join(escaped(cell) for cell in line) + r" \\" for line in content]
    body = "\n".join([lines[0], r"\midrule", *lines[1:]])
    return f"\\begin{{tabular}}{{rrllrrlrrllrrrll}}\n\\toprule\n{body}\n\\bottomrule\n\\end{{tabular}}\n"
