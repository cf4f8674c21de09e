"""Tables of arms and of single scores: CSV, Markdown, LaTeX. What is missing shows as missing."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nnunet_ssl.bench.leakage import mark_of
from nnunet_ssl.bench.report import Arm

COLUMNS = (
    "dataset",
    "labelled",
    "arm",
    "dice",
    "sd_draws",
    "low",
    "high",
    "nsd",
    "difference",
    "difference_low",
    "difference_high",
    "signs",
    "p",
    "p_holm",
    "parameters",
    "seconds",
    "jobs",
    "note",
)


def table_rows(arms: Iterable[Arm]) -> list[dict[str, Any]]:
    """One row an arm, in COLUMNS; None where there is nothing to say."""
    rows = []
    for arm in arms:
        dice, nsd, with_twin = arm.summaries["dice"], arm.summaries["nsd"], arm.comparison
        values = [
            arm.key[0],
            arm.key[1],
            arm.title,
            dice and dice.mean,
            dice and dice.sd_draws,
            dice and dice.low,
            dice and dice.high,
            nsd and nsd.mean,
            with_twin and with_twin.difference,
            with_twin and with_twin.low,
            with_twin and with_twin.high,
            with_twin and with_twin.signs,
            with_twin and with_twin.p,
            arm.p_holm,
            arm.parameters,
            sum(row["seconds"] for row in arm.rows) if arm.rows else None,
            len(arm.rows),
            arm.note,
        ]
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    return rows


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Comma-separated, with a header; nothing where there is None."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def subject_rows(arms: Iterable[Arm]) -> list[dict[str, Any]]:
    """Every single score; ``leakage``: "leaked" for a subject that the pretraining has seen, "unchecked", or empty."""
    return [
        {**row["job"], "subject": subject, "class": name, **scores, "leakage": mark_of(row, subject)}
        for arm in arms
        for row in arm.rows
        for subject, classes in row["scores"].items()
        for name, scores in classes.items()
    ]


HEADINGS = (
    "data",
    "N",
    "arm",
    "Dice",
    "95 % interval",
    "NSD",
    "minus scratch",
    "95 % interval",
    "draws",
    "p (Holm)",
    "parameters",
    "",
)


def shown(row: Mapping[str, Any]) -> list[str]:
    """A row as text, under HEADINGS; a missing number is "missing"."""

    def number(value: Any, form: str = ".3f") -> str:
        return "missing" if value is None else format(value, form)

    def interval(low: Any, high: Any, form: str) -> str:
        return "" if low is None else f"{low:{form}} to {high:{form}}"

    twin = row["difference"] is not None
    return [
        str(row["dataset"]),
        str(row["labelled"]),
        row["arm"],
        number(row["dice"]),
        interval(row["low"], row["high"], ".3f"),
        "" if row["nsd"] is None else number(row["nsd"]),
        number(row["difference"], "+.3f") if twin else "",
        interval(row["difference_low"], row["difference_high"], "+.3f"),
        row["signs"] or "",
        number(row["p_holm"], ".2g") if twin and row["p_holm"] is not None else "",
        "" if row["parameters"] is None else f"{row['parameters']:,}",
        row["note"],
    ]


def as_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table for a README."""
    lines = ["| " + " | ".join(HEADINGS) + " |", "|" + "---|" * len(HEADINGS)]
    return "\n".join([*lines, *("| " + " | ".join(shown(row)) + " |" for row in rows)]) + "\n"


def as_latex(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table for a paper (booktabs)."""

    def escape(text: str) -> str:
        return "".join("\\" + c if c in "%&_#$" else c for c in text)

    lines = [" & ".join(escape(cell) for cell in line) + r" \\" for line in (HEADINGS, *map(shown, rows))]
    body = "\n".join([lines[0], r"\midrule", *lines[1:]])
    return f"\\begin{{tabular}}{{rrlrlrrllrrl}}\n\\toprule\n{body}\n\\bottomrule\n\\end{{tabular}}\n"
