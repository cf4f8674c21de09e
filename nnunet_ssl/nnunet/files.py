"""Files that are either whole or absent: written beside their place, then moved over it; and those of the package."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

from nnunet_ssl.errors import UserError


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside ``path``; move it over ``path`` on success, remove it on failure.

    The temporary name keeps the suffix, because many writers choose the format by it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        yield beside
        _flush_to_disk(beside)
        os.replace(beside, path)
    except BaseException:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise


def shipped(package: str) -> list[str]:
    """Names of the JSON files that lie in a package, without their ending."""
    return sorted(path.name[:-5] for path in files(package).iterdir() if path.name.endswith(".json"))


def read_shipped(package: str, name: str) -> dict[str, Any]:
    """The content of one of them."""
    content: dict[str, Any] = json.loads((files(package) / f"{name}.json").read_text(encoding="utf-8"))
    return content


def check_writable(folder: Path, variable: str) -> None:
    """UserError where ``folder``, which need not be there yet and lies in that of ``variable``, cannot be written."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror}). Set {variable} to a folder that you may write to and that "
            "has room."
        ) from error


def remove_leftovers(folder: str | os.PathLike[str], name: str) -> None:
    """Delete what killed processes left beside files of ``folder`` whose names match ``name`` (a glob pattern).

    For folders that one process writes to, at its start: what carries this process's number is of an earlier one.
    """
    for path in Path(folder).glob(f".tmp-*-{name}"):
        number = path.name.split("-")[1]
        if number.isdigit() and not runs_elsewhere(number):
            with suppress(OSError):
                path.unlink()


def runs_elsewhere(process: str) -> bool:
    """Whether another process than this one has the number."""
    if process == str(os.getpid()):
        return False
    if os.name == "nt":  # os.kill would end it
        return True
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, ValueError):
        return False
    except OSError:  # somebody else's
        return True
    return True


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` as UTF-8."""
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], obj: Any) -> None:
    """Write ``obj`` as indented UTF-8 JSON; keys keep their order."""
    write_text(path, json.dumps(obj, indent=4, ensure_ascii=False) + "\n")


def _flush_to_disk(path: Path) -> None:
    # Without it a power cut after the move can leave an empty file under the final name.
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
