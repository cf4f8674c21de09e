"""Pretrained files, read once where the leakage check and the plans need the same one."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any


def read_once(path: str) -> Any:
    """The checkpoint as ``nnunet_ssl.nnunet.reading`` reads it; the last one is kept until ``forget()``."""
    try:
        facts = os.stat(path)
    except OSError:
        return _read(path, 0, 0)  # which says what is wrong
    return _read(path, facts.st_mtime_ns, facts.st_size)


@lru_cache(maxsize=1)
def _read(path: str, changed: int, size: int) -> Any:
    from nnunet_ssl.nnunet.reading import read_checkpoint

    return read_checkpoint(path)


def forget() -> None:
    """Give its memory back."""
    _read.cache_clear()
