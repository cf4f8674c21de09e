"""`nnunet_ssl import --overwrite`: nothing that was computed from the old images is trained on afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nnunet_ssl.errors import UserError
from nnunet_ssl.nnunet import moving
from nnunet_ssl.nnunet.preprocessing import RECORD
from tests.import_tools import body, bring_in, commands, places, write

__all__ = ["places"]  # a fixture

DATA = "preprocessed/Dataset901_T"
SHAPE = (16, 24, 24)


def highest(places, folder: str, case: str) -> float:
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    return float(np.asarray(nnUNetDatasetBlosc2(str(places / DATA / folder)).load_case(case)[0][:]).max())


def test_excluded_and_replaced_images_leave_the_preprocessed_data(places):
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class, nnUNetDatasetBlosc2

    bring = f"import {places / 'scans'} -d 901 -n T --channel CT -np 0"
    for number, name in enumerate(("a", "b", "test1")):
        write(places / f"scans/{name}.nii.gz", body(number, SHAPE))
    commands(bring, "plan -d 901 --preset tiny --preprocess")
    folder = places / DATA / "nnssl_tinyPlans_3d_fullres"
    assert sorted(nnUNetDatasetBlosc2.get_identifiers(str(folder))) == ["a", "b", "test1"]
    (places / DATA / "splits_final.json").write_text("[]")
    old = highest(places, folder.name, "a")

    brighter = body(3, SHAPE)
    brighter[4:8, 10:14, 10:14] = 900
    write(places / "scans/a.nii.gz", brighter)
    (places / "list.txt").write_text("test1\n")
    bring += f" --exclude {places / 'list.txt'} --overwrite"
    said = commands(bring, "plan -d 901 --preset tiny", "plan -d 901 --preset tiny -n other --preprocess")
    replanned, other = said.split("### main plan")[1:]
    assert "nnUNetv2_preprocess -d 901 -plans_name nnssl_tinyPlans" in replanned
    assert not folder.exists() and not (places / DATA / "splits_final.json").exists()
    assert "already preprocessed" not in other
    new = places / DATA / "other_3d_fullres"
    assert sorted(nnUNetDatasetBlosc2.get_identifiers(str(new))) == ["a", "b"]
    assert sorted(path.name for path in (places / DATA / "gt_segmentations").iterdir()) == ["a.nii.gz", "b.nii.gz"]
    assert highest(places, new.name, "a") > old + 3
    report = json.loads((places / "raw/Dataset901_T/import_report.json").read_text())
    assert json.loads((new / RECORD).read_text())["volumes"] == report["volumes"]
    assert infer_dataset_class(str(new)) is nnUNetDatasetBlosc2  # which allows no other kind of file beside the cases


def preprocessed(places) -> Path:
    """What a plan and its preprocessing leave, and something of the user's."""
    base = places / DATA
    for name in ("plan_3d_fullres/a.pkl", "plan_3d_fullres/a.b2nd", "ssl_foreground_masks/a.nii.gz",
                 "gt_segmentations/a.npy", "splits_final.json", "dataset_fingerprint.json", "plan.json",
                 "notes/read.me"):  # fmt: skip
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_text("{}")
    return base


def below(base: Path) -> list[str]:
    return sorted(str(path.relative_to(base)) for path in base.rglob("*") if path.is_file())


def test_plans_and_foreign_files_stay(places):
    write(places / "scans/a.nii.gz", body())
    bring_in(places)
    base = preprocessed(places)
    bring_in(places, overwrite=True)
    assert below(base) == ["notes/read.me", "plan.json"]


def test_preprocessed_data_whose_raw_dataset_was_deleted_goes_as_well(places):
    write(places / "scans/a.nii.gz", body())
    base = preprocessed(places)
    bring_in(places, overwrite=True)
    assert below(base) == ["notes/read.me", "plan.json"]


def test_linked_preprocessed_data_is_unlinked(places):
    write(places / "scans/a.nii.gz", body())
    base = preprocessed(places)
    os.replace(base / "plan_3d_fullres", places / "elsewhere")
    (base / "plan_3d_fullres").symlink_to(places / "elsewhere")
    bring_in(places, overwrite=True)
    assert sorted(path.name for path in base.iterdir()) == ["notes", "plan.json"]


def test_a_failed_overwrite_keeps_the_preprocessed_data(places, monkeypatch):
    write(places / "scans/a.nii.gz", body())
    first = bring_in(places).folder
    base = preprocessed(places)
    before = below(base), below(first)
    replace = os.replace

    def refuse(source, target):
        if Path(target) == first and ".partial-" in str(source):
            assert not (base / "plan_3d_fullres").exists()
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(moving.os, "replace", refuse)
    with pytest.raises(UserError, match="No space left"):
        bring_in(places, overwrite=True)
    assert (below(base), below(first)) == before


KILLED = """
import os, signal, sys
from pathlib import Path
from nnunet_ssl.cli.main import main
from nnunet_ssl.nnunet import moving

replace, moves = os.replace, []

def replace_or_die(source, target):
    replace(source, target)
    if ".replaced-" in Path(target).name or ".partial-" in Path(source).name:
        moves.append(target)
    if len(moves) == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)

moving.os.replace = replace_or_die
main(sys.argv[2:])
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
@pytest.mark.parametrize("moves", [1, 2, 6, 7])  # the old dataset and five things of its preprocessed data, the new one
def test_an_overwrite_that_was_killed_is_undone_or_finished_by_the_next_import(places, moves):
    write(places / "scans/a.nii.gz", body())
    first = bring_in(places).folder
    base = preprocessed(places)
    before = below(base), below(first)
    write(places / "scans/b.nii.gz", body(1))
    arguments = ["import", str(places / "scans"), "-d", "901", "-n", "T", "--channel", "CT", "-np", "0", "--overwrite"]
    done = subprocess.run([sys.executable, "-c", KILLED, str(moves), *arguments], stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=600)  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stdout
    assert first.exists() == (moves == 7)
    with pytest.raises(UserError, match="901 is taken"):
        bring_in(places)
    if moves < 7:
        assert (below(base), below(first)) == before
    else:
        assert below(base) == ["notes/read.me", "plan.json"] and (first / "labelsTr/b.nii.gz").is_file()
    assert not [*places.rglob("*.replaced-*")]
    bring_in(places, overwrite=True)
    assert [path.name for path in (places / "raw").iterdir()] == [first.name]


def test_a_dataset_that_cannot_be_moved_back_is_named(places, monkeypatch):
    write(places / "scans/a.nii.gz", body())
    hidden = places / f"raw/.Dataset901_T.replaced-{os.getpid()}"
    hidden.mkdir()

    def refuse(source, target):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(moving.os, "replace", refuse)
    with pytest.raises(UserError, match=r"Permission denied.*Rename it to Dataset901_T"):
        bring_in(places)


def test_what_a_running_import_moved_aside_is_left_alone(places):
    write(places / "scans/a.nii.gz", body())
    bring_in(places)
    hidden = places / "raw/.Dataset901_T.replaced-1"
    hidden.mkdir()
    bring_in(places, overwrite=True)
    assert hidden.is_dir()
