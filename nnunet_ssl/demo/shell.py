"""Runs the public commands as a user would, one or two at a time, and keeps what they said."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import nnunet_ssl
from nnunet_ssl.errors import UserError

FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


@dataclass(frozen=True)
class Step:
    """A command that was run: what it was for, how it is typed, and how long it took."""

    title: str
    command: str
    seconds: float


def environment(folder: Path, base: Mapping[str, str]) -> dict[str, str]:
    """nnU-Net's variables inside ``folder``; no compilation, and our trainers behind the user's own."""
    discovery = str(Path(nnunet_ssl.__file__).resolve().parent / "discovery")
    others = [entry for entry in base.get("nnUNet_extTrainer", "").split(os.pathsep) if entry and entry != discovery]
    return {
        **base,
        **{name: str(folder / name) for name in FOLDERS},
        "nnUNet_extTrainer": os.pathsep.join([*others, discovery]),
        "nnUNet_compile": "f",
        "nnUNet_def_n_proc": "1",
        "OMP_WAIT_POLICY": "passive",  # two trainings share the cores
        "MPLBACKEND": "Agg",
        "PYTHONIOENCODING": "utf-8",
        "PYTHONUNBUFFERED": "1",
    }


def located(words: Sequence[str]) -> list[str]:
    """The command with its program as it is found beside this Python."""
    if words[0] == "nnunet_ssl":
        return [sys.executable, "-m", "nnunet_ssl.cli.main", *words[1:]]
    beside = Path(sys.executable).with_name(words[0])
    found = str(beside) if beside.exists() else shutil.which(words[0])
    if found is None:
        raise UserError(f"{words[0]} was not found beside {sys.executable} nor on PATH; expected nnunetv2 2.8 there. "
                        "Run nnunet_ssl doctor.")  # fmt: skip
    return [found, *words[1:]]


class Shell:
    """Runs commands in one environment; their output goes to ``logs/``, their durations into ``steps``."""

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        self.logs, self.env = folder / "logs", dict(env)
        self.logs.mkdir(parents=True, exist_ok=True)
        self.steps: list[Step] = []
        self._running: list[subprocess.Popen[bytes]] = []
        self._lock, self._stopped = threading.Lock(), False

    def run(self, title: str, *words: object, workers: str | None = "0", cores: Set[int] = frozenset()) -> None:
        """One command. ``workers``: nnUNet_n_proc_DA; 0 suits a training on a CPU, planning wants None.

        ``cores``: those that it may use, all if empty.
        """
        typed = [str(word) for word in words]
        env = {key: value for key, value in self.env.items() if key != "nnUNet_n_proc_DA"}
        env |= {} if workers is None else {"nnUNet_n_proc_DA": workers}
        start = time.monotonic()
        with self._lock:
            if self._stopped:
                return
            log = self.logs / f"{len(list(self.logs.iterdir())):02d}_{title.replace(' ', '_')}.txt"
            handle = log.open("wb")
            print(f"$ {shlex.join(typed)}", flush=True)
            process = subprocess.Popen(located(typed), env=env, stdin=subprocess.DEVNULL, stdout=handle,
                                       stderr=subprocess.STDOUT)  # fmt: skip
            if cores:
                os.sched_setaffinity(process.pid, cores)
            self._running.append(process)
        with handle:
            status = process.wait()
        with self._lock:
            self._running.remove(process)
            seconds = time.monotonic() - start
            self.steps.append(Step(title, shlex.join(typed), seconds))
            if self._stopped:
                return
            print(f"  {title}: {seconds:.0f} s", flush=True)
        if status:
            self.stop()
            raise UserError(_failure(title, status, log))

    def together(self, jobs: Sequence[tuple[object, ...]], at_once: int = 2) -> None:
        """Several commands (the arguments of ``run``), ``at_once`` at a time; one that fails ends them all."""
        # nnU-Net starts as many threads as the machine has cores, and two crowds on the same cores stop each other.
        free: SimpleQueue[Set[int]] = SimpleQueue()
        for part in shares(at_once):
            free.put(part)

        def in_share(job: tuple[object, ...]) -> None:
            part = free.get()
            try:
                self.run(*job, cores=part)  # type: ignore[arg-type]
            finally:
                free.put(part)

        with ThreadPoolExecutor(at_once) as pool:
            futures = [pool.submit(in_share, job) for job in jobs]
            try:
                for future in futures:
                    future.result()
            except BaseException:  # Ctrl-C, too: leaving the block waits for what still runs
                self.stop()
                raise

    def stop(self) -> None:
        """End what is running; nothing is started any more."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.terminate()


def shares(parts: int) -> list[Set[int]]:
    """The cores that this process may use, in so many disjoint parts; empty ones where there are too few."""
    if not hasattr(os, "sched_getaffinity"):
        return [frozenset()] * parts
    cores = sorted(os.sched_getaffinity(0))
    return [frozenset(cores[part::parts]) if len(cores) >= parts else frozenset() for part in range(parts)]


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Inside, SIGTERM raises KeyboardInterrupt, so that what was started is ended too."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _failure(title: str, status: int, log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    last = "\n    ".join(lines[-8:]) or "(it said nothing)"
    return f"the step '{title}' of the demo failed with exit status {status}. Its last lines, of {log}:\n    {last}"
