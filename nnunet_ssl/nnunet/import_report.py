"""What an import did with every case: the content of import_report.json."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

from nnunet_ssl import __version__
from nnunet_ssl.nnunet.converting import Outcome
from nnunet_ssl.nnunet.excluding import Exclusion
from nnunet_ssl.nnunet.sources import Case

REPORT = "import_report.json"


def report_of(cases: Sequence[Case], outcomes: dict[str, Outcome], excluded: set[str], channels: list[str],
              exclusion: Exclusion) -> dict[str, Any]:
    """The report. ``volumes`` holds a content hash a volume: CASE, or CASE_0000, CASE_0001 with several channels."""
    used = [c for c in cases if c.name not in excluded and outcomes[c.name].reason is None]
    volumes: dict[str, str] = {}
    for case in used:
        hashes = outcomes[case.name].hashes
        volumes |= {case.name if len(hashes) == 1 else f"{case.name}_{c:04d}": h for c, h in enumerate(hashes)}
    same: dict[str, list[str]] = {}
    for volume, value in volumes.items():
        same.setdefault(value, []).append(volume)
    return {
        "dataset": "",
        "nnunet_ssl": __version__,
        "channels": channels,
        "imported": {c.name: {"files": _files(c), **outcomes[c.name].facts} for c in used},
        "skipped": {c.name: {"files": _files(c), "reason": outcomes[c.name].reason}
                    for c in cases if c.name not in excluded and outcomes[c.name].reason},
        "excluded": sorted(excluded),
        "excluded_not_found": exclusion.unmatched(cases),
        "identical": [names for names in same.values() if len(names) > 1],
        "warnings": {c.name: outcomes[c.name].warnings for c in used if outcomes[c.name].warnings},
        "orientations": dict(Counter(outcomes[c.name].facts["orientation"] for c in used).most_common()),
        "volumes": volumes,
    }


def _files(case: Case) -> list[str]:
    """The source of every channel: the file, or the folder of a DICOM series."""
    return [scan.files[0] if len(scan.files) == 1 else os.path.dirname(scan.files[0]) for scan in case.channels]


def reasons(report: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Skipped cases by reason, the most frequent first."""
    by_reason: dict[str, list[str]] = {}
    for name, row in report["skipped"].items():
        by_reason.setdefault(row["reason"], []).append(name)
    return sorted(by_reason.items(), key=lambda item: -len(item[1]))


def why_nothing(report: dict[str, Any]) -> str:
    """A sentence for the user when no case is usable."""
    listed = [f"{', '.join(names[:3])}{' ...' if len(names) > 3 else ''}: {why}" for why, names in reasons(report)[:5]]
    if report["excluded"]:
        listed.append(f"{len(report['excluded'])} excluded")
    return "; ".join(listed) + "." if listed else "No NIfTI, NRRD, MHA or DICOM file there."
