"""Time of ``nnunet_ssl bench report`` on ten thousand results, start of Python included.

    python benchmarks/bench_report.py [--results 10000] [--subjects 20] [--classes 1] [--profile]

Writes a made-up grid into a temporary folder and runs the command in a fresh process. CPU seconds (user + system) are
what it costs; wall seconds are longer where the machine is shared.
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common

from nnunet_ssl.bench.grid import read_grid

PER_DATASET = 4 * 2 * 5 * 5 * 5  # numbers of labelled cases, pretrainings, protocols, draws, folds
GRID = """
[[pretrainings]]
name = "one"
checkpoint = "one.pth"
[[pretrainings]]
name = "two"
checkpoint = "two.pth"
[[protocols]]
name = "linear"
[[protocols]]
name = "nonlinear"
[[protocols]]
name = "frozen"
[[protocols]]
name = "finetune"
[[protocols]]
name = "scratch"
"""
DATASET = "[[datasets]]\nid = {}\nlabelled = [1, 2, 5, 10]\ndraws = 5\nfolds = [0, 1, 2, 3, 4]\n"


def write_results(folder: Path, results: int, subjects: int, classes: int) -> tuple[Path, int]:
    """A grid of at least so many jobs, every one with a row; its path and the number of rows."""
    path, rng = folder / "grid.toml", random.Random(0)
    path.write_text("".join(DATASET.format(i + 1) for i in range(-(-results // PER_DATASET))) + GRID, encoding="utf-8")
    grid = read_grid(path)
    number = 0
    with grid.results.open("w", encoding="utf-8") as stream:
        for job in list(grid.jobs())[:results]:
            scores = {f"subject_{i:03d}": {f"class {c}": {"dice": rng.random(), "nsd": rng.random()}
                                           for c in range(classes)} for i in range(subjects)}  # fmt: skip
            row = {"job": job.key, "settings": {}, "status": "done", "steps": 1, "seconds": 60.0, "mirror_axes": None,
                   "trainable_parameters": {"head": 10, "backbone": 90}, "scores": scores}  # fmt: skip
            stream.write(json.dumps(row) + "\n")
            number += 1
    return path, number


def main() -> None:
    """Print what it took."""
    parser = common.parser(__doc__, repeats=1)
    parser.add_argument("--results", type=int, default=10_000)
    parser.add_argument("--subjects", type=int, default=20)
    parser.add_argument("--classes", type=int, default=1)
    parser.add_argument("--profile", action="store_true", help="where the time goes, by cProfile")
    args = parser.parse_args()
    if args.quick:
        args.results, args.subjects = 100, 3
    with tempfile.TemporaryDirectory() as folder:
        path, number = write_results(Path(folder), args.results, args.subjects, args.classes)
        size = path.with_name("grid.results.jsonl").stat().st_size
        profile = ["-m", "cProfile", "-s", "tottime"] if args.profile else []
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        command = [sys.executable, *profile, "-m", "nnunet_ssl.cli.main", "bench", "report", str(path)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if args.profile:
        print("\n".join(done.stdout.splitlines()[:40]))
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    rows = [{"what": "CPU seconds", "found": round(cpu, 2)}, {"what": "wall seconds", "found": round(wall, 2)}]
    common.report(f"bench report on {number:,} results of {args.subjects} subjects and {args.classes} classes", rows,
                  args, megabytes=round(size / 1e6, 1))  # fmt: skip


if __name__ == "__main__":
    main()
