"""Stand-ins for nnU-Net's commands that other processes can import: they leave the files, and take no time."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO


def quick(command: Sequence[str], log: TextIO, env: Mapping[str, str]) -> int:
    """Predicts the reference; a folder ``die``, ``fail`` or ``slow`` beside the raw datasets, with a file named like a
    configuration, makes that job's process disappear, its training fail, or take minutes the first time.
    """
    name, words, raw = Path(command[0]).name, list(command[1:]), Path(env["nnUNet_raw"])
    print(f"process {os.getpid()}", file=log, flush=True)
    number = words[words.index("-d") + 1] if "-d" in words else words[0]
    dataset = next(raw.glob(f"Dataset{int(number):03d}_*"))
    if name == "nnUNetv2_predict":
        shutil.copytree(dataset / "labelsTs", words[words.index("-o") + 1], dirs_exist_ok=True)
        return 0
    if (raw / "die" / words[1]).exists():
        os._exit(9)
    slow = raw / "slow" / words[1]
    if slow.exists():
        first = slow.stat().st_size == 0
        slow.write_text("started" if first else slow.read_text() + ", again")
        time.sleep(300 if first else 0)
    if (raw / "fail" / words[1]).exists():
        return 3
    trainer, plans = words[words.index("-tr") + 1], words[words.index("-p") + 1]
    fold = Path(env["nnUNet_results"]) / dataset.name / f"{trainer}__{plans}__{words[1]}" / f"fold_{words[2]}"
    (fold / "validation").mkdir(parents=True, exist_ok=True)
    (fold / "checkpoint_final.pth").write_bytes(b"weights")
    (fold / "validation" / "summary.json").write_text("{}")
    facts = {"steps": 10, "trainable_parameters": {"head": 7}, "pretrained": None, "mirror_axes": None}
    (fold / "downstream.json").write_text(json.dumps(facts))
    return 0
