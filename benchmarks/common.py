"""What the benchmarks share: how they are called, how they measure, how they print; and a CT to read from.

Times are CPU seconds of one thread. What is compared runs in turn, so that a busy machine slows all of it alike, and
the median is quoted with the least and the greatest.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage

torch.set_num_threads(1)


def parser(description: str | None, repeats: int = 5) -> argparse.ArgumentParser:
    """The options of every script."""
    out = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    out.add_argument("--repeats", type=int, default=repeats, help="runs of each, in turn; the first is not counted")
    out.add_argument("--quick", action="store_true", help="sizes that take seconds and say nothing about speed")
    out.add_argument("--out", type=Path, help="a JSON file to write")
    return out


def interleave(functions: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """CPU seconds of each function, `repeats` of them, run in turn after one run that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(repeats + 1):
        for name, function in functions.items():
            gc.collect()
            start = time.process_time()
            function()
            if turn:
                seconds[name].append(time.process_time() - start)
    return seconds


def timed_rows(seconds: Mapping[str, list[float]], baseline: str | None = None) -> list[dict[str, Any]]:
    """A row a function: median, least, greatest, and how many times faster than the baseline its median is."""
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    rows = []
    for name, values in seconds.items():
        row: dict[str, Any] = {"what": name, "cpu_s": medians[name], "least": min(values), "greatest": max(values)}
        if baseline is not None:
            row["times"] = medians[baseline] / medians[name]
        rows.append(row)
    return rows


def report(title: str, rows: Sequence[dict[str, Any]], args: argparse.Namespace, **facts: Any) -> None:
    """Print the rows as a table, and write them with the settings and the machine where --out says."""
    print(title)
    for name, value in facts.items():
        print(f"  {name}: {value}")
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [columns, *[[_text(row.get(name, "")) for name in columns] for row in rows]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    if args.out is not None:
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
        content = {"title": title, "settings": settings, "machine": machine(), **facts, "rows": list(rows)}
        args.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    capability = torch.backends.cpu.get_cpu_capability()
    return {"processor": platform.machine(), "vectors": capability, "torch": torch.__version__, "threads": 1}


def make_ct(shape: Sequence[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A phantom (z, y, x) float32 in vox2vec's units, (HU + 1350) / 2350 clipped to [0, 1], and its body (bool).

    The trunk of ``nnunet_ssl.phantom`` at a quarter of the size, enlarged, with the noise of a scanner.
    """
    from nnunet_ssl.phantom import make_case

    rng = np.random.default_rng(seed)
    small = [max(16, -(-n // 4)) for n in shape]
    image, _, _ = make_case(rng, "CT", small)
    grid = [np.linspace(0, s - 1, n) for s, n in zip(small, shape, strict=True)]
    solid = ndimage.binary_fill_holes(ndimage.binary_opening(image > -500, iterations=1))
    index = np.ix_(*[np.rint(g).astype(int) for g in grid])
    hu = np.clip(image, -1350, 1000)[index] + rng.normal(0, 15, tuple(shape))
    return (((np.clip(hu, -1350, 1000) + 1350) / 2350).astype(np.float32), solid[index])


def open_case(folder: Path, case: str) -> tuple[np.ndarray, np.ndarray]:
    """What ``store`` wrote, read whole as the published code does: (z, y, x) image in HU and its body (bool)."""
    from nnunet_ssl.nnunet.b2nd import open_b2nd

    image = np.asarray(open_b2nd(folder / f"{case}.b2nd")[0]) * 2350.0 - 1350.0
    return image, np.asarray(open_b2nd(folder / f"{case}_seg.b2nd")[0]) > 0


def in_fresh_process(script: str, arguments: Sequence[str]) -> Any:
    """The JSON that a script prints, run with these arguments."""
    run = subprocess.run([sys.executable, script, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                         encoding="utf-8", check=True)  # fmt: skip
    return json.loads(run.stdout)


def peak_bytes() -> int:
    """The largest memory that this process has held."""
    # kilobytes on Linux, bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def store(folder: Path, case: str, image: np.ndarray, body: np.ndarray, patch: Sequence[int]) -> None:
    """Write a case as nnU-Net's preprocessing does, chunked for `patch`."""
    from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2

    blocks, chunks = comp_blosc2_params((1, *image.shape), tuple(patch), 4)
    blocks_seg, chunks_seg = comp_blosc2_params((1, *image.shape), tuple(patch), 2)
    nnUNetDatasetBlosc2.save_case(
        image[None], body[None].astype(np.int16), {}, str(folder / case),
        chunks=chunks, blocks=blocks, chunks_seg=chunks_seg, blocks_seg=blocks_seg,
    )  # fmt: skip
