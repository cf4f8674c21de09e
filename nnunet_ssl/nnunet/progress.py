"""What one sees of a running pretraining: a line an epoch, metrics.jsonl, progress.png, a warning on collapse."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunet_ssl.nnunet.files import replacing, write_text

Metrics = dict[str, Any]

RETRIEVAL = ["retrieval_at_1", "ema_retrieval_at_1", "retrieval_at_1_raw", "retrieval_chance"]
LABELS = {  # of curves whose names say too little
    "retrieval_at_1": "embeddings",
    "ema_retrieval_at_1": "embeddings, running mean",
    "retrieval_at_1_raw": "vectors before the projector",
    "retrieval_chance": "chance",
    "effective_rank": "embeddings",
    "effective_rank_max": "embeddings, at most",
    "effective_rank_raw": "vectors before the projector",
}
PANELS: list[tuple[str, list[str], bool]] = [
    ("loss", ["train_loss", "val_loss"], False),
    ("loss terms", [], False),  # filled with what the criterion reports
    ("same-voxel retrieval@1", RETRIEVAL, False),
    ("alignment (0: views agree) and uniformity (lower: spread)", ["alignment", "uniformity"], False),
    ("effective rank, and how high it can be", ["effective_rank", "effective_rank_max", "effective_rank_raw"], False),
    ("standard deviation per level (0 finest)", ["level_std"], True),
    ("online probe Dice", ["probe_dice"], False),
    ("learning rate", ["lr"], False),
    ("seconds an epoch", ["seconds"], False),
]


def record(logger: Any, metrics: Metrics, epoch: int) -> None:
    """Hand an epoch's numbers to nnU-Net's logger: every key one more list, and W&B where it is switched on."""
    logs = logger.local_logger.my_fantastic_logging
    for key, value in metrics.items():
        column = logs.setdefault(key, [])
        column.extend([None] * (epoch - len(column)))  # a key that first appears now
        logger.local_logger.log(key, value, epoch)
        for other in logger.loggers:
            values = {f"{key}/{i}": v for i, v in enumerate(value)} if isinstance(value, list) else {key: value}
            for name, number in values.items():
                if number is not None:
                    other.log(name, number, epoch)


def history(logger: Any) -> list[Metrics]:
    """The logged epochs, one dict each: what metrics.jsonl holds."""
    logs = logger.local_logger.my_fantastic_logging
    epochs = len(logs.get("epoch", []))
    keys = [key for key, column in logs.items() if len(column) == epochs]
    order = sorted(keys, key=lambda key: key != "epoch")  # stable: epoch first, the rest as logged
    return [{key: logs[key][i] for key in order} for i in range(epochs)]


def write_metrics(folder: str, rows: Sequence[Metrics]) -> None:
    """metrics.jsonl: one object an epoch. Written whole, so that epochs lost by a kill do not stay in it."""
    lines = [json.dumps({key: json_value(value) for key, value in row.items()}) + "\n" for row in rows]
    write_text(Path(folder) / "metrics.jsonl", "".join(lines))


def json_value(value: Any) -> Any:
    """``value`` with NaN and infinity as null, which JSON can say."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return [json_value(v) for v in value] if isinstance(value, list) else value


def epoch_line(metrics: Metrics) -> str:
    """One line for the log."""
    parts = [
        f"train_loss {_number(metrics.get('train_loss'))}",
        f"val_loss {_number(metrics.get('val_loss'))}",
        f"retrieval@1 {_number(metrics.get('retrieval_at_1'), 3)}",
        f"chance {_number(metrics.get('retrieval_chance'), 4)}",
        f"rank {_number(metrics.get('effective_rank'), 1)} of {_number(metrics.get('effective_rank_max'), 0)}",
    ]
    if metrics.get("probe_dice") is not None:
        parts.append(f"probe Dice {_number(metrics['probe_dice'], 3)}")
    parts += [f"lr {metrics['lr']:.3g}", f"{metrics['seconds']:.1f} s"]
    return ", ".join(parts)


def _number(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def collapse_warning(metrics: Metrics, bound: float) -> str | None:
    """What to say when the embeddings span too few dimensions, else None."""
    rank = metrics.get("effective_rank")
    if rank is None or rank >= bound:
        return None
    return (
        f"WARNING: the effective rank of the embeddings is {rank:.2f}, under ssl.min_effective_rank = {bound:g}: they "
        "may be collapsing. If it stays so, try a lower initial_lr, a warm-up, or more voxels_per_pair."
    )


def plot(folder: str, rows: Sequence[Metrics]) -> None:
    """progress.png: one panel a topic, epochs on x."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    if not rows:
        return
    figure = Figure(figsize=(18, 13))
    FigureCanvasAgg(figure)
    axes = figure.subplots(3, 3).ravel()
    for ax, (title, keys, logarithmic) in zip(axes, PANELS, strict=True):
        keys = keys or [key for key in rows[0] if key.startswith("term_")]
        for label, values in _curves(rows, keys):
            points = [(row["epoch"], v) for row, v in zip(rows, values, strict=True) if not math.isnan(v)]
            if points:
                ax.plot(*zip(*points, strict=True), label=label, marker="." if len(points) < 30 else None)
        ax.set_title(title)
        ax.set_xlabel("epoch")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_xlim(rows[0]["epoch"] - 0.5, rows[-1]["epoch"] + 0.5)
        if logarithmic and ax.lines:
            ax.set_yscale("log")
        if ax.lines:
            ax.legend(fontsize=8, framealpha=0.5)
        else:
            hint = "not measured" + (" (see ssl.probe)" if keys == ["probe_dice"] else "")
            ax.text(0.5, 0.5, hint, ha="center", va="center", transform=ax.transAxes)
    figure.subplots_adjust(0.05, 0.05, 0.98, 0.96, 0.16, 0.28)
    with replacing(Path(folder) / "progress.png") as beside:
        figure.savefig(beside, dpi=70)


def _curves(rows: Sequence[Metrics], keys: Sequence[str]) -> list[tuple[str, list[float]]]:
    """(label, one value an epoch) of each key; a list-valued key gives a curve an entry; absent values are NaN."""
    curves = []
    for key in keys:
        column = [row.get(key) for row in rows]
        known = [value for value in column if value is not None]
        if not known:
            continue
        if isinstance(known[0], list):
            for i in range(len(known[0])):
                curves.append((f"{key} {i}", [math.nan if v is None else v[i] for v in column]))
        else:
            curves.append((LABELS.get(key, key), [math.nan if v is None else v for v in column]))
    return curves
