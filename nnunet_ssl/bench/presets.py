"""Protocols of evaluation that a grid names: ``protocol = "vox2vec"``. A new one is a JSON in ``bench/protocols``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from nnunet_ssl.errors import UserError, did_you_mean
from nnunet_ssl.nnunet.files import read_shipped, shipped

FOLDER = "nnunet_ssl.bench.protocols"
DEFAULT = "nnunet"


@dataclass(frozen=True)
class Preset:
    """What a protocol of evaluation sets, under everything that a grid says itself.

    trainers: the kinds of ``[[protocols]]`` that it is defined for. settings: of the ``ssl`` block; plan: of the
    configuration around it. grid_mm: spacing (axial, coronal, sagittal direction; mm) on which it is scored beside the
    original grid, or None. deviations: where stock nnU-Net does otherwise than the source.
    """

    name: str
    title: str
    source: str
    trainers: Sequence[str]
    settings: Mapping[str, Any]
    plan: Mapping[str, Any]
    grid_mm: Sequence[float] | None
    deviations: Sequence[str]

    @property
    def grid(self) -> str | None:
        """What tables call the further grid, in plane first: ``1 x 1 x 2 mm``."""
        return grid_name(self.grid_mm) if self.grid_mm else None


def grid_name(spacing_mm: Sequence[float]) -> str:
    """(axial, coronal, sagittal) mm -> ``1 x 1 x 2 mm``, as papers write it: x, y, z."""
    return " x ".join(f"{s:g}" for s in reversed(spacing_mm)) + " mm"


def preset_names() -> list[str]:
    """All protocols of evaluation."""
    return shipped(FOLDER)


@cache
def load_preset(name: str) -> Preset:
    """By its name. UserError for an unknown one, with the nearest known."""
    known = preset_names()
    if name not in known:
        hint = did_you_mean(str(name), known, cutoff=0.4)
        raise UserError(f'There is no protocol of evaluation "{name}".{hint} There are: {", ".join(known)}.')
    return Preset(**read_shipped(FOLDER, name))
