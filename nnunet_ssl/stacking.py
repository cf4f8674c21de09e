"""Samples of a batch into tensors, one after the other: a worker never holds its boxes twice."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import get_worker_info


def stack_boxes(samples: Iterable[tuple[Any, ...]], count: int | None = None) -> tuple[list[Any], list[Tensor]]:
    """Samples (geometry, box, ...) -> the geometries, and for each box of a sample a float32 tensor (B, *shape of box).

    Boxes are numpy arrays. In a worker the tensors are made in shared memory, where they would be copied to anyway.

    :param samples: B of them; each is let go as soon as it is copied, if nobody else keeps it
    :param count: B, where `samples` is no sequence
    :raises ValueError: there are not so many
    """
    if count is None:
        if not isinstance(samples, Sequence):
            raise ValueError("samples that are no sequence came without their count")
        count = len(samples)
    drawn: list[Any] = []
    stacks: list[Tensor] = []
    for geometry, *boxes in samples:
        if not stacks:
            stacks = [torch.empty(count, *box.shape, dtype=torch.float32) for box in boxes]
            if get_worker_info() is not None:
                stacks = [stack.share_memory_() for stack in stacks]  # type: ignore[no-untyped-call]
        if len(drawn) < count:
            for stack, box in zip(stacks, boxes, strict=True):
                stack[len(drawn)] = torch.from_numpy(box)
        drawn.append(geometry)
    if len(drawn) != count:
        raise ValueError(f"{len(drawn)} samples came where {count} were announced")
    return drawn, stacks
