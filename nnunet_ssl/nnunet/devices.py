"""Devices, precision and processes of a training."""

from __future__ import annotations

import math
import os
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from nnunet_ssl.errors import UserError


def local_device(requested: torch.device) -> torch.device:
    """The device of this process: LOCAL_RANK chooses the GPU, since the global rank counts over several machines."""
    if requested.type != "cuda" or not (dist.is_available() and dist.is_initialized()):
        return requested
    index = int(os.environ.get("LOCAL_RANK", dist.get_rank() % max(1, torch.cuda.device_count())))
    return torch.device("cuda", index)


def obey_thread_limit() -> None:
    """Fewer threads where OMP_NUM_THREADS says so: nnU-Net's commands take all cores on a CPU whatever it says, and of
    two trainings side by side each then waits for threads that the other one holds.
    """
    limit = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if limit.isdecimal() and 0 < int(limit) < torch.get_num_threads():
        torch.set_num_threads(int(limit))


def distribute(network: nn.Module, device: torch.device) -> DistributedDataParallel:
    """Wrap for several processes; batch norm over all of them where torch can (SyncBatchNorm knows CUDA only)."""
    if device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return DistributedDataParallel(network, device_ids=[device.index])
    return DistributedDataParallel(network)


def precision(amp: str, device: torch.device) -> tuple[torch.dtype | None, Any]:
    """(autocast's type or None, GradScaler or None) for ``ssl.amp``; auto: bf16 where the GPU computes in it (an older
    one only emulates it, slowly), else fp16.

    The CPU stays in float32 unless bf16 is asked for. Raises UserError for fp16 without CUDA.
    """
    if amp == "auto":
        if device.type != "cuda":
            return None, None
        amp = "bf16" if _computes_in_bf16(device) else "fp16"
    if amp == "off":
        return None, None
    if amp == "bf16":
        return torch.bfloat16, None
    if device.type != "cuda":
        raise UserError(f'ssl.amp is "fp16", which needs a CUDA device, found {device}. Use "auto", "bf16" or "off".')
    return torch.float16, torch.amp.GradScaler("cuda")


def _computes_in_bf16(device: torch.device) -> bool:
    # torch.cuda.is_bf16_supported() also counts emulation, and not every torch lets it be left out.
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def seeded(device: torch.device, *words: int) -> torch.Generator:
    """A generator on ``device`` whose state is a function of ``words``; torch's own (dropout) is seeded alike."""
    seed = int(np.random.SeedSequence(list(words)).generate_state(1, np.uint64)[0] >> np.uint64(1))
    torch.manual_seed(seed)
    return torch.Generator(device="cpu" if device.type == "mps" else device).manual_seed(seed)


def backward_and_step(
    loss: Tensor, network: nn.Module, optimizer: torch.optim.Optimizer, scaler: Any, clip: float | None
) -> float:
    """One step of the optimiser; gives the gradient's norm before clipping."""
    if scaler is None:
        loss.backward()
    else:
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(network.parameters(), math.inf if clip is None else clip)
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()
    return float(norm)


def require_finite(loss: float, cases: list[str], scaler: Any) -> None:
    """Raise UserError for a loss that would ruin the weights; fp16's scaler skips such a step and lowers its scale."""
    if math.isfinite(loss) or (scaler is not None and scaler.get_scale() > 1.0):
        return
    raise UserError(
        f"The loss is {loss} on a batch of {', '.join(sorted(set(cases))[:4])}. Saved checkpoints are intact. Lower "
        'initial_lr, add warmup_epochs, or set ssl.amp to "off", and start again or continue with --c.'
    )


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether ``flag`` is true in any process: all of them have to stop at the same iteration."""
    if not (dist.is_available() and dist.is_initialized()):
        return flag
    found = torch.tensor(float(flag), device=device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return bool(found > 0)


class CarefulConv3d(nn.Conv3d):
    """nn.Conv3d for bfloat16 autocast on a CPU, in float32 where that would go wrong.

    oneDNN (seen in torch 2.13 with AVX-512 bf16) leaves entries of the weight's gradient unwritten where an image has
    more slices than one and fewer than the kernel, as at the second coarsest of vox2vec's levels: what the memory held
    before, sometimes infinity. Such levels are small and cost nothing in float32.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not 1 < input.shape[2] < self.kernel_size[0]:
            return super()._conv_forward(input, weight, bias)
        with torch.autocast("cpu", enabled=False):
            out = super()._conv_forward(input.to(weight.dtype), weight, bias)
        return out.bfloat16() if torch.is_autocast_enabled("cpu") else out


def suit(network: nn.Module, device: torch.device, dtype: torch.dtype | None) -> nn.Module:
    """The network, changed in place for what it will run on: a CPU in bfloat16 wants channels last (about a tenth of a
    step) and convolutions that are careful. Parameters keep their names and values.
    """
    if device.type != "cpu" or dtype != torch.bfloat16:
        return network
    for module in network.modules():
        if type(module) is nn.Conv3d:
            module.__class__ = CarefulConv3d
    flat = all(parameter.dim() != 5 for parameter in network.parameters())
    return network.to(memory_format=torch.channels_last if flat else torch.channels_last_3d)


def in_bfloat16(network: nn.Module) -> nn.Module:
    """The network, changed in place to compute in bfloat16 and to answer in float32 (a tensor, or a list of them),
    whoever calls it: a trainer, or nnU-Net's predictor, which knows half precision on GPUs alone.
    """
    network.__class__ = _computing_in_bfloat16(type(network))
    return suit(network, torch.device("cpu"), torch.bfloat16)  # harmless on other devices


@cache
def _computing_in_bfloat16(kind: type[nn.Module]) -> type[nn.Module]:
    class InBFloat16(kind):  # type: ignore[valid-type, misc]
        def forward(self, x: Tensor) -> Any:
            with torch.autocast(x.device.type, dtype=torch.bfloat16):
                out = super().forward(x)
            return [level.float() for level in out] if isinstance(out, list | tuple) else out.float()

    InBFloat16.__name__ = InBFloat16.__qualname__ = kind.__name__
    return InBFloat16
