"""The guard of the benchmark: no score on a case that the pretraining has seen, unless it is asked for and marked."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunet_ssl.bench.grid import Dataset, Grid, read_grid
from nnunet_ssl.bench.leakage import Cache, Guard, scored_hashes
from nnunet_ssl.bench.report import write_report
from nnunet_ssl.bench.results import read_results
from nnunet_ssl.bench.runner import Runner
from nnunet_ssl.cli.main import main
from nnunet_ssl.errors import UserError
from nnunet_ssl.nnunet.splits import validation_cases
from nnunet_ssl.nnunet.volumes import Unusable, content_hash
from tests.plan_datasets import folders
from tests.test_bench import GRID, bench, write_grid

__all__ = ["bench", "folders"]  # fixtures

SHORT = GRID.replace('labelled = [1, 2, "all"]', "labelled = [1]").replace("draws = 2", "draws = 1")


@pytest.fixture
def seen(bench: SimpleNamespace) -> SimpleNamespace:
    """A dataset with two test images, and a function that writes a checkpoint with these volumes into the grid."""
    raw = bench.commands.raw
    (raw / "imagesTs").mkdir(exist_ok=True)
    for number in range(2):
        image = sitk.GetImageFromArray(np.random.default_rng(number).normal(size=(6, 8, 8)).astype(np.float32))
        image.SetSpacing((1.0, 1.0, 2.0))
        sitk.WriteImage(image, str(raw / "imagesTs" / f"test_{number}_0000.nii.gz"))
    source = torch.load(bench.folders / "weights.pth", weights_only=True)

    def write(volumes: object, text: str = SHORT) -> Grid:
        content = {**source, "ssl": {**source["ssl"], "volumes": volumes}}
        torch.save(content, bench.folders / "seen.pth")
        return read_grid(write_grid(bench.folders, text, bench.folders / "seen.pth"))

    return SimpleNamespace(**vars(bench), raw=raw, write=write)


def hash_of(path: Path) -> str:
    return content_hash(sitk.ReadImage(str(path)))


def runner(seen: SimpleNamespace, grid: Grid, allow: bool = False) -> Runner:
    return Runner(grid, "cpu", run=seen.commands, allow_leakage=allow)


def test_a_pretraining_that_has_seen_a_test_case_is_refused(
    seen: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the test case has its axes stored another way: it is the same volume."""
    path = seen.raw / "imagesTs" / "test_1_0000.nii.gz"
    grid = seen.write({"elsewhere": hash_of(path), "other": "0" * 64})
    sitk.WriteImage(sitk.DICOMOrient(sitk.ReadImage(str(path)), "SRP"), str(path))
    assert main(["bench", "run", str(grid.path), "-device", "cpu"]) == 1
    said = capsys.readouterr().err
    assert "test cases of dataset 4: test_1 (there elsewhere)." in said and "--allow-leakage" in said
    assert '"first"' in said and '"second"' in said and "--exclude" in said
    assert read_results(grid.results) == [] and seen.commands.calls == []


def test_allowed_leakage_is_in_every_row_and_table(seen: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    grid = seen.write({"elsewhere": hash_of(seen.raw / "imagesTs" / "test_1_0000.nii.gz")})
    rows = runner(seen, grid, allow=True).all()
    assert "WARNING: The pretraining" in capsys.readouterr().out
    for row in rows:
        expected = {"status": "leaked", "cases": {"test_1": "elsewhere"}, "reason": ""}
        assert row["status"] == "done" and row["leakage"] == (None if row["job"]["protocol"] == "scratch" else expected)
    folder = write_report(grid)
    arms = list(csv.DictReader((folder / "arms.csv").open()))
    marked = [row["note"].startswith("LEAKED: pretrained on 1 scored case") for row in arms]
    assert marked == ["scratch" not in row["arm"] for row in arms] and sum(marked) == 4
    for name in ("table.md", "table.tex", "arms.json", "index.html"):
        assert (folder / name).read_text().count("LEAKED") == 4, name
    assert "Rows of pretrainings that have seen scored cases: 4;" in (folder / "index.html").read_text()
    subjects = list(csv.DictReader((folder / "subjects.csv").open()))
    assert {(row["protocol"] == "scratch", row["subject"], row["leakage"]) for row in subjects} == {
        (False, "test_0", ""), (False, "test_1", "leaked"), (True, "test_0", ""), (True, "test_1", ""),
    }  # fmt: skip


def test_other_volumes_are_no_leakage(seen: SimpleNamespace) -> None:
    """A cropped copy is another volume: that is a limit, and documented. A test image without a label is not scored."""
    image = sitk.ReadImage(str(seen.raw / "imagesTs" / "test_1_0000.nii.gz"))
    sitk.WriteImage(image + 1, str(seen.raw / "imagesTs" / "unscored_0000.nii.gz"))
    volumes = {"cropped": content_hash(image[1:]), "unscored": content_hash(image + 1)}
    rows = runner(seen, seen.write(volumes)).all()
    assert {row["status"] for row in rows} == {"done"}
    found = [row["leakage"]["status"] for row in rows if row["leakage"]]
    assert found == ["clean"] * 4


@pytest.mark.parametrize("volumes", [{}, None, ["no mapping"]], ids=["empty", "none", "list"])
def test_a_checkpoint_without_a_record_is_run_and_said(
    volumes: object, seen: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = seen.write(volumes)
    rows = runner(seen, grid).all()
    said = capsys.readouterr().out
    assert said.count("WARNING: leakage into dataset 4 was not checked") == 1 and "seen.pth has no record" in said
    rows = [row for row in rows if row["leakage"]]
    assert rows and all(row["leakage"]["status"] == "unchecked" and row["leakage"]["reason"] for row in rows)
    folder = write_report(grid)
    assert (folder / "table.md").read_text().count("leakage not checked") == 4
    assert "unchecked" in (folder / "subjects.csv").read_text()


def test_an_image_that_cannot_be_read_is_not_checked(seen: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    (seen.raw / "imagesTs" / "test_0_0000.nii.gz").write_bytes(b"no image")
    runner(seen, seen.write({"a": "0" * 64})).all()
    assert "test_0_0000.nii.gz cannot be hashed: unreadable" in capsys.readouterr().out
    (seen.raw / "imagesTs" / "test_0_0000.nii.gz").unlink()
    with pytest.raises(Unusable, match=r"test_0 of .* has no image"):
        scored_hashes(Dataset(4), 0, Cache(seen.folders / "c.json"))


def test_validation_cases_of_the_fold_count(seen: SimpleNamespace) -> None:
    """Where the folds are scored: a training case of the fold may have been pretrained on, a validation case not."""
    text = SHORT.replace("tolerance_mm = 2.0", 'cases = "validation"')
    own = {f"v{i}": hash_of(seen.raw / "imagesTr" / f"c{i:03d}_0000.nii.gz") for i in range(12)}
    preprocessed = next((seen.folders / "preprocessed").glob("Dataset004_*")) / "splits_final.json"
    preprocessed.write_text(json.dumps([{"train": ["c000", "c002"], "val": ["c001"]}]))

    def status(volumes: dict[str, str]) -> tuple[str, dict[str, str]]:
        grid = seen.write(volumes, text)
        found = Guard(grid).check(next(grid.jobs()))
        assert found is not None
        return found.status, dict(found.cases)

    assert status({"v1": own["v1"]}) == ("leaked", {"c001": "v1"})
    assert status({"v0": own["v0"], "v2": own["v2"]}) == ("clean", {})
    grid = seen.write(own, text)
    with pytest.raises(UserError, match=r"validation cases of fold 0 of dataset 4: c001 \(there v1\)"):
        runner(seen, grid).all()
    text = text.replace("folds = [0]", 'folds = ["all"]')
    assert status({"v0": own["v0"]}) == ("leaked", {"c000": "v0"})


def test_recorded_hashes_are_believed_and_others_are_kept_beside_the_grid(seen: SimpleNamespace) -> None:
    (seen.raw / "import_report.json").write_text(json.dumps({"volumes": {}, "test_volumes": {"test_0": "f" * 64}}))
    before = sorted(path for path in seen.raw.rglob("*"))
    grid = seen.write({"x": "f" * 64})
    guard = Guard(grid)
    found = guard.check(next(grid.jobs()))
    assert found is not None and found.cases == {"test_0": "x"} and guard.check(next(grid.jobs())) is found
    kept = json.loads((seen.folders / "grid.hashes.json").read_text())
    path = seen.raw / "imagesTs" / "test_1_0000.nii.gz"
    assert list(kept) == [str(path.resolve())] and kept[str(path.resolve())]["hashes"] == [hash_of(path)]
    assert sorted(path for path in seen.raw.rglob("*")) == before  # nothing of ours in the user's folder


def test_the_cache_notices_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nnunet_ssl.bench import leakage

    path, calls = tmp_path / "a.nii.gz", []

    def counted(function: Callable[[sitk.Image], str]) -> Callable[[sitk.Image], str]:
        return lambda image: (calls.append(1), function(image))[1]

    monkeypatch.setattr(leakage, "content_hash", counted(content_hash))
    sitk.WriteImage(sitk.GetImageFromArray(np.arange(60, dtype=np.float32).reshape(3, 4, 5)), str(path))
    cache = Cache(tmp_path / "cache.json")
    first = cache.hashes(str(path))
    cache.write()
    assert Cache(tmp_path / "cache.json").hashes(str(path)) == first == [hash_of(path)] and len(calls) == 1
    sitk.WriteImage(sitk.GetImageFromArray(np.arange(90, dtype=np.float32).reshape(3, 6, 5)), str(path))
    assert Cache(tmp_path / "cache.json").hashes(str(path)) == [hash_of(path)] != first and len(calls) == 2
    (tmp_path / "cache.json").write_text("{")
    assert Cache(tmp_path / "cache.json").hashes(str(path)) == [hash_of(path)]


def test_folds_are_those_of_the_stock_trainer(tmp_path: Path) -> None:
    """Its own do_split, called on a stand-in that has what it reads."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    cases = [f"case_{i:02d}" for i in range(13)]

    def stock(fold: int | str) -> list[str]:
        class Listed:
            def __init__(self, *_: object, **__: object) -> None:
                self.identifiers = cases

            @staticmethod
            def get_identifiers(_: object) -> list[str]:
                return cases

        trainer = SimpleNamespace(
            dataset_class=Listed, fold=fold, preprocessed_dataset_folder=str(tmp_path),
            preprocessed_dataset_folder_base=str(tmp_path), folder_with_segs_from_previous_stage=None,
            print_to_log_file=lambda *_: None,
        )  # fmt: skip
        return sorted(map(str, nnUNetTrainer.do_split(trainer)[1]))

    for fold in (0, 4, 7, "all"):
        expected = validation_cases([tmp_path / "none"], cases, fold)
        assert stock(fold) == expected == validation_cases([tmp_path], cases, fold)  # before and with its file
    (tmp_path / "splits_final.json").write_text('[{"train": ["case_00"], "val": ["case_05", "case_03"]}]')
    assert validation_cases([tmp_path / "none", tmp_path], cases, 0) == stock(0) == ["case_03", "case_05"]
    assert validation_cases([tmp_path], cases, 1) == stock(1)
    (tmp_path / "splits_final.json").write_text('[{"train": []}]')
    with pytest.raises(UserError, match="no folds there"):
        validation_cases([tmp_path], cases, 0)
    with pytest.raises(UserError, match="4 cases: no folds"):
        validation_cases([], cases[:4], 0)


def test_what_prepare_and_import_record_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a download to a refusal: the test cases of a prepared dataset, pretrained on by way of `import`."""
    from nnunet_ssl.bench.prepare import PrepareRequest, prepare
    from nnunet_ssl.nnunet.checkpoints import volume_hashes
    from nnunet_ssl.nnunet.importing import ImportRequest, import_dataset
    from tests.download_tools import acdc

    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    source = acdc(tmp_path / "download")
    prepare(PrepareRequest("ACDC", str(source), 27))
    import_dataset(ImportRequest([str(source / "testing" / "patient101" / "patient101_frame01.nii.gz")], 901, "Scans",
                                 ["cineMRI"]))  # fmt: skip
    volumes = volume_hashes("Dataset901_Scans")
    hashes = scored_hashes(Dataset(27), 0, Cache(tmp_path / "cache.json"))
    assert len(hashes) == 100 and not (tmp_path / "cache.json").exists()
    assert [case for case, own in hashes.items() if own == list(volumes.values())] == ["patient101_frame01"]
