"""What the tables say about leakage: reads what the check (``leakage``) wrote into the results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

CLEAN, LEAKED, UNCHECKED = "clean", "leaked", "unchecked"


def note_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the tables say about an arm's rows: nothing where all are clean (or older than this check)."""
    found = [row["leakage"] for row in rows if row.get("leakage")]
    leaked = sorted({case for one in found if one["status"] == LEAKED for case in one["cases"]})
    if leaked:
        return f"LEAKED: pretrained on {len(leaked)} scored cases"
    return "leakage not checked" if any(one["status"] == UNCHECKED for one in found) else ""


def mark_of(row: Mapping[str, Any], subject: str) -> str:
    """The mark of one subject of a row: leaked, unchecked, or nothing."""
    found = row.get("leakage") or {}
    if subject in found.get("cases", ()):
        return LEAKED
    return UNCHECKED if found.get("status") == UNCHECKED else ""
