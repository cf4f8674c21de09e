"""What ``nnunet_ssl bench run`` adds to the commands that it runs: seconds a job, and once a run.

    python benchmarks/bench_overhead.py [--jobs 20] [--preset vox2vec]

A grid on phantoms with a checkpoint of full size (the paper's FPN with its optimiser, some 570 MB) and stand-ins for
nnUNetv2_train and nnUNetv2_predict that take no time. What is measured: reading the checkpoint, the leakage check, one
configuration a job in the plan, scores of two test cases, the results file. One job, then ``--jobs`` more in a second
run: the first has what is paid once. Preprocessing is done before.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

import common

GRID = """
[settings]
num_epochs = 1
[[datasets]]
id = 1
labelled = [1]
draws = {draws}
[[pretrainings]]
name = "full"
checkpoint = "{checkpoint}"
[[protocols]]
name = "linear"
"""


def checkpoint_of(path: Path, preset: str) -> Path:
    """Plan the phantoms for a pretraining and save random weights as a trainer would, optimiser included."""
    import torch
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_ssl.nnunet.network import build_backbone
    from nnunet_ssl.nnunet.planning import PlanRequest, make_plan

    planned = make_plan(PlanRequest(1, preset))
    name = planned.configurations[0]
    manager = PlansManager(planned.plans).get_configuration(name)
    weights = build_backbone(manager, 1, 2).state_dict()
    moments = {i: {"exp_avg": w.clone(), "exp_avg_sq": w.clone()} for i, w in enumerate(weights.values())}
    block = {"format": 1, "objective": "vox2vec", "recipe": manager.configuration["ssl"], "plans": planned.plans,
             "configuration": name, "dataset_json": {"channel_names": {"0": "CT"}},
             "volumes": {"case": "0" * 64}}  # fmt: skip
    torch.save({"network_weights": weights, "trainer_name": "Vox2VecPretrainTrainer", "ssl": block,
                "optimizer_state": {"state": moments}}, path)  # fmt: skip
    return path


def stand_in(command: Sequence[str], log: TextIO, env: Mapping[str, str]) -> int:
    """Leave the files that nnU-Net's commands leave."""
    name, words = Path(command[0]).name, list(command[1:])
    raw = next(Path(env["nnUNet_raw"]).glob("Dataset001_*"))
    if name == "nnUNetv2_predict":
        shutil.copytree(raw / "labelsTs", words[words.index("-o") + 1], dirs_exist_ok=True)
        return 0
    trainer, plans = words[words.index("-tr") + 1], words[words.index("-p") + 1]
    fold = Path(env["nnUNet_results"]) / raw.name / f"{trainer}__{plans}__{words[1]}" / f"fold_{words[2]}"
    (fold / "validation").mkdir(parents=True)
    for file in ("checkpoint_final.pth", "validation/summary.json"):
        (fold / file).write_text("{}")
    facts = {"steps": 1, "trainable_parameters": {"head": 1}, "pretrained": None, "mirror_axes": None}
    (fold / "downstream.json").write_text(json.dumps(facts))
    return 0


def run(grid: Path, draws: int, checkpoint: Path) -> tuple[int, float, float]:
    """Jobs run, wall seconds and CPU seconds of this process."""
    from nnunet_ssl.bench.grid import read_grid
    from nnunet_ssl.bench.runner import Runner

    grid.write_text(GRID.format(draws=draws, checkpoint=checkpoint), encoding="utf-8")
    wall, cpu = time.perf_counter(), time.process_time()
    rows = Runner(read_grid(grid), "cpu", run=stand_in).all()
    if any(row["status"] != "done" for row in rows):
        sys.exit(str(rows))
    return len(rows), time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    """Print what a run adds."""
    parser = common.parser(__doc__, repeats=1)
    parser.add_argument("--jobs", type=int, default=20)
    parser.add_argument("--preset", default="vox2vec")
    parser.add_argument("--shape", type=int, nargs=3, default=[48, 160, 160], help="of the phantoms")
    args = parser.parse_args()
    if args.quick:
        args.jobs, args.preset, args.shape = 2, "tiny", [24, 48, 48]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("raw", "preprocessed", "results"):
            (folder / part).mkdir()
            os.environ[f"nnUNet_{part}"] = str(folder / part)
        os.environ.update(nnUNet_def_n_proc="1", nnUNet_n_proc_DA="1")
        from nnunet_ssl.nnunet.phantom_dataset import write_dataset

        write_dataset(folder / "raw" / "Dataset001_Phantom", 4, shape=args.shape, num_test=2)
        checkpoint = checkpoint_of(folder / "checkpoint_final.pth", args.preset)
        size = checkpoint.stat().st_size
        run(folder / "warm.toml", 1, checkpoint)  # plans, preprocesses
        shutil.rmtree(folder / "results")
        one = run(folder / "grid.toml", 1, checkpoint)
        more = run(folder / "grid.toml", 1 + args.jobs, checkpoint)
        single = run(folder / "grid.toml", 2 + args.jobs, checkpoint)  # everything is imported by now
    slope = [(many - once) / (more[0] - single[0]) for many, once in zip(more[1:], single[1:], strict=True)]
    rows = [
        {"what": "the first run", "wall_s": one[1], "cpu_s": one[2]},
        {"what": "a run with one new job", "wall_s": single[1], "cpu_s": single[2]},
        {"what": "a job more", "wall_s": slope[0], "cpu_s": slope[1]},
    ]
    common.report("What bench run adds to its trainings and predictions", rows, args, checkpoint_mb=round(size / 1e6))


if __name__ == "__main__":
    main()
