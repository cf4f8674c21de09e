"""`nnunet_ssl import`: formats, channels, names, exclusion, hashes and orientations."""

from __future__ import annotations

import io
import json
import sys

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_ssl.nnunet.phantom_dataset import write_dataset
from nnunet_ssl.nnunet.volumes import content_hash
from tests.import_tools import body, bring_in, cases_of, commands, places, write

__all__ = ["places"]  # a fixture


def test_a_dataset_that_nnunet_accepts(places):
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

    write_dataset(places / "scans", 2, shape=(24, 32, 32), labelled=False)
    imported = bring_in(places, processes=2)
    assert imported.folder == places / "raw" / "Dataset901_T"
    assert cases_of(imported) == ["phantom_000", "phantom_001"]
    content = json.loads((imported.folder / "dataset.json").read_text())
    assert content["ssl_foreground"] is True and content["numTraining"] == 2
    assert content["labels"] == {"background": 0, "foreground": 1} and content["channel_names"] == {"0": "CT"}
    assert "overwrite_image_reader_writer" not in content
    verify_dataset_integrity(str(imported.folder), 1)
    image = imported.folder / "imagesTr" / "phantom_000_0000.nii.gz"
    assert image.is_symlink() and image.resolve() == (places / "scans" / "phantom_000.nii.gz").resolve()
    label = sitk.GetArrayFromImage(sitk.ReadImage(str(imported.folder / "labelsTr" / "phantom_000.nii.gz")))
    assert 0.1 < (label == 1).mean() < 0.7 and set(np.unique(label)) == {0, 1}
    assert json.loads((imported.folder / "import_report.json").read_text()) == imported.report


def seven_scans_of_which_two_are_unusable(places):
    for number in range(7):
        write(places / f"scans/s{number}.nii.gz", body(number, (12 + number, 20, 24)))
    (places / "scans/s2.nii.gz").write_text("no image")
    (places / "scans/s5.nii.gz").write_bytes(b"")


def test_several_processes_make_the_same_dataset(places):
    seven_scans_of_which_two_are_unusable(places)
    found = []
    for number in (0, 3):
        imported = bring_in(places, processes=number, overwrite=True)
        masks = {p.name: sitk.GetArrayFromImage(sitk.ReadImage(str(p))) for p in imported.folder.glob("labelsTr/*")}
        found.append((imported.report, masks))
    (alone, masks), (together, others) = found
    assert together == alone and sorted(alone["imported"]) == ["s0", "s1", "s3", "s4", "s6"]
    assert sorted(masks) == sorted(others) == [f"{name}.nii.gz" for name in sorted(alone["imported"])]
    for name, mask in masks.items():
        np.testing.assert_array_equal(others[name], mask)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("processes", [0, 2])
def test_a_progress_bar_counts_the_cases_on_a_terminal_and_only_there(places, monkeypatch, processes):
    seven_scans_of_which_two_are_unusable(places)
    for stream in (Terminal(), io.StringIO()):
        monkeypatch.setattr(sys, "stderr", stream)
        bring_in(places, processes=processes, overwrite=True)
        shown = stream.getvalue()
        if stream.isatty():
            assert "Importing:   0%" in shown and "0/7" in shown
            assert "Importing: 100%" in shown and "7/7" in shown
        else:
            assert shown == ""


def test_copies_instead_of_links(places):
    source = write(places / "scans" / "a.nii.gz", body())
    image = bring_in(places, copy=True).folder / "imagesTr" / "a_0000.nii.gz"
    assert not image.is_symlink() and image.read_bytes() == source.read_bytes()


def test_files_folders_and_globs_of_several_formats(places):
    for number, ending in enumerate((".nii.gz", ".nii", ".nrrd", ".mha")):
        write(places / f"scans/deep/er/{ending[1:3]}{number}{ending}", body(number))
    write(places / "other" / "x1.mha", body(7))
    write(places / "other" / "x2.mha", body(8))
    write(places / "other" / "y.mha", body(9))
    imported = bring_in(places, places / "scans", places / "other" / "x*.mha", places / "other" / "y.mha")
    assert cases_of(imported) == ["mh3", "ni0", "ni1", "nr2", "x1", "x2", "y"]
    images = sorted(imported.folder.glob("imagesTr/*"))
    assert len(images) == 7 and all(path.name.endswith("_0000.nii.gz") for path in images)
    assert [path.name for path in images if path.is_symlink()] == ["ni0_0000.nii.gz"]
    converted = sitk.ReadImage(str(imported.folder / "imagesTr" / "nr2_0000.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(converted), body(2))
    np.testing.assert_allclose(converted.GetSpacing(), (2, 2, 3))


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_one_format_that_nnunet_reads_is_kept(places, ending):
    write(places / f"scans/a{ending}", body())
    imported = bring_in(places)
    assert (imported.folder / f"imagesTr/a_0000{ending}").is_symlink()
    assert (imported.folder / f"labelsTr/a{ending}").is_file()
    assert json.loads((imported.folder / "dataset.json").read_text())["file_ending"] == ending


def test_several_channels(places):
    for case in ("a", "b"):
        for channel in range(2):
            write(places / f"scans/{case}_{channel:04d}.nii.gz", body(channel + ord(case)))
    write(places / "scans/c_0000.nii.gz", body(5))
    write(places / "scans/d_0000.nii.gz", body(6))
    write(places / "scans/d_0001.nii.gz", body(6, (12, 20, 23)))
    imported = bring_in(places, channels=["T1", "T2"])
    assert cases_of(imported) == ["a", "b"]
    assert sorted(imported.report["volumes"]) == ["a_0000", "a_0001", "b_0000", "b_0001"]
    skipped = imported.report["skipped"]
    assert "found 1, expected 2" in skipped["c"]["reason"] and "size" in skipped["d"]["reason"]
    assert sorted(p.name for p in imported.folder.glob("imagesTr/*"))[:2] == ["a_0000.nii.gz", "a_0001.nii.gz"]


def test_channels_in_the_fourth_axis_are_split(places):
    image = sitk.JoinSeries([sitk.GetImageFromArray(body(c)) for c in range(2)])
    sitk.WriteImage(image, str(places / "scans" / "a.nii.gz"))
    imported = bring_in(places, channels=["T1", "T2"])
    for channel in range(2):
        path = imported.folder / f"imagesTr/a_{channel:04d}.nii.gz"
        assert not path.is_symlink()
        np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), body(channel))


def test_names_of_cases(places):
    write(places / "scans/p1/ct.nii.gz", body(1))  # every patient's file has one name
    write(places / "scans/p2/ct.nii.gz", body(2))
    write(places / "scans/with space (1).nii.gz", body(3))
    write(places / "scans/odd_seg.nii.gz", body(4))  # nnU-Net would take it for a segmentation
    write(places / "scans/case_0001.nii.gz", body(5))  # numbered cases without channel suffix
    write(places / "scans/case_0002.nii.gz", body(6))
    write(places / "scans/._p1.nii.gz", body(7))  # left by macOS in many archives
    imported = bring_in(places)
    assert cases_of(imported) == ["case_0001", "case_0002", "odd_seg_", "p1_ct", "p2_ct", "with_space_1"]
    assert not imported.report["skipped"]


def test_numbered_cases_that_look_like_channels_are_told_how_to_be_imported(places):
    for number in range(5):
        write(places / f"scans/scan_{number:04d}.nii.gz", body(number))
    write(places / "scans/good.nii.gz", body(9))
    imported = bring_in(places)
    assert cases_of(imported) == ["good"]
    reason = imported.report["skipped"]["scan"]["reason"]
    assert "found 0000, 0001, 0002, 0003, 0004, expected 0000" in reason
    assert "numbered cases, give them names without four digits at the end, like scan_1" in reason
    for path in (places / "scans").glob("scan_*"):  # as it says
        path.rename(path.with_name(path.name.replace("_000", "_")))
    assert len(cases_of(bring_in(places, overwrite=True))) == 6


def test_label_folders_are_no_images(places):
    write(places / "scans/imagesTr/a.nii.gz", body())
    write(places / "scans/labelsTr/a.nii.gz", body(1))
    imported = bring_in(places)
    assert cases_of(imported) == ["a"] and "labelsTr" in imported.notes[0]


def test_from_a_raw_dataset_without_its_test_cases(places):
    folder = places / "raw" / "Dataset004_Labelled"
    names = write_dataset(folder, 3, "MR", shape=(16, 24, 24), num_test=1)
    listed = places / "tests.txt"
    listed.write_text(f"# validation\n{names[1]}_0000.nii.gz\n\n{names[2]}  # also\nnot_there\n")
    imported = bring_in(places, sources=[], from_dataset="4", channels=[], exclude=str(listed))
    assert cases_of(imported) == names[:1]
    assert imported.report["channels"] == ["MRI"]
    assert imported.report["excluded"] == names[1:3] and imported.report["excluded_not_found"] == ["not_there"]
    link = imported.folder / "imagesTr" / f"{names[0]}_0000.nii.gz"
    assert link.resolve() == (folder / "imagesTr" / f"{names[0]}_0000.nii.gz").resolve()


def test_exclusion_by_path_and_folder(places):
    for patient in ("p1", "p2", "p3", "p4"):
        write(places / f"scans/{patient}/ct.nii.gz", body(ord(patient[1])))
    listed = places / "list.txt"
    listed.write_text("p1/ct.nii.gz\np2\np3_ct\n")
    imported = bring_in(places, exclude=str(listed))
    assert cases_of(imported) == ["p4_ct"] and not imported.report["excluded_not_found"]


@pytest.mark.parametrize(("source", "files"), [
    ("scans", []), ("scans/*/ct.nii.gz", []), ("scans/p?", []), ("", ["p1", "p2"]),
    ("", ["p1/ct.nii.gz", "p2/ct.nii.gz"]),
])
def test_a_folder_above_the_source_excludes_nothing(places, source, files):
    for patient in ("p1", "p2"):
        write(places / f"scans/{patient}/ct.nii.gz", body(ord(patient[1])))
    above = [places.name, str(places), f"{places.parent.name}/{places.name}", places.parts[1]]
    (places / "list.txt").write_text("\n".join([*above, "p2"]))
    sources = [places / "scans" / file for file in files] or [places / source]
    imported = bring_in(places, *sources, exclude=str(places / "list.txt"))
    assert len(cases_of(imported)) == 1 and len(imported.report["excluded"]) == 1
    assert imported.report["imported"][cases_of(imported)[0]]["files"] == [str(places / "scans/p1/ct.nii.gz")]
    assert imported.report["excluded_not_found"] == above


def test_identical_volumes_are_reported_and_copies_of_excluded_ones_kept_out(places):
    write(places / "scans/a.nii.gz", body(1))
    write(places / "scans/b.mha", body(1).astype(np.float32))
    write(places / "scans/test.nii.gz", body(2))
    write(places / "scans/same_as_test.nrrd", body(2))
    listed = places / "list.txt"
    listed.write_text("test\n")
    report = bring_in(places, exclude=str(listed)).report
    assert report["identical"] == [["a", "b"]]
    assert "excluded case test" in report["skipped"]["same_as_test"]["reason"]
    assert not list((places / "raw").glob("*/*/same_as_test*"))


def test_a_copy_of_an_excluded_case_takes_no_other_case_with_it(places):
    """Its name is the beginning of another's, up to a dot."""
    write(places / "scans/test.nii.gz", body(2))
    write(places / "scans/1.2.nii.gz", body(2))
    write(places / "scans/1.2.3.nii.gz", body(3))
    (places / "list.txt").write_text("test\n")
    imported = bring_in(places, exclude=str(places / "list.txt"))
    assert cases_of(imported) == ["1.2.3"]
    left = sorted(str(path.relative_to(imported.folder)) for path in imported.folder.glob("*/*"))
    assert left == ["imagesTr/1.2.3_0000.nii.gz", "labelsTr/1.2.3.nii.gz"]


def test_content_hash_is_of_what_is_shown():
    image = sitk.GetImageFromArray(np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32))
    image.SetSpacing((0.7, 0.8, 2.0))
    reference = content_hash(image)
    turned = sitk.DICOMOrient(image, "SRP")
    assert turned.GetSize() != image.GetSize() and content_hash(turned) == reference
    moved = sitk.Image(image)
    moved.SetOrigin((10, 20, 30))
    moved.SetSpacing((0.7000001, 0.8, 2.0))
    assert content_hash(moved) == reference
    coarser, brighter = sitk.Image(image), image + 1
    coarser.SetSpacing((0.7, 0.8, 2.01))
    assert len({reference, content_hash(coarser), content_hash(brighter), content_hash(image[:, :, 1:])}) == 4


def test_mixed_orientations_get_the_reorienting_reader(places):
    from nnunetv2.imageio.nibabel_reader_writer import NibabelIOWithReorient

    lps = sitk.ReadImage(str(write(places / "scans/a.mha", body())))
    sitk.WriteImage(sitk.DICOMOrient(lps, "PIR"), str(places / "scans/b.mha"))
    imported = bring_in(places)
    content = json.loads((imported.folder / "dataset.json").read_text())
    assert content["overwrite_image_reader_writer"] == "NibabelIOWithReorient"
    assert content["file_ending"] == ".nii.gz"
    assert imported.report["orientations"] == {"LPS": 1, "PIR": 1}
    assert imported.report["identical"] == [["a", "b"]]
    reader = NibabelIOWithReorient()
    images = [reader.read_images([str(imported.folder / f"imagesTr/{c}_0000.nii.gz")])[0] for c in "ab"]
    masks = [reader.read_seg(str(imported.folder / f"labelsTr/{c}.nii.gz"))[0] for c in "ab"]
    np.testing.assert_array_equal(images[0], images[1])
    np.testing.assert_array_equal(masks[0], masks[1])
    assert 0 < masks[0].mean() < 1
    assert not list(imported.folder.glob("*/*.mha"))


def test_mixed_orientations_are_planned_and_preprocessed_by_the_reorienting_reader(places):
    lps = sitk.ReadImage(str(write(places / "scans/a.nii.gz", body(0, (16, 24, 28)))))
    sitk.WriteImage(sitk.DICOMOrient(lps, "PIR"), str(places / "scans/b.nii.gz"))
    bring_in(places)
    commands("plan -d 901 --preset tiny --preprocess")
    preprocessed = places / "preprocessed/Dataset901_T"
    assert json.loads((preprocessed / "nnssl_tinyPlans.json").read_text())["image_reader_writer"] == (
        "NibabelIOWithReorient")
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    data = nnUNetDatasetBlosc2(str(preprocessed / "nnssl_tinyPlans_3d_fullres"))
    (image, mask, *_), (other, other_mask, *_) = (data.load_case(case) for case in "ab")
    np.testing.assert_allclose(image[:], other[:], atol=1e-4)
    np.testing.assert_array_equal(mask[:], other_mask[:])


def test_values_that_are_no_hounsfield_units_are_mentioned(places):
    write(places / "scans/a.nii.gz", (body() + 2000).astype(np.int16))
    assert "Hounsfield" in bring_in(places).report["warnings"]["a"][0]


def test_real_volumes(places, shared_data):
    sources = [shared_data / "OpenKBP/images" / f"kbp_{n:03d}.nii.gz" for n in (51, 143)]
    imported = bring_in(places, *sources)
    shares = [row["foreground"] for row in imported.report["imported"].values()]
    assert len(shares) == 2 and all(0.002 < share < 0.05 for share in shares)
