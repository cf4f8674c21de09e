"""Running one command of nnU-Net, and the devices to run it on."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

Run = Callable[[Sequence[str], TextIO, Mapping[str, str]], int]


@contextmanager
def own_log(path: Path, when_busy: Callable[[], None]) -> Iterator[TextIO]:
    """The job's log, open to be added to, and nobody else's: what this process starts with it as its output owns it
    too, until it ends. A training whose runner was killed goes on writing into its folder; a second one beside it
    would spoil both. Where the log is somebody's, ``when_busy`` is called and its end waited for.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as stream:
        if fcntl is not None:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                when_busy()
                fcntl.flock(stream, fcntl.LOCK_EX)
        yield stream


def run_command(command: Sequence[str], log: TextIO, env: Mapping[str, str]) -> int:
    """Run one command to its end, its output added to `log`; its exit status."""
    log.write(f"$ {' '.join(command)}\n")
    log.flush()
    with _held_signals():
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=env)
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
