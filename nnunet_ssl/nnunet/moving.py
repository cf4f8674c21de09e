"""A folder that is built in hiding and appears whole, or not at all."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from nnunet_ssl.errors import UserError


@contextmanager
def built_beside(target: Path, old: Sequence[Path]) -> Iterator[Path]:
    """A hidden folder beside ``target`` that takes its place (and that of ``old``) on success and goes otherwise.

    ``old``: folders and files that go with the success, each moved aside in its own folder until then.
    """
    _remove_leftovers(target)
    beside = target.with_name(f".{target.name}.partial-{os.getpid()}")
    beside.mkdir()
    try:
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
        raise UserError(f"The dataset could not be written into {target.parent}: {error}. Nothing changed.") from error
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


def _remove_leftovers(target: Path) -> None:
    """What a killed import of the same dataset left, if its process is gone."""
    for path in target.parent.glob(f".{target.name}.partial-*"):
        with suppress(ValueError):
            number = int(path.name.rpartition("-")[2])
            if number != os.getpid() and _is_alive(number):
                continue
        shutil.rmtree(path, ignore_errors=True)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
