"""Row 5: memory and time of InfoNCE, forward and backward: ours in tiles, and the formula written out.

    python benchmarks/loss_memory.py [--pairs 10240] [--width 128] [--device cpu|cuda] [--only tiled|written-out]

Each runs in a fresh process. Memory is what the process holds at most above its inputs (its peak resident set on a CPU,
torch's allocator on a GPU). The formula written out takes about 4.4 GiB at 10,240 pairs.
"""

from __future__ import annotations

import argparse
import json
import time

import common
import published
import torch
from torch.nn import functional as F

from nnunet_ssl.losses import info_nce

TEMPERATURE = 0.1
SMALL = 64


FORMULAS = {"tiled": info_nce, "written-out": published.info_nce}


def peak_bytes(device: str) -> int:
    """Most memory held so far."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return common.peak_bytes()


def measure(name: str, pairs: int, width: int, device: str) -> dict[str, float | str]:
    """One forward and backward pass in this process: MiB above the inputs, CPU seconds, wall seconds, and the loss."""
    z = F.normalize(torch.randn(2, pairs, width, generator=torch.Generator().manual_seed(0)), dim=-1).to(device)
    z_a, z_b = (part.clone().requires_grad_() for part in z)
    # libraries' own workspaces are no cost of the loss
    FORMULAS[name](z_a[:SMALL], z_b[:SMALL], TEMPERATURE).backward()
    z_a.grad = z_b.grad = None
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    before, cpu, wall = peak_bytes(device), time.process_time(), time.perf_counter()
    loss = FORMULAS[name](z_a, z_b, TEMPERATURE)
    loss.backward()
    value = loss.item()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    mib = (peak_bytes(device) - before) / 2**20
    return {"what": name, "mib": mib, "cpu_seconds": cpu, "seconds": wall, "loss": value}


def main() -> None:
    parser = common.parser(__doc__, repeats=1)
    parser.add_argument("--pairs", type=int, default=10240)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", choices=tuple(FORMULAS))
    parser.add_argument("--json", action="store_true", help="print one JSON list")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.pairs, args.width = 256, 16
    names = [args.only] if args.only else list(FORMULAS)
    if args.here:
        print(json.dumps(measure(names[0], args.pairs, args.width, args.device)))
        return
    size = ["--pairs", str(args.pairs), "--width", str(args.width), "--device", args.device]
    results: list[dict[str, float | str]] = []
    for name in names:
        results.append(common.in_fresh_process(__file__, ["--here", "--only", name, *size]))
    if args.json:
        print(json.dumps(results))
        return
    common.report(f"InfoNCE, {args.pairs} pairs of width {args.width}, {args.device}, MiB above inputs", results, args)


if __name__ == "__main__":
    main()
