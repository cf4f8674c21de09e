"""A folder that is built in hiding and appears whole, or not at all."""

from __future__ import annotations

import os
import re
import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnunet_ssl.errors import UserError
from nnunet_ssl.nnunet.files import runs_elsewhere


@contextmanager
def built_beside(target: Path, old: Sequence[Path]) -> Iterator[Path]:
    """A hidden folder beside ``target`` that takes its place (and that of ``old``) on success and goes otherwise.

    ``old``: folders and files that go with the success, each moved aside in its own folder until then.
    """
    _remove_leftovers(target)
    beside = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        beside.mkdir(parents=True)
        with _terminating_as_interrupt():
            yield beside
            aside = [(path, path.with_name(f".{path.name}.replaced-{os.getpid()}")) for path in old]
            try:
                for path, hidden in aside:
                    os.replace(path, hidden)
                os.replace(beside, target)
            except BaseException:
                for path, hidden in aside:
                    if hidden.exists() and not path.exists():
                        os.replace(hidden, path)
                raise
            for _, hidden in aside:
                _delete(hidden)
    except OSError as error:
        raise UserError(
            f"The dataset could not be written into {target.parent}: {error}. Nothing changed. Check the path, the "
            "room and the permissions there."
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


@contextmanager
def _terminating_as_interrupt() -> Iterator[None]:
    """SIGTERM cleans up as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(signum: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def put_back(folder: Path, names: str, elsewhere: Sequence[Path] = ()) -> None:
    """Bring back what a process that was killed between its two moves had moved aside.

    Where the new dataset had come into its place before the kill, the old one goes, as it would have.

    :param names: glob of the datasets in ``folder`` that may be moved aside.
    :param elsewhere: folders in which files of theirs may be moved aside.
    """
    hidden = [*folder.glob(f".{names}.replaced-*"), *(path for f in elsewhere for path in f.glob(".*.replaced-*"))]
    taken = any(folder.glob(names))
    for path in hidden:
        match = re.fullmatch(r"\.(.+)\.replaced-(\d+)", path.name)
        if match is None or runs_elsewhere(match[2]):
            continue
        place = path.with_name(match[1])
        if place.exists() or (taken and not any(folder.glob(f".*.partial-{match[2]}"))):
            _delete(path)
        else:
            _move_back(path, place)


def _move_back(path: Path, place: Path) -> None:
    try:
        os.replace(path, place)
    except OSError as error:
        raise UserError(
            f"A killed import left {path} there, and it cannot be moved back: {error}. Rename it to {place.name}."
        ) from error


def _remove_leftovers(target: Path) -> None:
    """What a killed import of the same dataset left, if its process is gone."""
    for path in target.parent.glob(f".{target.name}.partial-*"):
        if not runs_elsewhere(path.name.rpartition("-")[2]):
            shutil.rmtree(path, ignore_errors=True)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
