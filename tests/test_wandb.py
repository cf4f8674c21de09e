"""nnU-Net's switch for Weights & Biases, with a stand-in for the package: a run, and its continuation."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.tiny_dataset import tiny_dataset
from tests.tiny_training import SHORT, in_process, output_folder


class Wandb:
    """What nnU-Net's WandbLogger uses of the package: ``init`` leaves a file that names the run."""

    def __init__(self) -> None:
        self.runs: list[SimpleNamespace] = []
        self.steps_known = 0

    def init(self, *, dir: str, id: str | None, resume: str, **_: Any) -> SimpleNamespace:
        folder = Path(dir) / "wandb" / "latest-run"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"run-{id or 'first'}.wandb").touch()
        logged: list[tuple[int, str, Any]] = []

        def log(values: dict[str, Any], step: int) -> None:
            logged.extend((step, key, value) for key, value in values.items())

        run = SimpleNamespace(id=id, resume=resume, config={}, summary={}, log=log, logged=logged)
        run.step = self.steps_known
        self.runs.append(run)
        return run


def test_a_run_and_its_continuation_are_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nnunetv2.training.logging import nnunet_logger

    wandb = Wandb()
    monkeypatch.setattr(nnunet_logger, "wandb", wandb)
    monkeypatch.setenv("nnUNet_wandb_enabled", "1")
    tiny = tiny_dataset(tmp_path, cases=2, ssl={**SHORT, "save_every": 1, "num_epochs": 3})
    first = in_process(tiny, monkeypatch)
    save, folder = first.save_checkpoint, output_folder(tiny)

    def save_then_stop(filename: str, *arguments: Any) -> None:
        save(filename, *arguments)
        if filename.endswith("checkpoint_latest.pth") and first.current_epoch == 2:
            raise KeyboardInterrupt

    first.save_checkpoint = save_then_stop
    with pytest.raises(KeyboardInterrupt):
        first.run_training()
    wandb.steps_known = 2
    second = in_process(tiny, monkeypatch, going_on=True)
    second.load_checkpoint(str(folder / "checkpoint_latest.pth"))
    second.run_training()

    before, after = wandb.runs
    assert (before.id, before.resume) == (None, "never") and (after.id, after.resume) == ("first", "allow")
    assert {step for step, _, _ in before.logged} == {0, 1} and {step for step, _, _ in after.logged} == {2}
    for run in wandb.runs:
        keys = {key for _, key, _ in run.logged}
        assert keys >= {"train_loss", "retrieval_at_1", "effective_rank", "level_std/0", "level_std/2", "lr"}
        assert not any("dice" in key for key in keys), "no Dice is made up"
        assert json.loads(json.dumps(run.config["hparas"]))["objective"] == "vox2vec"
