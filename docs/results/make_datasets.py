"""Build the labelled datasets of first_runs.md, with their fixed test splits, in nnUNet_raw.

    python docs/results/make_datasets.py openkbp DATA/OpenKBP
    python docs/results/make_datasets.py hippocampus DATA/Task04_Hippocampus

The test split was drawn once (``draw_split``) before any training and is kept in ``<name>/splits.json``; test cases go
to imagesTs and labelsTs. ``<name>/test_cases.txt`` is the file for ``nnunet_ssl import --exclude``.

splits_final.json, which nnU-Net takes over when it plans: fold 0 keeps training cases apart that no draw of labelled
cases may use, to choose settings on; fold 1 has the same training cases and validates one of those: for what is scored
on the test split, where a validation chooses nothing and costs time.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
OPENKBP_LABELS = ("brainstem", "spinal_cord", "right_parotid", "left_parotid", "mandible")


def draw_split(cases: list[str], number_of_test_cases: int, seed: int) -> dict[str, list[str]]:
    test = sorted(random.Random(seed).sample(sorted(cases), number_of_test_cases))
    return {"train": sorted(set(cases) - set(test)), "test": test}


def split_of(name: str, cases: list[str], number_of_test_cases: int) -> dict[str, list[str]]:
    """The committed split; drawn and written where there is none yet."""
    path = HERE / name / "splits.json"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        split = draw_split(cases, number_of_test_cases, seed=0)
        path.write_text(json.dumps(split, indent=1) + "\n")
        (path.parent / "test_cases.txt").write_text("\n".join(split["test"]) + "\n")
    split = json.loads(path.read_text())
    if sorted(split["train"] + split["test"]) != sorted(cases):
        raise SystemExit(f"{path} names other cases than the data folder holds")
    return split


def openkbp(source: Path, raw: Path, dataset_id: int) -> None:
    cases = sorted(p.name.removesuffix(".nii.gz") for p in (source / "labels").glob("*.nii.gz"))
    split = split_of("openkbp", cases, 30)
    target = raw / f"Dataset{dataset_id:03d}_OpenKBP"
    for part, suffix in (("train", "Tr"), ("test", "Ts")):
        for kind in ("images", "labels"):
            (target / f"{kind}{suffix}").mkdir(parents=True)
        for case in split[part]:
            shutil.copy(source / "images" / f"{case}.nii.gz", target / f"images{suffix}" / f"{case}_0000.nii.gz")
            shutil.copy(source / "labels" / f"{case}.nii.gz", target / f"labels{suffix}" / f"{case}.nii.gz")
    labels = {"background": 0} | {name: i for i, name in enumerate(OPENKBP_LABELS, start=1)}
    write_dataset_json(target, {"channel_names": {"0": "CT"}, "labels": labels}, split["train"], 6)


def hippocampus(source: Path, raw: Path, dataset_id: int) -> None:
    command = Path(sys.executable).with_name("nnUNetv2_convert_MSD_dataset")
    subprocess.run([command, "-i", source, "-overwrite_id", str(dataset_id), "-np", "2"], check=True)
    target = raw / f"Dataset{dataset_id:03d}_Hippocampus"
    cases = sorted(p.name.removesuffix(".nii.gz") for p in (target / "labelsTr").glob("*.nii.gz"))
    split = split_of("hippocampus", cases, 65)
    shutil.rmtree(target / "imagesTs")  # the challenge's unlabelled test images
    for kind, ending in (("images", "_0000"), ("labels", "")):
        (target / f"{kind}Ts").mkdir()
        for case in split["test"]:
            name = f"{case}{ending}.nii.gz"
            os.replace(target / f"{kind}Tr" / name, target / f"{kind}Ts" / name)
    write_dataset_json(target, json.loads((target / "dataset.json").read_text()), split["train"], 20)


def write_dataset_json(target: Path, content: dict, cases: list[str], apart: int) -> None:
    content |= {"numTraining": len(cases), "file_ending": ".nii.gz"}
    (target / "dataset.json").write_text(json.dumps(content, indent=1) + "\n")
    kept = sorted(random.Random(1).sample(sorted(cases), apart))
    train = sorted(set(cases) - set(kept))
    folds = [{"train": train, "val": kept}, {"train": train, "val": kept[:1]}]
    (target / "splits_final.json").write_text(json.dumps(folds, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=("openkbp", "hippocampus"))
    parser.add_argument("source", type=Path)
    parser.add_argument("-d", "--dataset-id", type=int)
    args = parser.parse_args()
    build, default_id = {"openkbp": (openkbp, 801), "hippocampus": (hippocampus, 804)}[args.name]
    build(args.source, Path(os.environ["nnUNet_raw"]), args.dataset_id or default_id)


if __name__ == "__main__":
    main()
