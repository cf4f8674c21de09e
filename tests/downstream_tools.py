"""Trainers on a tiny dataset: inside the test's process, or by nnU-Net's commands."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_ssl.nnunet.network import build_backbone

SHORT = {"num_epochs": 2, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1, "save_every": 1}
TRAINERS = sorted(path.stem for path in (Path(__file__).parents[1] / "trainers").glob("SSL*Trainer.py"))


def plans_path(dataset: Any) -> Path:
    return dataset.preprocessed / dataset.dataset_name / f"{dataset.plans_name}.json"


def set_ssl(dataset: Any, ssl: dict[str, Any] | None) -> None:
    """Write the ssl block of the dataset's configuration; None takes it out."""
    plans = json.loads(plans_path(dataset).read_text(encoding="utf-8"))
    plans["configurations"][dataset.configuration].pop("ssl", None)
    if ssl is not None:
        plans["configurations"][dataset.configuration]["ssl"] = ssl
    plans_path(dataset).write_text(json.dumps(plans), encoding="utf-8")


def edit_dataset_json(dataset: Any, **entries: Any) -> None:
    path = dataset.preprocessed / dataset.dataset_name / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **entries}), encoding="utf-8")


def relabel(dataset: Any, names: dict[str, Any], **entries: Any) -> None:
    """Give the dataset other labels, and its cases the class_locations that nnU-Net's preprocessing stores for them."""
    import pickle

    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    edit_dataset_json(dataset, labels=names, **entries)
    manager = LabelManager(names, entries.get("regions_class_order"))
    groups = [*(manager.foreground_regions if manager.has_regions else manager.foreground_labels)]
    if manager.has_ignore_label:
        groups.append(tuple([-1, *manager.all_labels]))
    cases = nnUNetDatasetBlosc2(str(dataset.preprocessed_cases))
    for case in cases.identifiers:
        _, segmentation, _, properties = cases.load_case(case)
        segmentation = segmentation[:]
        properties["class_locations"] = {group: np.argwhere(np.isin(segmentation, group)) for group in groups}
        (dataset.preprocessed_cases / f"{case}.pkl").write_bytes(pickle.dumps(properties))


def pretrained_file(dataset: Any, folder: Path, channels: int = 1, seed: int = 1) -> Path:
    """A checkpoint with weights of the plan's network, as nnU-Net writes them."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    torch.manual_seed(seed)
    manager = PlansManager(str(plans_path(dataset))).get_configuration(dataset.configuration)
    network = build_backbone(manager, channels, 2)
    with torch.no_grad():  # batch statistics that a training mode would change
        for name, buffer in network.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_()
    path = folder / "pretrained.pth"
    torch.save({"network_weights": network.state_dict(), "trainer_name": "nnUNetTrainer"}, path)
    return path


def make_trainer(dataset: Any, name: str, ssl: dict[str, Any] | None, fold: Any = 0, resume: bool = False) -> Any:
    """A trainer as nnUNetv2_train makes it; the environment must point at the dataset."""
    set_ssl(dataset, ssl)
    plans = json.loads(plans_path(dataset).read_text(encoding="utf-8"))
    plans["continue_training"] = resume
    path = dataset.preprocessed / dataset.dataset_name / "dataset.json"
    cls = getattr(importlib.import_module(f"nnunet_ssl.trainers.{name}"), name)
    return cls(plans=plans, configuration=dataset.configuration, fold=fold,
               dataset_json=json.loads(path.read_text(encoding="utf-8")), device=torch.device("cpu"))  # fmt: skip


def states(network: torch.nn.Module, part: str) -> dict[str, torch.Tensor]:
    """Copies of the tensors of ``backbone`` or ``head``."""
    return {key: value.detach().clone() for key, value in network.state_dict().items()
            if (".seg_layers." in key) == (part == "head")}  # fmt: skip


def same(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> bool:
    return before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


def stock(dataset: Any, command: str, *arguments: Any, env: dict[str, str] | None = None) -> str:
    """Run one of nnU-Net's console scripts in a process of its own; what it printed. Fails with that if it fails."""
    script = Path(sys.executable).with_name(command)
    return _run([str(script), *map(str, arguments)], env or dataset.env)


def stock_entries(dataset: Any, *commands: list[Any]) -> str:
    """Run several entry points ("module:function", arguments ...) one after the other in one fresh process."""
    script = Path(__file__).with_name("entry_points.py")
    return _run([sys.executable, str(script), json.dumps([[str(a) for a in row] for row in commands])], dataset.env)


def _run(command: list[str], env: dict[str, str]) -> str:
    done = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          timeout=600, encoding="utf-8", errors="replace")  # fmt: skip
    assert done.returncode == 0, f"{command[:2]} ended with {done.returncode}:\n{done.stdout[-6000:]}"
    return done.stdout
