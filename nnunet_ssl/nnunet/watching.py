"""What is measured on the held-back pairs, and how measurements of several batches and processes become one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from nnunet_ssl import diagnostics

CANDIDATES = 1024
EMA = 0.9  # as nnU-Net smooths its pseudo Dice

Metrics = dict[str, Any]


def measure(embeddings: Any, valid: Tensor, cases: Sequence[str], channels: Sequence[int]) -> Metrics:
    """Signs of learning and of collapse: on up to 1,024 points of each volume of the batch, then their mean.

    valid (B, N) tells which pair each of the M embeddings belongs to; cases: the volume of each pair. Numbers on
    projected vectors have plain names, those on raw voxel vectors end in ``_raw``.
    """
    pair_of_row = valid.nonzero()[:, 0]
    rows = [_rows_of(volume, pair_of_row, cases) for volume in dict.fromkeys(cases)]
    some = [own for own in rows if len(own) > 1] or rows[:1]  # a single point is always found
    return average([_signs(embeddings, own, channels) for own in some])


def _signs(embeddings: Any, rows: Tensor, channels: Sequence[int]) -> Metrics:
    z_a, z_b, raw_a, raw_b = (
        v[rows].detach().float() for v in (embeddings.z_a, embeddings.z_b, embeddings.raw_a, embeddings.raw_b)
    )
    return {
        "retrieval_at_1": diagnostics.retrieval_at_1(z_a, z_b),
        "retrieval_at_1_raw": diagnostics.retrieval_at_1(raw_a, raw_b),
        "retrieval_chance": 1.0 / len(rows),
        "alignment": diagnostics.alignment(z_a, z_b),
        "uniformity": diagnostics.uniformity(z_a),
        "effective_rank": diagnostics.effective_rank(z_a),
        "effective_rank_max": float(min(z_a.shape[1], len(rows) - 1)),
        "effective_rank_raw": diagnostics.effective_rank(raw_a),
        "level_std": diagnostics.level_std(raw_a, channels),
    }


def _rows_of(volume: str, pair_of_row: Tensor, cases: Sequence[str]) -> Tensor:
    """Up to CANDIDATES rows of the flat valid points, evenly spread over the pairs of a volume."""
    same = torch.tensor([case == volume for case in cases], device=pair_of_row.device)
    rows = same[pair_of_row].nonzero()[:, 0]
    if len(rows) > CANDIDATES:
        rows = rows[torch.linspace(0, len(rows) - 1, CANDIDATES, device=rows.device).round().long()]
    return rows


def average(outputs: Sequence[Mapping[str, Any]]) -> Metrics:
    """Mean of every key over ``outputs`` (numbers, or lists of numbers of equal length); {} for none."""
    if not outputs:
        return {}
    means: Metrics = {}
    for key, first in outputs[0].items():
        values = [output[key] for output in outputs]
        if isinstance(first, list):
            means[key] = [math.fsum(column) / len(values) for column in zip(*values, strict=True)]
        else:
            means[key] = math.fsum(values) / len(values)
    return means


def gather_objects(value: Any) -> list[Any]:
    """``value`` of every process, in the order of ranks."""
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    everywhere: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, value)
    return everywhere


def smoothed(before: float | None, now: float | None) -> float | None:
    """Exponential moving average; an absent or undefined value leaves it as it was."""
    if now is None or not math.isfinite(now):
        return before
    return now if before is None else EMA * before + (1 - EMA) * now
