"""Run a function over many tasks in spawned processes, with a progress bar; a task that kills its process is named."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from tqdm import tqdm

Task = TypeVar("Task")
Result = TypeVar("Result")


def run_all(function: Callable[[Task], Result], tasks: Sequence[Task], processes: int, title: str,
            died: Callable[[Task], Result]) -> list[Result]:
    """Results in the order of the tasks.

    :param processes: 0 works in this process.
    :param died: what stands for the result of a task whose process was killed (out of memory, a crash in a reader).
    """
    with tqdm(total=len(tasks), desc=title, disable=None) as bar:
        if processes == 0 or not tasks:
            return [_counted(function(task), bar) for task in tasks]
        done: dict[int, Result] = {}
        _run_pool(function, dict(enumerate(tasks)), min(processes, len(tasks)), bar, done)
        while len(done) < len(tasks):  # a process died, and with it the pool: go on one by one to see which task it was
            rest = {i: task for i, task in enumerate(tasks) if i not in done}
            for index, task in rest.items():
                if not _run_pool(function, {index: task}, 1, bar, done):
                    done[index] = _counted(died(task), bar)
        return [done[index] for index in range(len(tasks))]


def _run_pool(function: Callable[[Task], Result], tasks: dict[int, Task], processes: int, bar: tqdm[None],
              done: dict[int, Result]) -> bool:
    """Fill ``done``; False if a process died before everything was."""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_start_worker)
    try:
        futures: dict[Future[Result], int] = {pool.submit(function, task): i for i, task in tasks.items()}
        for future in as_completed(futures):
            done[futures[future]] = _counted(future.result(), bar)
        return True
    except BrokenProcessPool:
        return False
    except BaseException:
        # Waiting for the workers' present tasks could take for ever (a dead network drive).
        for process in list((getattr(pool, "_processes", None) or {}).values()):
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _counted(result: Result, bar: tqdm[None]) -> Result:
    bar.update()
    return result


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
