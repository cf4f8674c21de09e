"""Running one command of nnU-Net, and the devices to run it on."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

POLL_S = 1.0
PROCESS = "# process "  # a line of a log: who writes what follows
RUNNING: set[subprocess.Popen[bytes]] = set()
Run = Callable[[Sequence[str], TextIO, Mapping[str, str]], int]


@contextmanager
def own_log(path: Path, when_busy: Callable[[], None]) -> Iterator[TextIO]:
    """The job's log, open to be added to, and nobody else's: neither another runner's nor that of a command whose
    runner was killed, which goes on writing into the job's folder. Where it is, ``when_busy`` is called and the end
    waited for.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # two files: a lock on the commands' output would live on in their workers, which may outlast them by days
    with path.open("a") as lock, path.open("a", encoding="utf-8") as stream:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                when_busy()
                fcntl.flock(lock, fcntl.LOCK_EX)
            except OSError:  # a network file system without locks: one runner at a time, there
                pass
        if _goes_on(path):
            when_busy()
            while _goes_on(path):
                time.sleep(POLL_S)
        yield stream


def _goes_on(log: Path) -> bool:
    """Whether the last command in a log is still at work on this machine."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    started = [line for line in lines if line.startswith(("$ ", PROCESS))][-2:]
    if len(started) < 2 or not started[1].startswith(PROCESS):
        return False
    number, _, host = started[1].removeprefix(PROCESS).partition(" on ")
    return host == platform.node() and _command_of(number).endswith(started[0].partition(" ")[2])


def _command_of(process: str) -> str:
    """What a process was started as, or nothing; its number may be another's by now."""
    try:
        return Path(f"/proc/{process}/cmdline").read_text(encoding="utf-8").rstrip("\0").replace("\0", " ")
    except OSError:
        pass
    if Path("/proc/self").exists() or os.name == "nt":
        return ""
    done = subprocess.run(["ps", "-ww", "-o", "args=", "-p", process], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def run_command(command: Sequence[str], log: TextIO, env: Mapping[str, str]) -> int:
    """Run one command to its end, its output added to `log`; its exit status."""
    log.write(f"$ {' '.join(command)}\n")
    log.flush()
    with _held_signals():
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=env)
    RUNNING.add(process)
    try:
        log.write(f"{PROCESS}{process.pid} on {platform.node()}\n")
        log.flush()
        return process.wait()
    except BaseException:
        process.kill()
        process.wait()
        raise
    finally:
        RUNNING.discard(process)


def end_commands() -> None:
    """Ask all that run now to end."""
    for process in list(RUNNING):
        process.terminate()


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """SIGTERM ends what is inside as Ctrl-C does, by a KeyboardInterrupt."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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
