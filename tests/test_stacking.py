"""Batches made sample by sample."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from nnunet_ssl.stacking import stack_boxes


def samples(count: int) -> list[tuple[str, np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [(f"geometry {i}", *rng.normal(size=(2, 1, 3, 4)).astype(np.float32)) for i in range(count)]


def test_equals_stacking_them_at_once() -> None:
    some = samples(5)
    for given, count in ((some, None), (iter(some), 5)):
        drawn, stacks = stack_boxes(given, count)
        assert drawn == [sample[0] for sample in some]
        for place, stack in enumerate(stacks, start=1):
            assert stack.dtype == torch.float32
            np.testing.assert_array_equal(stack.numpy(), np.stack([sample[place] for sample in some]))


@pytest.mark.parametrize("count", [4, 6, None])
def test_another_number_of_samples_is_refused(count: int | None) -> None:
    with pytest.raises(ValueError, match="samples"):
        stack_boxes(iter(samples(5)), count)


class InWorker(Dataset):
    def __getitem__(self, index: int) -> tuple[list[torch.Tensor], bool]:
        _, stacks = stack_boxes(samples(3))
        return stacks, all(stack.is_shared() for stack in stacks)


def test_a_worker_makes_them_in_shared_memory() -> None:
    loader = DataLoader(InWorker(), batch_size=None, sampler=[0], num_workers=1, collate_fn=lambda item: item)
    ((stacks, shared),) = list(loader)
    assert shared
    assert all(torch.equal(*both) for both in zip(stacks, stack_boxes(samples(3))[1], strict=True))
