"""Pairs of views from preprocessed volumes, read box by box.

Everything random about pair ``g`` of global iteration ``i`` comes from a generator seeded by (seed, stream, i, g),
where ``g`` counts over the pairs of all processes (rank r of W holds a range of them). So the pairs do not depend on
the number of workers, of processes, or on when a training was stopped and continued.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from nnunet_ssl.anchors import draw_anchor
from nnunet_ssl.errors import UserError
from nnunet_ssl.nnunet.b2nd import B2ndVolume, MaskMaker
from nnunet_ssl.objectives import objective_of

TRAINING, VALIDATION, VOLUMES = 0, 1, 2  # streams of random numbers
OPEN_VOLUMES = 128  # handles that a worker keeps
TRIES = 16  # volumes without foreground that are passed over before giving up
HELD_BACK_SEED = 12345  # nnU-Net's seed for splits
Batch = tuple[Any, list[str], int]


@dataclass
class PairDataset(Dataset):
    """Item ``i`` is the batch of global iteration ``i``, or the UserError it met.

    A batch: what the objective collates, the cases of its pairs, and how many views were drawn again.
    """

    folder: str
    cases: Sequence[str]
    patch: Sequence[int]  # 3 numbers, or 2: views are then slices of the volume's first axis
    spacing: Sequence[float]  # mm, one a patch axis
    recipe: Any
    pairs: range  # of the pairs of a batch, those of this process
    stream: int = TRAINING
    mask_maker: MaskMaker | None = None
    _volumes: dict[str, B2ndVolume] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self._box = objective_of(self.recipe).box_size(self.patch, self.spacing, self.recipe)

    def __getitem__(self, iteration: int) -> Batch | UserError:
        cases: list[str] = []
        redrawn: list[int] = []

        def samples() -> Iterator[Any]:  # one by one: together they are half of what a worker would hold
            for g in self.pairs:
                sample, case, again = self._pair(iteration, g)
                cases.append(case)
                redrawn.append(again)
                yield sample

        try:
            batch = objective_of(self.recipe).collate(samples(), len(self.pairs))
        except UserError as error:
            return error  # as a value: raised in a worker it would arrive wrapped in that worker's traceback
        return batch, cases, sum(redrawn)

    def _pair(self, iteration: int, g: int) -> tuple[Any, str, int]:
        """Pair ``g`` and its volume, one of the iteration's; one without foreground is replaced."""
        order = self._generator(VOLUMES, iteration, self.stream)
        volumes = min(self.recipe.volumes_per_batch, len(self.cases))
        chosen = order.choice(len(self.cases), min(volumes + TRIES, len(self.cases)), replace=False)
        candidates = [chosen[g % volumes], *chosen[volumes:]]
        for index in candidates:
            volume = self._volume(self.cases[index])
            found = self._draw(self._generator(self.stream, iteration, g), volume)
            if found is not None:
                return found[0], volume.case, found[1]
        raise UserError(
            f"No two foreground voxels that two views share in {', '.join(self.cases[i] for i in candidates[:4])} "
            f"({len(candidates)} volumes tried). Check the masks (labelsTr of the raw dataset), import again."
        )

    def _draw(self, rng: np.random.Generator, volume: B2ndVolume) -> tuple[Any, int] | None:
        """One pair of views of ``volume``, and how often one was drawn in vain; None where there is none to be had."""
        objective = objective_of(self.recipe)
        for tries in range(TRIES):  # a point alone has no negatives: draw views that share at least two
            try:
                anchor = draw_anchor(rng, volume.shape, volume.mask, lambda: volume.mask_counts)
            except ValueError:
                return None
            shape, read_image, read_mask = volume.shape, volume.image, volume.mask
            if len(self.patch) == 2:
                read_image, read_mask = _slice(volume, int(anchor[0]))
                shape, anchor = shape[1:], anchor[1:]
            drawn = objective.draw_pair(
                rng, shape, self.patch, self.spacing, self.recipe, lambda _, here=anchor: here, read_mask
            )
            if drawn.points >= 2:
                return objective.read_pair(drawn, shape, self._box, read_image, read_mask), tries
        return None

    def _volume(self, case: str) -> B2ndVolume:
        if case not in self._volumes:
            if len(self._volumes) >= OPEN_VOLUMES:
                self._volumes.pop(next(iter(self._volumes)))
            self._volumes[case] = B2ndVolume(self.folder, case, self.mask_maker)
        return self._volumes[case]

    def _generator(self, *words: int) -> np.random.Generator:
        return np.random.default_rng([self.recipe.seed, *words])


def _slice(volume: B2ndVolume, z: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Readers of slice ``z``: image (C, *size2) and mask (*size2)."""

    def read_image(start: Sequence[int], size: Sequence[int]) -> NDArray[np.float32]:
        return volume.image((z, *start), (1, *size))[:, 0]

    def read_mask(start: Sequence[int], size: Sequence[int]) -> NDArray[np.bool_]:
        return volume.mask((z, *start), (1, *size))[0]

    return read_image, read_mask


class _Indices:
    """start, start + 1, ... without end, or 0 ... cycle - 1 again and again."""

    def __init__(self, start: int, cycle: int | None) -> None:
        self.start, self.cycle = start, cycle

    def __iter__(self) -> Iterator[int]:
        return (i if self.cycle is None else i % self.cycle for i in count(self.start))


class PairLoader:
    """Iterates a PairDataset in order with ``num_workers`` processes (0: in this one), for ever.

    The workers are daemons, ignore SIGTERM and SIGINT (the trainer decides when to stop), and end with the trainer.
    """

    def __init__(
        self, dataset: PairDataset, start: int = 0, cycle: int | None = None, num_workers: int = 0, pin: bool = False
    ) -> None:
        self._loader = DataLoader(
            dataset,
            batch_size=None,
            sampler=_Indices(start, cycle),  # type: ignore[arg-type]
            num_workers=num_workers,
            collate_fn=_as_it_is,
            pin_memory=pin,
            worker_init_fn=_start_worker,
        )
        self._iterator: Any = None

    def __iter__(self) -> PairLoader:
        return self

    def __next__(self) -> Batch:
        if self._iterator is None:
            self._iterator = iter(self._loader)
        item = next(self._iterator)
        if isinstance(item, UserError):
            self.close()
            raise item
        return item

    def close(self) -> None:
        """End the workers; safe to call again."""
        iterator, self._iterator = self._iterator, None
        workers = getattr(iterator, "_workers", [])
        if workers:
            iterator._shutdown_workers()
        for worker in workers:
            if worker.is_alive():
                worker.kill()


def _as_it_is(item: Any) -> Any:
    return item


def _start_worker(_: int) -> None:
    # A signal to the whole process group must not take the data away from a trainer that is saving its state.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def hold_back(cases: Sequence[str], fraction: float = 0.05) -> tuple[list[str], list[str]]:
    """(training, validation): max(1, fraction) of the cases are kept for validation, the same for the same names.

    One case alone serves both.
    """
    names = sorted(cases)
    if len(names) == 1:
        return names, names
    order = np.random.default_rng(HELD_BACK_SEED).permutation(len(names))
    held = {names[i] for i in order[: max(1, int(fraction * len(names)))]}
    return [name for name in names if name not in held], sorted(held)


def share_of_pairs(total: int, rank: int, world_size: int) -> range:
    """The pairs of a batch of ``total`` that process ``rank`` of ``world_size`` makes; shares differ by one at most."""
    if total < world_size:
        raise UserError(f"pairs_per_batch is {total} for {world_size} processes; expected at least one pair a process.")
    return range(total * rank // world_size, total * (rank + 1) // world_size)
