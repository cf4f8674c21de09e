"""`nnunet_ssl import`: what is skipped and why, what is refused, and that a dataset is whole or absent."""

from __future__ import annotations

import gzip
import io
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_ssl.cli.main import main
from nnunet_ssl.errors import UserError
from nnunet_ssl.nnunet import importing
from nnunet_ssl.nnunet.pool import run_all
from tests.import_tools import SIZE, assert_nothing_left, body, bring_in, cases_of, places, write

__all__ = ["places"]  # a fixture


def truncated(path):
    write(path, body())
    path.write_bytes(path.read_bytes()[: 3 * path.stat().st_size // 4])


def damaged(path):
    """Whole, but its voxels are not those of the checksum."""
    write(path, body())
    content = bytearray(gzip.compress(gzip.decompress(path.read_bytes()), compresslevel=0))
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


BAD = {
    "text": (lambda p: p.write_text("no image"), "unreadable"),
    "truncated": (truncated, "unreadable"),
    "damaged": (damaged, "unreadable"),
    "nobytes": (lambda p: p.write_bytes(b""), "empty"),
    "constant": (lambda p: write(p, np.full(SIZE, 7, np.int16)), "constant"),
    "nan": (lambda p: write(p, np.where(np.arange(24) == 3, np.nan, body()).astype(np.float32)), "non-finite"),
    "infinite": (lambda p: write(p, np.where(np.arange(24) == 3, np.inf, body()).astype(np.float32)), "non-finite"),
    "flat": (lambda p: write(p, body(0, (1, 20, 24))), "2D"),
    "picture": (lambda p: write(p, body()[0]), "2D"),
    "colour": (lambda p: sitk.WriteImage(sitk.GetImageFromArray(np.zeros((*SIZE, 3), "u1"), True), str(p)), "voxel"),
    "air": (lambda p: write(p, (body() * 0 - 1000 + np.arange(24) % 5).astype(np.int16)), "no body"),
    "table": (lambda p: write(p, np.where(np.arange(20)[:, None] // 2 == 8, 0, body() * 0 - 1000)), "no body"),
    "fourD": (lambda p: sitk.WriteImage(sitk.JoinSeries([sitk.GetImageFromArray(body())] * 2), str(p)), "channels"),
}


def test_unusable_volumes_are_skipped_with_their_reason(places, capsys):
    write(places / "scans" / "good.nii.gz", body())
    for name, (make, _) in BAD.items():
        make(places / "scans" / f"{name}.nii.gz")
    write(places / "scans" / "two_0000.nii.gz", body())
    write(places / "scans" / "two_0001.nii.gz", body(1))
    arguments = ["import", str(places / "scans"), "-d", "901", "-n", "T", "--channel", "CT", "-np", "0"]
    assert main(arguments) == 0
    report = json.loads((places / "raw/Dataset901_T/import_report.json").read_text())
    assert list(report["imported"]) == ["good"]
    reasons = {name: row["reason"] for name, row in report["skipped"].items()}
    assert sorted(reasons) == sorted([*BAD, "two"])
    for name, (_, word) in BAD.items():
        assert word in reasons[name], f"{name}: {reasons[name]}"
        assert "\n" not in reasons[name]
    assert "wrong number of channels" in reasons["two"]
    assert [p.name for p in (places / "raw/Dataset901_T/imagesTr").iterdir()] == ["good_0000.nii.gz"]
    assert [p.name for p in (places / "raw/Dataset901_T/labelsTr").iterdir()] == ["good.nii.gz"]
    printed = capsys.readouterr().out
    assert all(reason in printed for reason in reasons.values())
    assert "nnunet_ssl plan -d 901 --preset" in printed.splitlines()[-1]


@pytest.mark.parametrize("ending", [".nii", ".nrrd", ".mha"])
def test_truncated_and_non_finite_in_other_formats(places, ending):
    write(places / "scans" / f"good{ending}", body(3))
    truncated(places / "scans" / f"truncated{ending}")
    BAD["nan"][0](places / "scans" / f"nan{ending}")
    report = bring_in(places).report
    assert list(report["imported"]) == ["good"]
    assert "unreadable" in report["skipped"]["truncated"]["reason"]
    assert "non-finite" in report["skipped"]["nan"]["reason"]


def test_nothing_usable_leaves_nothing(places, capsys):
    (places / "scans" / "a.nii.gz").write_text("no image")
    assert main(["import", str(places / "scans"), "-d", "901", "-n", "T", "--channel", "CT", "-np", "0"]) == 1
    assert "unreadable" in capsys.readouterr().err
    assert_nothing_left(places)
    (places / "scans" / "a.nii.gz").unlink()
    with pytest.raises(UserError, match="No NIfTI"):
        bring_in(places)
    assert_nothing_left(places)


@pytest.mark.parametrize(("options", "words"), [
    ({"channels": []}, "--channel CT"), ({"dataset_id": 0}, "1 and 999"), ({"name": "a/b"}, "letters"),
    ({"exclude": "/nowhere/list.txt"}, "--exclude"), ({"from_dataset": "77"}, "No dataset 77"),
])
def test_wrong_requests(places, options, words):
    write(places / "scans" / "a.nii.gz", body())
    with pytest.raises(UserError, match=words):
        bring_in(places, **options)
    assert_nothing_left(places)


def test_missing_source_and_missing_variable(places, monkeypatch):
    with pytest.raises(UserError, match="does not exist"):
        bring_in(places, places / "nowhere")
    monkeypatch.delenv("nnUNet_raw")
    with pytest.raises(UserError, match="nnUNet_raw"):
        bring_in(places)


@pytest.mark.parametrize("raw", ["file/raw", "file"])
def test_a_folder_that_cannot_be_made_is_named(places, monkeypatch, capsys, raw):
    (places / "file").touch()
    write(places / "scans" / "a.nii.gz", body())
    monkeypatch.setenv("nnUNet_raw", str(places / raw))
    assert main(["import", str(places / "scans"), "-d", "901", "-n", "T", "--channel", "CT", "-np", "0"]) == 1
    said = capsys.readouterr().err
    assert str(places / raw) in said and "Check the path" in said
    assert (places / "file").read_bytes() == b""


@pytest.mark.parametrize("value", ["many", "0", "-2", "", "1.5"])
@pytest.mark.parametrize("command", ["import SCANS -d 901 -n T --channel CT", "plan -d 901 --preset tiny"])
def test_a_wrong_number_of_processes_is_named(places, monkeypatch, capsys, command, value):
    write(places / "scans" / "a.nii.gz", body())
    if command.startswith("plan"):
        bring_in(places)
    monkeypatch.setenv("nnUNet_def_n_proc", value)
    assert main(command.replace("SCANS", str(places / "scans")).split()) == 1
    assert f"nnUNet_def_n_proc is {value!r}, expected a whole number" in capsys.readouterr().err


def test_an_id_that_is_taken(places):
    write(places / "scans" / "a.nii.gz", body())
    first = bring_in(places)
    (places / "preprocessed/Dataset901_T").mkdir()
    fingerprint = places / "preprocessed/Dataset901_T/dataset_fingerprint.json"
    fingerprint.write_text("{}")
    before = (first.folder / "import_report.json").read_bytes()
    write(places / "scans" / "b.nii.gz", body(1))
    with pytest.raises(UserError, match="901 is taken"):
        bring_in(places, name="Other")
    assert (first.folder / "import_report.json").read_bytes() == before and fingerprint.exists()
    assert cases_of(bring_in(places, overwrite=True)) == ["a", "b"]
    assert not fingerprint.exists()  # nnU-Net would keep the old intensities
    with pytest.raises(UserError, match="-n T"):  # preprocessed data of another name
        bring_in(places, overwrite=True, name="Other")
    fingerprint.parent.rmdir()
    bring_in(places, overwrite=True, name="Other")
    assert [p.name for p in (places / "raw").iterdir()] == ["Dataset901_Other"]


def test_a_failed_overwrite_keeps_the_old_dataset(places):
    source = write(places / "scans" / "a.nii.gz", body())
    first = bring_in(places)
    source.write_text("no image")
    with pytest.raises(UserError, match="Nothing usable"):
        bring_in(places, overwrite=True)
    with pytest.raises(UserError, match="lies in the dataset"):
        bring_in(places, first.folder / "labelsTr" / "a.nii.gz", overwrite=True)
    assert [p.name for p in (places / "raw").iterdir()] == ["Dataset901_T"]
    assert (first.folder / "labelsTr" / "a.nii.gz").is_file()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_or_failed_import_leaves_nothing(places, monkeypatch, error):
    write(places / "scans/a.nii.gz", body())

    def converted_then_stopped(function, tasks, *_):
        if not tasks:
            return []
        assert function(tasks[0]).reason is None
        assert len(list((places / "raw").glob(".*/labelsTr/*"))) == 1
        raise error

    monkeypatch.setattr(importing, "run_all", converted_then_stopped)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else UserError):
        bring_in(places)
    assert_nothing_left(places)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_terminated_import_leaves_nothing(places):
    """A pipe that nobody writes into keeps the import from ending by itself."""
    write(places / "scans/a.nii.gz", body())
    os.mkfifo(places / "scans/b.nii.gz")
    command = [sys.executable, "-m", "nnunet_ssl.cli.main", "import", str(places / "scans"), "-d", "901", "-n", "T",
               "--channel", "CT", "-np", "2"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 300
        while not list((places / "raw").glob(".*/labelsTr/*")) and time.monotonic() < deadline:
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=300) == 130
    finally:
        process.kill()
        process.communicate()
    assert_nothing_left(places)


def test_what_a_killed_import_left_is_removed_by_the_next(places):
    finished = subprocess.Popen([sys.executable, "-c", ""])
    finished.wait(timeout=600)
    left = places / "raw" / f".Dataset901_T.partial-{finished.pid}"
    running = places / "raw" / ".Dataset901_T.partial-1"
    for folder in (left, running):
        (folder / "imagesTr").mkdir(parents=True)
    write(places / "scans/a.nii.gz", body())
    bring_in(places)
    assert sorted(p.name for p in (places / "raw").iterdir()) == [".Dataset901_T.partial-1", "Dataset901_T"]


def double_or_die(number):
    if number == 3:
        os._exit(9)
    return 2 * number


def test_a_task_that_kills_its_process_is_found_among_many(monkeypatch):
    shown = io.StringIO()
    shown.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", shown)
    tasks = [1, 3, 5, 7, 3, 9, 11]
    assert run_all(double_or_die, tasks, 3, "Tasks", died=lambda task: -task) == [2, -3, 10, 14, -3, 18, 22]
    assert "Tasks: 100%" in shown.getvalue() and "7/7" in shown.getvalue()
