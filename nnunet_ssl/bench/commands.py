"""Running one command of nnU-Net, and the devices to run it on."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

Run = Callable[[Sequence[str], Path, Mapping[str, str]], int]


def run_command(command: Sequence[str], log: Path, env: Mapping[str, str]) -> int:
    """Run one command to its end, its output added to `log`; its exit status."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as stream:
        stream.write(f"$ {' '.join(command)}\n")
        stream.flush()
        with _held_signals():
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT, env=env
            )
        try:
            return process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise


@contextmanager
def _held_signals() -> Iterator[None]:
    """Slurm warns all processes of a job by SIGUSR2 before it ends them. The runner puts the job back into the queue;
    nnU-Net, which knows nothing of the signal, would die of it and look like a failure. A process keeps the mask with
    which it was started.
    """
    if not hasattr(signal, "pthread_sigmask") or not hasattr(signal, "SIGUSR2"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def visible_gpus() -> list[str]:
    """Names of the GPUs that jobs may use."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not torch.cuda.is_available():
        return []
    return visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
