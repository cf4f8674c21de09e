"""Training under torchrun, as on several machines."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nnunet_ssl.cli.main import main
from nnunet_ssl.errors import UserError
from nnunet_ssl.nnunet import checkpoints, launching
from nnunet_ssl.nnunet.launching import TrainRequest, train
from tests.tiny_dataset import tiny_dataset
from tests.tiny_training import SHORT, TRAINER, in_process, metrics, output_folder

SSL = {**SHORT, "pairs_per_batch": 2, "num_epochs": 1, "intensity": "none", "report_cases": 0}


def test_two_processes_of_torchrun_train_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = (tiny_dataset(tmp_path / name, cases=3, ssl=SSL) for name in ("one", "two"))
    in_process(one, monkeypatch).run_training()
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m",
         "nnunet_ssl.cli.main", "train", str(two.dataset_id), two.configuration, "all", "-tr", TRAINER, "-p",
         two.plans_name, "-device", "cpu"],
        env={**two.env, "OMP_NUM_THREADS": "1"}, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8",
        errors="replace", timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = [metrics(output_folder(tiny)) for tiny in (one, two)]
    assert [row["train_loss"] for row in rows[1]] == pytest.approx([row["train_loss"] for row in rows[0]], rel=1e-4)
    assert (output_folder(two) / "representation_report" / "representation.json").is_file()
    assert checkpoints.read(output_folder(two) / "checkpoint_final.pth")["current_epoch"] == 1


def test_without_torchrun(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in launching.NEEDED:
        monkeypatch.delenv(name, raising=False)
    assert main(["train", "4", "3d_fullres", "all", "-tr", TRAINER, "-p", "nnUNetPlans", "-device", "cpu"]) == 1
    assert "which torchrun sets. Start it as `torchrun" in capsys.readouterr().err


def test_a_downstream_trainer_stays_on_one_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = tiny_dataset(tmp_path, cases=3, ssl={"num_epochs": 1})
    in_process(tiny, monkeypatch)  # for its variables
    one_of_two = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29571",
                  "GROUP_WORLD_SIZE": "2"}  # fmt: skip
    for name, value in one_of_two.items():
        monkeypatch.setenv(name, value)
    request = TrainRequest(str(tiny.dataset_id), tiny.configuration, "all", "SSLScratchTrainer", tiny.plans_name,
                           device="cpu")  # fmt: skip
    with pytest.raises(UserError, match="Pretraining trainers know several"):
        train(request)
    with pytest.raises(UserError, match='The fold is "first"'):
        train(TrainRequest("4", "3d_fullres", "first", TRAINER, "nnUNetPlans", device="cpu"))
