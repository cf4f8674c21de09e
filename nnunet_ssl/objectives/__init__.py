"""The objectives: one module a paper, found by its name, which is what ``ssl.objective`` says.

A module offers a class ``Recipe`` (``nnunet_ssl.recipes``) and the functions of :class:`Objective`: how a pair of views
is drawn and read (numpy, in the loader's workers), and how it is finished (torch, batched, on the training device).
``nnunet_ssl.views`` explains the order of the calls. The step that follows is the same for all (``nnunet_ssl.step``).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from nnunet_ssl.anchors import Ints, Reader
    from nnunet_ssl.intensity import ChannelUnits
    from nnunet_ssl.recipes import BaseRecipe
    from nnunet_ssl.views import ViewPair


class Drawn(Protocol):
    """Everything that was drawn of a pair before anything is read."""

    @property
    def points(self) -> int:
        """Points known to be in both views; a pair with fewer than two is drawn again."""


class Objective(Protocol):
    """What a module of this folder offers. Frame: ``nnunet_ssl.geometry``."""

    Recipe: type[BaseRecipe]

    @staticmethod
    def box_size(patch: Sequence[int], spacing_mm: Sequence[float], recipe: Any) -> tuple[int, ...]:
        """Voxels of the boxes that every pair is made from. ValueError for a recipe that does not fit the patch."""

    @staticmethod
    def draw_pair(
        rng: np.random.Generator,
        shape: Sequence[int],
        patch: Sequence[int],
        spacing_mm: Sequence[float],
        recipe: Any,
        find_anchor: Callable[[np.random.Generator], Sequence[int] | Ints] | None,
        read_mask: Reader,
    ) -> Drawn:
        """Draw a pair of views around a foreground voxel of a volume of `shape`."""

    @staticmethod
    def read_pair(drawn: Any, shape: Sequence[int], size: Sequence[int], read_image: Reader, read_mask: Reader) -> Any:
        """What was drawn, with the boxes of `size` voxels that it needs."""

    @staticmethod
    def collate(samples: Iterable[Any], count: int | None = None) -> Any:
        """Samples, `count` of them where they are no sequence -> a batch of CPU tensors with ``to`` and ``pin_memory``
        (``nnunet_ssl.views.OnDevice``)."""

    @staticmethod
    def assemble(
        batch: Any,
        patch: Sequence[int],
        recipe: Any,
        enhance: Callable[[Tensor], Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> ViewPair:
        """Make the views on the batch's device, with `enhance` on each. generator: of that device, for all else."""

    @staticmethod
    def augment(
        views: Tensor,
        channels: Sequence[ChannelUnits],
        recipe: Any,
        generator: torch.Generator,
        axial_axis: int | None = 0,
    ) -> Tensor:
        """New intensities for views (B, C, *S), in the plan's normalised units before and after."""


def names() -> list[str]:
    """The objectives that there are: the files of this folder."""
    return sorted({path.stem for folder in __path__ for path in Path(folder).glob("*.py") if path.stem != "__init__"})


def objective_of(recipe: BaseRecipe) -> Objective:
    """The module that a recipe belongs to."""
    return cast(Objective, importlib.import_module(f"{__name__}.{recipe.objective}"))
