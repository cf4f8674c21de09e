"""Every benchmark runs, quickly when asked to, and writes what it found; nothing is asserted about speed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_layers import REPOSITORY

HELPERS = {"common", "published"}
SCRIPTS = sorted(path for path in (REPOSITORY / "benchmarks").glob("*.py") if path.stem not in HELPERS)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_runs_and_writes_json(script: Path, tmp_path: Path) -> None:
    if script.stem == "worker_memory" and not Path("/proc/self/clear_refs").exists():
        pytest.skip("needs Linux's /proc")
    out = tmp_path / "found.json"
    command = [sys.executable, str(script), "--quick", "--out", str(out)]
    run = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", errors="replace", timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["title"] in run.stdout and found["machine"]["torch"]
    assert len(found["rows"]) >= 2 and all(row["what"] for row in found["rows"])


def test_there_is_one_for_every_row() -> None:
    page = (REPOSITORY / "docs" / "performance.md").read_text(encoding="utf-8")
    assert [path.name for path in SCRIPTS if f"benchmarks/{path.name}" not in page] == []
