"""nnU-Net's own commands on a pretraining: what cannot be used ends with status 1, one sentence, and the old file kept.

The entry points run in this process and an error goes where Python sends one that nobody catches; that a process of
its own ends in the same way is tested with the damaged volume of test_pretrain_bad_input.py.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.test_checkpoints import Bomb
from tests.test_pretrain_bad_input import edit_plan
from tests.tiny_dataset import tiny_dataset
from tests.tiny_training import SHORT, TRAINER, in_process, metrics, output_folder


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A dataset with a pretraining that can be continued, and its environment around this process."""
    made = tiny_dataset(tmp_path, ndim=2, cases=2, ssl=SHORT)
    trainer = in_process(made, monkeypatch)
    trainer.initialize()
    trainer.save_checkpoint(str(latest(made)))
    for key, value in made.env.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield made
    torch.set_num_threads(threads)  # the command takes all that there are until the trainer lowers it


def latest(tiny: SimpleNamespace) -> Path:
    return output_folder(tiny) / "checkpoint_latest.pth"


def train(tiny: SimpleNamespace, patch: pytest.MonkeyPatch, *arguments: str, trainer: str = TRAINER) -> int:
    """``nnUNetv2_train``; its exit status."""
    from nnunetv2.run.run_training import run_training_entry

    words = [str(tiny.dataset_id), tiny.configuration, "all", "-tr", trainer, "-p", tiny.plans_name, "-device", "cpu"]
    return run(patch, run_training_entry, *words, *arguments)


def run(patch: pytest.MonkeyPatch, entry: Callable[[], None], *arguments: str) -> int:
    """An entry point as its console script calls it; the exit status."""
    patch.setattr(sys, "argv", [entry.__name__, *arguments])
    try:
        entry()
    except SystemExit as ended:
        return int(ended.code or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        return 1
    return 0


def fill_the_disk(tiny: SimpleNamespace, patch: pytest.MonkeyPatch) -> None:
    def full(content: Any, path: Any) -> None:
        Path(path).write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    patch.setattr(torch, "save", full)


def change_ssl(**values: Any) -> Callable[[SimpleNamespace, pytest.MonkeyPatch], None]:
    return lambda tiny, patch: edit_plan(tiny, lambda configuration: configuration["ssl"].update(values))


def put(content: Any) -> Callable[[SimpleNamespace, pytest.MonkeyPatch], None]:
    return lambda tiny, patch: torch.save(content, latest(tiny))


BAD = {
    "unknown key": (change_ssl(temprature=0.1), [], 'Did you mean "temperature"'),
    "another architecture": (change_ssl(projector_out=9), ["--c"], "another network"),
    "foreign checkpoint": (put({"network_weights": {}}), ["--c"], "not a pretraining checkpoint"),
    "pickle bomb": (put({"ssl": Bomb()}), ["--c"], "cannot be read"),
    "missing variable": (lambda tiny, patch: patch.delenv("nnUNet_results"), [], "nnUNet_results is not set"),
    "disk full": (fill_the_disk, ["--c"], "Free some space"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_pretraining(
    name: str, tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare, arguments, words = BAD[name]
    prepare(tiny, monkeypatch)
    before = latest(tiny).read_bytes()
    assert train(tiny, monkeypatch, *arguments) == 1
    said = capsys.readouterr().err
    assert words in said and said.strip().startswith("Error: ") and "Traceback" not in said
    assert latest(tiny).read_bytes() == before and not Path("exploded").exists()
    assert [path.name for path in output_folder(tiny).glob("*.pth")] == [latest(tiny).name], "nothing half-written"
    assert not [path for path in output_folder(tiny).iterdir() if path.name.startswith(".tmp-")]


def test_a_downstream_training(
    tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_plan(tiny, lambda configuration: configuration.update(ssl={"min_transfered": 0.5}))
    assert train(tiny, monkeypatch, trainer="SSLFineTuneTrainer") == 1
    said = capsys.readouterr().err
    assert 'Did you mean "min_transferred"' in said and "Traceback" not in said


def test_one_case_is_enough(
    tmp_path: Path, tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in tiny.preprocessed_cases.glob(f"{tiny.cases[1]}*"):
        path.unlink()
    assert train(tiny, monkeypatch) == 0
    assert "Only one volume" in capsys.readouterr().out and metrics(output_folder(tiny))


def test_validation_alone_writes_the_report(tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = output_folder(tiny)
    final = latest(tiny).replace(folder / "checkpoint_final.pth")
    before = final.read_bytes()
    assert train(tiny, monkeypatch, "--val") == 0
    assert (folder / "representation_report" / "representation.json").is_file()
    assert "nothing was segmented" in (folder / "validation" / "summary.json").read_text(encoding="utf-8")
    assert final.read_bytes() == before and not (folder / "metrics.jsonl").exists(), "it trained"


def test_prediction_with_a_pretraining_is_refused(
    tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from nnunetv2.inference.predict_from_raw_data import predict_entry_point

    latest(tiny).replace(output_folder(tiny) / "checkpoint_final.pth")
    for name in ("plans.json", "dataset.json"):  # as a training that has begun leaves them beside the folds
        source = tiny.preprocessed / tiny.dataset_name / name.replace("plans", tiny.plans_name)
        (output_folder(tiny).parent / name).write_bytes(source.read_bytes())
    images = tiny.raw / tiny.dataset_name / "imagesTr"
    status = run(monkeypatch, predict_entry_point, "-d", str(tiny.dataset_id), "-i", str(images), "-o", "predicted",
                 "-f", "all", "-tr", TRAINER, "-c", tiny.configuration, "-p", tiny.plans_name, "-device", "cpu",
                 "-npp", "0", "-nps", "0")  # fmt: skip
    said = capsys.readouterr().err
    assert status == 1 and "This is a pretraining network" in said and "nnunet_ssl adapt" in said
    assert "Traceback" not in said and not list(Path("predicted").glob("*.nii.gz"))
