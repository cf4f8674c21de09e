"""DICOM series folders: regular ones come in as volumes, others are refused with the reason."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_ssl.nnunet.dicom import series_of
from nnunet_ssl.nnunet.importing import ImportRequest, import_dataset
from nnunet_ssl.nnunet.volumes import content_hash, read_volumes

SPACING = (2.5, 1.5, 1.25)  # z, y, x


def volume(slices=8, seed=0):
    image = np.full((slices, 20, 24), -1000, np.int16)
    image[:, 5:-5, 5:-5] = 40
    return image + np.random.default_rng(seed).integers(-15, 15, image.shape).astype(np.int16)


def write_series(folder, array, positions=None, uid="1.2.3.1", modality="CT", direction="1\\0\\0\\0\\1\\0"):
    """One file a slice, in an order of names that is not the order of positions."""
    folder.mkdir(parents=True, exist_ok=True)
    positions = [(0.0, 0.0, SPACING[0] * i) for i in range(len(array))] if positions is None else positions
    for number, (plane, position) in enumerate(zip(array, positions, strict=True)):
        image = sitk.GetImageFromArray(plane[None])
        image.SetSpacing(SPACING[::-1])
        tags = {
            "0008|0060": modality, "0020|000e": uid, "0020|000d": "1.2.3", "0008|0018": f"{uid}.{number + 1}",
            "0020|0032": "\\".join(f"{p:g}" for p in position), "0020|0037": direction,
            "0020|0013": str(number), "0010|0010": "Secret^Name", "0028|1052": "0", "0028|1053": "1",
        }
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(folder / f"{(number * 5) % len(array):03d}_{uid}.dcm"))
        writer.Execute(image)
    return folder


def files(folder):
    return [str(path) for path in folder.iterdir()]


def test_a_regular_series_is_the_volume(tmp_path):
    series = series_of(files(write_series(tmp_path / "s", volume(9))))
    assert len(series) == 1 and series[0].problem is None
    image = read_volumes(series[0].files)[0]
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), volume(9))
    np.testing.assert_allclose(image.GetSpacing()[::-1], SPACING)
    same = sitk.GetImageFromArray(volume(9))
    same.SetSpacing(SPACING[::-1])
    assert content_hash(image) == content_hash(same)


def missing_slice(n):
    return [(0, 0, SPACING[0] * (i + (i > 3))) for i in range(n)]


def tilted(n):
    return [(0, 0.9 * i, SPACING[0] * i) for i in range(n)]


def twice(n):
    return [(0, 0, SPACING[0] * (i // 2)) for i in range(n)]


@pytest.mark.parametrize(("positions", "words"), [
    (missing_slice, "uneven slices: 2.50 to 5.00 mm"), (tilted, "gantry tilt of 19.8"), (twice, "more than one volume"),
])
def test_positions_that_are_no_regular_stack(tmp_path, positions, words):
    [series] = series_of(files(write_series(tmp_path / "s", volume(), positions(8))))
    assert words in (series.problem or "")


def test_rounded_positions_and_an_oblique_stack_are_regular(tmp_path):
    rng = np.random.default_rng(0)
    rounded = [(0, 0, SPACING[0] * i + rng.uniform(-0.005, 0.005)) for i in range(8)]
    c, s = np.cos(0.3), np.sin(0.3)
    oblique = [(0, -s * SPACING[0] * i, c * SPACING[0] * i) for i in range(8)]
    write_series(tmp_path / "a", volume(), rounded)
    write_series(tmp_path / "b", volume(), oblique, direction=f"1\\0\\0\\0\\{c:.6f}\\{s:.6f}")
    for name in "ab":
        [series] = series_of(files(tmp_path / name))
        assert series.problem is None


def test_series_that_are_no_scans(tmp_path):
    write_series(tmp_path / "dose", volume(), modality="SEG")
    write_series(tmp_path / "one", volume(1))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 64)
    problems = {name: series_of(files(tmp_path / name))[0].problem for name in ("dose", "one", "bad")}
    assert "modality SEG" in problems["dose"] and "one slice" in problems["one"] and "unreadable" in problems["bad"]


def write_enhanced(path, array):
    """All slices in one file; SimpleITK makes it an Enhanced CT."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetMetaData("0008|0060", "CT")
    image.SetMetaData("0020|000e", "1.2.3.1")
    sitk.WriteImage(image, str(path))
    return path


def test_files_of_several_frames_are_refused_because_nothing_says_where_they_lie(tmp_path):
    write_enhanced(tmp_path / "one/a.dcm", volume())
    assert sitk.ReadImage(str(tmp_path / "one/a.dcm")).GetSize() == (24, 20, 8)
    [series] = series_of(files(tmp_path / "one"))
    assert "multi-frame" in series.problem and "dcm2niix" in series.problem


def test_a_number_of_frames_that_is_none_is_damage(tmp_path):
    path = write_enhanced(tmp_path / "a.dcm", volume())
    content = path.read_bytes()
    at = content.index(bytes([0x28, 0, 8, 0])) + 8  # the value of (0028,0008)
    assert content[at:at + 2] == b"8 "
    path.write_bytes(content[:at] + b"8x" + content[at + 2:])
    [series] = series_of([str(path)])
    assert "unreadable" in series.problem


def test_folders_are_imported_without_names_of_patients(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    scans = tmp_path / "scans"
    write_series(scans / "patient1", volume(8, 1))
    write_series(scans / "patient2", volume(8, 2), uid="1.2.3.2")
    write_series(scans / "patient2", volume(8, 3), uid="1.2.3.3")
    write_series(scans / "patient3", volume(8, 4), missing_slice(8))
    (scans / "patient1" / "notes.txt").write_text("no DICOM")
    imported = import_dataset(ImportRequest([str(scans)], 902, "D", ["CT"]))
    assert sorted(imported.report["imported"]) == ["patient1", "patient2_s1", "patient2_s2"]
    assert "uneven" in imported.report["skipped"]["patient3"]["reason"]
    image = sitk.ReadImage(str(imported.folder / "imagesTr" / "patient1_0000.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), volume(8, 1))
    assert not any("Secret" in image.GetMetaData(key) for key in image.GetMetaDataKeys())
    assert imported.report["imported"]["patient1"]["files"] == [str(scans / "patient1")]
