"""The list of cases that stay out of an import (``--exclude FILE``)."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_ssl.errors import UserError
from nnunet_ssl.nnunet.sources import Case
from nnunet_ssl.nnunet.volumes import ending_of


@dataclass(frozen=True)
class Exclusion:
    """Lines of the file: case names, file names with or without ending and ``_0000``, folder names, or paths."""

    entries: tuple[str, ...] = ()

    def matches(self, case: Case) -> bool:
        """Whether a line names this case, one of its files, or a folder below the source that they lie in."""
        return any(_names(entry, case) for entry in self.entries)

    def unmatched(self, cases: Sequence[Case]) -> list[str]:
        """Lines that name no case: probably a mistake."""
        return [entry for entry in self.entries if not any(_names(entry, case) for case in cases)]


def read_exclusion(path: str | None) -> Exclusion:
    """One entry a line; empty lines and what follows # are ignored. UserError for an unreadable file."""
    if path is None:
        return Exclusion()
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--exclude {path} cannot be read ({error}). Give a text file with a case a line.") from error
    entries = [line.partition("#")[0].strip() for line in text.splitlines()]
    return Exclusion(tuple(dict.fromkeys(entry for entry in entries if entry)))


def _names(entry: str, case: Case) -> bool:
    if entry == case.name:
        return True
    bare = _bare(entry)
    for scan in case.channels:
        if "/" in entry:
            wanted = "/" + entry.strip("/")
            if any(_bare(file).endswith(_bare(wanted)) for file in scan.files):
                return True
            if any(folder.endswith(wanted) for folder in scan.below):
                return True
        elif bare in (scan.stem, _bare(scan.stem)) or entry in map(os.path.basename, scan.below):
            return True
    return bare == case.name


def _bare(name: str) -> str:
    """Without ending and channel suffix."""
    ending = ending_of(name)
    return re.sub(r"_0000$", "", name[: -len(ending)] if ending else name)
