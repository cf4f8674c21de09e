"""What nnU-Net's planner knows of a dataset's images: their fingerprint, taken of images that are whole."""

from __future__ import annotations

from typing import Any

from nnunet_ssl.errors import UserError
from nnunet_ssl.nnunet.datasets import RawDataset, load_json, processes, quiet_planning
from nnunet_ssl.nnunet.pool import run_all
from nnunet_ssl.nnunet.volumes import damage


def fingerprint(dataset: RawDataset) -> dict[str, Any]:
    """The dataset's fingerprint, made by nnU-Net where it is missing or belongs to another number of cases.

    Raises UserError for damaged images: their missing voxels would count as intensities.
    """
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor

    path = dataset.folder / "dataset_fingerprint.json"
    if path.is_file():
        content = load_json(path)
        if len(content.get("spacings", [])) == len(dataset.cases):
            return content
    check_images(dataset)
    try:
        with quiet_planning():
            extractor = DatasetFingerprintExtractor(dataset.name, min(processes(), len(dataset.cases)))
            extractor.dataset, extractor.dataset_json = dataset.cases, dataset.json
            extractor.run(overwrite_existing=True)
    except OSError as error:
        raise UserError(
            f"The fingerprint of {dataset.name} could not be made: {error}. Check the room in {path.parent} and the "
            "permissions of the named file."
        ) from error
    except Exception as error:
        raise UserError(
            f"The fingerprint of {dataset.name} could not be made: {str(error).strip()[:300]}. Check the images and "
            f"labels, e.g. with `nnUNetv2_extract_fingerprint -d {dataset.id} --verify_dataset_integrity`."
        ) from error
    return load_json(path)


def check_images(dataset: RawDataset) -> None:
    """UserError naming the images that are damaged. nnU-Net would not notice: the readers fill what is missing by 0.

    A dataset is checked once; every file of it is read for that.
    """
    if dataset.checked:
        return
    cases = [(case, list(files["images"])) for case, files in dataset.cases.items()]
    workers = 0 if len(cases) == 1 else min(processes(), len(cases))
    found = run_all(damage, cases, workers, "Checking images", lambda case: f"{case[0]}: the reader crashed")
    reasons = [reason for reason in found if reason]
    if reasons:
        more = f" (and {len(reasons) - 3} more)" if len(reasons) > 3 else ""
        raise UserError(
            f"{dataset.name} has damaged images. {'; '.join(reasons[:3])}{more}. Mend or remove the cases, then run "
            "the command again."
        )
    dataset.checked = True
