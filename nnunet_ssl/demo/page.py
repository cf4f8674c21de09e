"""One HTML file with everything in it: the table, the pictures, the commands and how long they took."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1c2733; }
h1 { font-size: 1.7rem; margin-bottom: .2rem } h2 { font-size: 1.2rem; margin-top: 2.2rem }
table { border-collapse: collapse; width: 100% } th, td { padding: .35rem .6rem; text-align: right }
th:first-child, td:first-child { text-align: left } thead { border-bottom: 2px solid #33506b }
tbody tr:nth-child(odd) { background: #f1f5f8 } td small { color: #5b6b7a; display: block }
img { max-width: 100%; height: auto; display: block; margin: .6rem 0 }
pre { background: #f1f5f8; padding: .8rem; overflow-x: auto; font-size: .8rem } .best { font-weight: 700 }
figcaption { color: #5b6b7a; font-size: .9rem } figure { margin: 1rem 0 }
"""
CAPTIONS = {
    "predictions": ("What they predict", "A test phantom: image, true labels, and what each training makes of it."),
    "features": ("What the network sees", "Dense features of volumes, their three main components as red, green, "
                 "blue. The same colour in two bodies: the same place, says the network. It never saw a label."),
    "similarity": ("The same place in another body", "Similarity of every voxel to one query voxel, in its own volume "
                   "and in another subject's."),
    "progress": ("The pretraining", "retrieval@1 is the share of voxels that find their partner in the other view "
                 "among all candidates; an effective rank far above 1 means no collapse."),
}  # fmt: skip


def write(folder: Path, results: Any, steps: Sequence[Any], pictures: Mapping[str, Sequence[Path]]) -> Path:
    """Write ``index.html`` into ``folder`` and return its path. ``results``, ``steps``: see story.py and shell.py."""
    parts = [
        "<!doctype html>", '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>nnunet_ssl demo</title><style>{STYLE}</style></head><body>",
        "<h1>From unlabelled scans to a segmentation</h1>", introduction(results), table(results),
    ]  # fmt: skip
    for name, (title, caption) in CAPTIONS.items():
        images = "".join(embedded(path, title) for path in pictures.get(name, ()) if path.is_file())
        if images:
            parts.append(f"<h2>{title}</h2><figure>{images}<figcaption>{html.escape(caption)}</figcaption></figure>")
    parts += [commands(steps), "</body></html>\n"]
    target = folder / "index.html"
    target.write_text("\n".join(parts), encoding="utf-8")
    return target


def introduction(results: Any) -> str:
    """What was done, in two sentences, and the pretraining's last numbers."""
    size = results.size
    last = results.metrics[-1] if results.metrics else {}
    steps = size.epochs * size.epoch_steps
    text = (
        f"A small U-Net was pretrained for {steps} steps on {size.unlabelled} phantom CTs without labels, then adapted "
        f"with the labels of {size.labelled} and tested on {size.tests} others, all by nnU-Net's own commands, "
        f"in {results.seconds / 60:.1f} minutes."
    )
    known = [f"{name.replace('_', ' ')} {last[name]:.3g}" for name in ("retrieval_at_1", "effective_rank")
             if isinstance(last.get(name), int | float)]  # fmt: skip
    text += f" At the end of the pretraining: {', '.join(known)}." if known else ""
    if steps < 100:
        text += " This was the shortest form: nothing had time to learn, and the numbers only show that it runs."
    return f"<p>{html.escape(text)}</p>"


def table(results: Any) -> str:
    """Dice of every arm: mean, and of each organ."""
    best = {key: max((dice[key] for dice in results.dice.values() if not math.isnan(dice[key])), default=math.nan)
            for key in ("mean", *results.organs)}  # fmt: skip
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("mean", *results.organs.values()))
    rows = []
    for arm in results.size.arms:
        dice = results.dice[arm.name]
        cells = "".join(_cell(dice[key], dice[key] == best[key]) for key in ("mean", *results.organs))
        rows.append(f"<tr><td>{arm.title}<small>{html.escape(arm.explanation)}</small></td>{cells}</tr>")
    return (f"<h2>Dice on the test phantoms</h2><table><thead><tr><th></th>{head}</tr></thead>"
            f"<tbody>{''.join(rows)}</tbody></table>")  # fmt: skip


def text_table(results: Any) -> str:
    """The same for a terminal."""
    names = ["mean", *results.organs.values()]
    widths = [max(len(name), 6) for name in names]
    lines = [" " * 16 + "  ".join(name.rjust(width) for name, width in zip(names, widths, strict=True))]
    for arm in results.size.arms:
        dice = [results.dice[arm.name][key] for key in ("mean", *results.organs)]
        cells = (("-" if math.isnan(v) else f"{v:.3f}").rjust(width) for v, width in zip(dice, widths, strict=True))
        lines.append(arm.title.ljust(16) + "  ".join(cells))
    return "\n".join(lines)


def commands(steps: Sequence[Any]) -> str:
    """Every command as it is typed, with its seconds."""
    lines = "\n".join(f"{step.seconds:5.0f} s  {html.escape(step.command)}" for step in steps)
    return f"<h2>The commands</h2><pre>{lines}</pre>"


def embedded(path: Path, title: str) -> str:
    """A PNG inside the page."""
    content = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<img alt="{html.escape(title)}" src="data:image/png;base64,{content}">'


def _cell(value: float, best: bool) -> str:
    text = "-" if math.isnan(value) else f"{value:.3f}"
    return f'<td class="best">{text}</td>' if best else f"<td>{text}</td>"
