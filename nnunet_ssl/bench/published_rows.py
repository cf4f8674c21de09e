"""What papers published on a task, for the reader to look at beside a grid's own rows: never mixed with them."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nnunet_ssl.bench.grid import Grid
from nnunet_ssl.bench.presets import load_preset, preset_names
from nnunet_ssl.bench.task import load_task
from nnunet_ssl.nnunet.files import read_shipped, shipped

FOLDER = "nnunet_ssl.bench.published"
HEADINGS = ("published", "N", "Dice", "minus its own scratch", "trainable")


@dataclass(frozen=True)
class Published:
    """Figures of one paper on one task. protocol: the paper's, by the name of a preset where there is one; conditions:
    under which they were obtained; spread: what the ± is, None where there is none. rows: arm, labelled, and dice with
    its spread or difference.
    """

    task: str
    paper: str
    protocol: str
    conditions: str
    spread: str | None
    rows: Sequence[Mapping[str, Any]]

    def cells(self) -> list[list[str]]:
        """The rows as text, under HEADINGS."""
        return [
            [
                row["arm"],
                str(row["labelled"]),
                f"{row['dice']:.2f} ± {row['spread']:.2f}" if row.get("dice") is not None else "",
                f"{row['difference']:+.2f}" if row.get("difference") is not None else "",
                f"{row['parameters']:,}" if row.get("parameters") else "",
            ]
            for row in self.rows
        ]

    def about(self) -> str:
        """Where they are from and under which protocol."""
        named = f"the protocol {self.protocol}" if self.protocol in preset_names() else f"protocol: {self.protocol}"
        spread = f" ±: {self.spread}." if self.spread else ""
        same = f" ({load_preset(self.protocol).title})" if self.protocol in preset_names() else ""
        return (
            f"Published, not computed here: {self.paper}; {named}{same}; {self.conditions}.{spread} Other data, "
            "networks and budgets: not a comparison with the rows of this grid."
        )


def all_published() -> list[Published]:
    """Every JSON of ``bench/published``."""
    return [Published(**read_shipped(FOLDER, name)) for name in shipped(FOLDER)]


def published_for(grid: Grid) -> list[Published]:
    """Those on the tasks that the datasets of a grid name (``task = "BTCV"``)."""
    tasks = {load_task(dataset.task).name for dataset in grid.datasets if dataset.task}
    return [one for one in all_published() if one.task in tasks]


def as_markdown(found: Sequence[Published]) -> str:
    """Tables of their own."""
    parts = []
    for one in found:
        lines = ["| " + " | ".join(HEADINGS) + " |", "|" + "---|" * len(HEADINGS)]
        lines += ["| " + " | ".join(cells) + " |" for cells in one.cells()]
        parts.append(f"\n{one.task}. {one.about()}\n\n" + "\n".join(lines) + "\n")
    return "".join(parts)


def as_html(one: Published) -> str:
    """A table of its own, in a frame that says that it is published."""
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading in HEADINGS)
    rows = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in cells) + "</tr>" for cells in one.cells())
    return (
        f'<div class="published"><p>{html.escape(one.about())}</p>'
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )
