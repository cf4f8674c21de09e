"""Run the grid of first_runs.md: protocol x labelled cases x draw x steps, by the stock commands.

    python docs/results/first_runs.py 804 -p PLANS --out results.jsonl \\
        --jobs finetune:1:0:100 linear:1:0:100 --test

A job is PROTOCOL:N:DRAW:STEPS with further ``:key=value`` (any downstream field, e.g. ``:initial_lr=0.003``). It is
one configuration of the plan, one ``nnUNetv2_train`` and, with ``--test``, one ``nnUNetv2_predict``.

nnU-Net's own validation on fold 0 (make_datasets.py) is what may choose a setting; fold 1 is for test runs. A job whose
line is in the results file is not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import SimpleITK as sitk

TRAINERS = {
    "linear": "SSLLinearProbeTrainer",
    "nonlinear": "SSLNonlinearProbeTrainer",
    "frozen": "SSLFrozenTrainer",
    "finetune": "SSLFineTuneTrainer",
    "scratch": "SSLScratchTrainer",
}
EPOCH = 100  # steps


def parse_job(text: str) -> dict:
    protocol, n, draw, steps, *settings = text.split(":")
    fields = {key: json.loads(value) for key, value in (s.split("=") for s in settings)}
    return {"protocol": protocol, "n": int(n), "draw": int(draw), "steps": int(steps), "settings": fields}


def configuration_name(job: dict) -> str:
    parts = [job["protocol"], f"n{job['n']}", f"d{job['draw']}", f"s{job['steps']}"]
    return (
        "_".join(parts + [f"{k}{v}" for k, v in sorted(job["settings"].items())])
        .replace("[", "")
        .replace("]", "")
        .replace(", ", "-")
    )


def add_configuration(plans_file: Path, name: str, job: dict, common: dict) -> None:
    plans = json.loads(plans_file.read_text())
    # nnU-Net's inheritance is shallow: the block is written whole
    block = plans["configurations"]["3d_fullres"].get("ssl", {}) | common | job["settings"]
    block |= {
        "labelled": {"n": job["n"], "draw": job["draw"]},
        "num_epochs": max(1, job["steps"] // EPOCH),
        "num_iterations_per_epoch": min(EPOCH, job["steps"]),
        "num_val_iterations_per_epoch": 1,
    }
    plans["configurations"][name] = {"inherits_from": "3d_fullres", "ssl": block}
    temporary = plans_file.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(plans, indent=1))
    os.replace(temporary, plans_file)


def dice_table(predictions: Path, references: Path, labels: list[int]) -> dict[str, list[float | None]]:
    """Hard Dice per label on the original grid, by case; None where the reference lacks the label."""
    table = {}
    for path in sorted(references.glob("*.nii.gz")):
        truth = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        guess = sitk.GetArrayFromImage(sitk.ReadImage(str(predictions / path.name)))
        both = [((truth == k) & (guess == k)).sum() for k in labels]
        sizes = [((truth == k).sum(), (guess == k).sum()) for k in labels]
        table[path.name.removesuffix(".nii.gz")] = [
            round(float(2 * b / (t + g)), 4) if t else None for b, (t, g) in zip(both, sizes, strict=True)
        ]
    return table


def mean_dice(table: dict[str, list[float | None]]) -> float:
    """Mean over cases of the mean over the case's labels."""
    return float(np.mean([np.mean([d for d in row if d is not None]) for row in table.values()]))


def run(command: list[str], log: Path) -> float:
    start = time.time()
    with log.open("a") as stream:
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream)
    return time.time() - start


def run_job(job: dict, args: argparse.Namespace, dataset: str) -> dict:
    name, bin_ = configuration_name(job), Path(sys.executable).parent
    pre, raw, res = (Path(os.environ[f"nnUNet_{k}"]) / dataset for k in ("preprocessed", "raw", "results"))
    add_configuration(pre / f"{args.plans}.json", name, job, args.common)
    trainer = TRAINERS[job["protocol"]]
    folder = res / f"{trainer}__{args.plans}__{name}"
    log = res / f"{args.plans}__{name}.log"
    res.mkdir(parents=True, exist_ok=True)
    train = [dataset, name, str(args.fold), "-tr", trainer, "-p", args.plans, "-device", "cpu"]
    seconds = run([str(bin_ / "nnUNetv2_train"), *train], log)
    summary = folder / f"fold_{args.fold}/validation/summary.json"
    validation = json.loads(summary.read_text())["foreground_mean"]["Dice"]
    row = job | {
        "plans": args.plans,
        "common": args.common,
        "validation_dice": round(validation, 4),
        "train_seconds": round(seconds),
    }
    if args.test:
        output = folder / "test"
        row["predict_seconds"] = round(
            run(
                [
                    str(bin_ / "nnUNetv2_predict"),
                    "-i",
                    str(raw / "imagesTs"),
                    "-o",
                    str(output),
                    "-d",
                    dataset,
                    "-c",
                    name,
                    "-f",
                    str(args.fold),
                    "-tr",
                    trainer,
                    "-p",
                    args.plans,
                    "-device",
                    "cpu",
                    "-npp",
                    "1",
                    "-nps",
                    "1",
                    "-step_size",
                    str(args.step_size),
                ],
                log,
            )
        )
        labels = json.loads((raw / "dataset.json").read_text())["labels"]
        row["test_dice_by_case"] = dice_table(output, raw / "labelsTs", [v for v in labels.values() if v])
        row["test_dice"] = round(mean_dice(row["test_dice_by_case"]), 4)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=int)
    parser.add_argument("-p", "--plans", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--jobs", nargs="+", required=True)
    parser.add_argument("--common", type=json.loads, default={}, help="JSON of downstream fields that every job shares")
    parser.add_argument("--fold", type=int, default=0, choices=(0, 1))
    parser.add_argument("--step-size", type=float, default=0.5)
    parser.add_argument("--test", action="store_true", help="also predict and score the test split")
    args = parser.parse_args()
    raw_root = Path(os.environ["nnUNet_raw"])
    dataset = next(raw_root.glob(f"Dataset{args.dataset:03d}_*")).name
    for text in args.jobs:
        job = parse_job(text)
        key = job | {"plans": args.plans, "common": args.common}
        rows = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
        if any(all(r[k] == v for k, v in key.items()) and (not args.test or "test_dice" in r) for r in rows):
            continue
        row = run_job(job, args, dataset)
        with args.out.open("a") as stream:
            stream.write(json.dumps(row) + "\n")
        print(text, "validation", row["validation_dice"], "test", row.get("test_dice"), flush=True)


if __name__ == "__main__":
    main()
