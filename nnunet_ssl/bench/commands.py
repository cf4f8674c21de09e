"""Running one command of nnU-Net, and the devices to run it on."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

Run = Callable[[Sequence[str], Path, Mapping[str, str]], int]


def run_command(command: Sequence[str], log: Path, env: Mapping[str, str]) -> int:
    """Run one command to its end, its output added to `log`; its exit status."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as stream:
        stream.write(f"$ {' '.join(command)}\n")
        stream.flush()
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT, env=env, check=False
        )
    return done.returncode


def visible_gpus() -> list[str]:
    """Names of the GPUs that jobs may use."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not torch.cuda.is_available():
        return []
    return visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
