"""Two processes (gloo, on the CPU) train what one process trains."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing

from nnunet_ssl.nnunet import checkpoints, devices
from tests.tiny_dataset import tiny_dataset
from tests.tiny_training import SHORT, in_process, metrics, output_folder

SSL = {**SHORT, "pairs_per_batch": 4, "num_epochs": 2, "intensity": "none", "optimizer": "sgd", "initial_lr": 0.01}


def train(rank: int, tiny: SimpleNamespace, rendezvous: str) -> None:
    """One of two processes."""
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = "0"
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    with pytest.MonkeyPatch.context() as patch:
        trainer = in_process(tiny, patch)
        assert trainer.is_ddp and trainer.local_rank == rank and trainer.device.type == "cpu"
        trainer.run_training()
        trainer.print_to_log_file(f"rank {rank} ran {trainer.global_iteration}")
    # gloo aborts a process whose group goes while the other still talks to it, or while DDP still holds it
    del trainer
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = (tiny_dataset(tmp_path / name, cases=3, ssl=SSL) for name in ("one", "two"))
    in_process(one, monkeypatch).run_training()
    multiprocessing.spawn(train, (two, str(tmp_path / "rendezvous")), nprocs=2)
    expected, found = (checkpoints.read(output_folder(tiny) / "checkpoint_final.pth") for tiny in (one, two))
    start = in_process(one, monkeypatch)
    start.initialize()
    moved = 0
    for key, value in start.bare_network().state_dict().items():
        if "running_" in key or "num_batches" in key:
            continue
        ours, reference = found["network_weights"][key], expected["network_weights"][key]
        torch.testing.assert_close(ours, reference, atol=2e-5, rtol=1e-3)
        moved += int((reference - value).abs().max() > 1e-4)
    assert moved > 10, "nothing was trained"
    rows = [metrics(output_folder(tiny)) for tiny in (one, two)]
    for a, b in zip(*rows, strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-4)
    assert len(found["running_epoch"]["outputs"]) == 2


def test_helpers_without_a_process_group() -> None:
    cpu = torch.device("cpu")
    assert devices.local_device(cpu) == cpu
    assert devices.any_process(True, cpu) is True and devices.any_process(False, cpu) is False
    assert devices.precision("auto", cpu) == (None, None) and devices.precision("bf16", cpu)[0] is torch.bfloat16
    first, second = (torch.rand(3, generator=devices.seeded(cpu, 1, 2)) for _ in range(2))
    assert torch.equal(first, second) and not torch.equal(first, torch.rand(3, generator=devices.seeded(cpu, 1, 3)))


@pytest.mark.parametrize(("capability", "hip", "expected"), [
    ((7, 5), None, torch.float16), ((8, 0), None, torch.bfloat16), ((9, 0), "6.0", torch.bfloat16),
])
def test_auto_precision_of_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], hip: str | None, expected: torch.dtype
) -> None:
    """A GPU that only emulates bf16 trains in fp16, with scaled gradients."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.amp, "GradScaler", lambda kind: f"scaler of {kind}")
    scaler = "scaler of cuda" if expected is torch.float16 else None
    assert devices.precision("auto", torch.device("cuda", 0)) == (expected, scaler)
