"""nnU-Net's preprocessing, and when it can be left out because another plan has made the same data."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_ssl.errors import UserError
from nnunet_ssl.nnunet.datasets import (
    VOLUMES,
    RawDataset,
    environment_folder,
    load_json,
    plans_in,
    processes,
    publish_dataset_json,
)
from nnunet_ssl.nnunet.files import write_json
from nnunet_ssl.nnunet.fingerprints import check_images
from nnunet_ssl.nnunet.import_report import REPORT
from nnunet_ssl.nnunet.planners import plans_path, resolved
from nnunet_ssl.nnunet.settings import DATA_KEYS

SHARED_KEYS = ("transpose_forward", "image_reader_writer")


def data_facts(plans: Mapping[str, Any], name: str) -> dict[str, Any]:
    """All that the preprocessed images of a configuration depend on."""
    configuration = resolved(plans, name)
    facts = {key: configuration.get(key) for key in DATA_KEYS}
    facts |= {key: plans.get(key) for key in SHARED_KEYS}
    facts["spacing"] = [round(float(s), 5) for s in configuration["spacing"]]
    facts["dimensions"] = len(configuration["patch_size"])
    properties = plans["foreground_intensity_properties_per_channel"]
    names = ("mean", "std", "percentile_00_5", "percentile_99_5")
    facts["intensities"] = [  # z-scores come from each image
        [round(float(properties[str(channel)][key]), 4) for key in names] if scheme == "CTNormalization" else None
        for channel, scheme in enumerate(configuration["normalization_schemes"])
    ]
    return facts


def is_preprocessed(dataset: RawDataset, identifier: str) -> bool:
    """Whether the folder holds the cases of the dataset, every one and no other.

    Where both are known, the volumes of the import must be those that were preprocessed, too.
    """
    folder = dataset.folder / identifier
    if {path.stem for path in folder.glob("*.pkl")} != set(dataset.cases):
        return False
    volumes, record = _volumes(dataset), _record(dataset, identifier)
    return volumes is None or not record.is_file() or load_json(record) == volumes


def _record(dataset: RawDataset, identifier: str) -> Path:
    """Where the hashes of the volumes that a folder of cases shows are kept: nnU-Net allows no such file among them."""
    return dataset.folder / VOLUMES / f"{identifier}.json"


def _volumes(dataset: RawDataset) -> dict[str, Any] | None:
    """The content hashes of a dataset that was made by `import`."""
    report = environment_folder("nnUNet_raw") / dataset.name / REPORT
    return load_json(report).get("volumes") if report.is_file() else None


def share_data(dataset: RawDataset, plans: dict[str, Any]) -> list[str]:
    """Let configurations use data that another plan has preprocessed in the same way; returns notes."""
    own = plans_path(dataset, plans["plans_name"])
    others = [content for path, content in plans_in(dataset.folder).items() if path != own]
    notes = []
    for name, configuration in plans["configurations"].items():
        if "data_identifier" not in configuration:
            continue
        found, taken = _same_data(dataset, others, data_facts(plans, name))
        if found and found != configuration["data_identifier"]:
            notes.append(f"{name}: uses {found}, which is already preprocessed in the same way")
        identifier, number = configuration["data_identifier"], 2
        while not found and identifier in taken:  # another plan's images must not be overwritten by different ones
            identifier, number = f"{plans['plans_name']}_{name}_{number}", number + 1
        configuration["data_identifier"] = found or identifier
    return notes


def _same_data(
    dataset: RawDataset, others: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]
) -> tuple[str | None, set[str]]:
    """(the folder that holds the same images, the folders that plans with other images use)."""
    same, taken = set(), set()
    for other in others:
        for name in other["configurations"]:
            try:
                identifier = str(resolved(other, name)["data_identifier"])
                (same if data_facts(other, name) == facts else taken).add(identifier)
            except (KeyError, TypeError, ValueError, RuntimeError, UserError):
                continue  # an older or a foreign format
    ready = sorted(identifier for identifier in same if is_preprocessed(dataset, identifier))
    return (ready[0] if ready else None), taken


def preprocess(dataset: RawDataset, plans: Mapping[str, Any], configurations: Sequence[str]) -> list[str]:
    """Run nnU-Net's preprocessor; data that belongs to another plan and is complete is left as it is. Returns notes."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    publish_dataset_json(dataset)
    check_images(dataset)
    notes, done = [], set()
    for name in configurations:
        identifier = resolved(plans, name)["data_identifier"]
        own = identifier.startswith(plans["plans_name"] + "_")
        if identifier in done or (not own and is_preprocessed(dataset, identifier)):
            notes.append(f"{name}: {identifier} is there, nothing to preprocess")
            continue
        done.add(identifier)
        manager = PlansManager(dict(plans)).get_configuration(name)
        try:
            preprocessor = manager.preprocessor_class(verbose=False)
            workers = min(processes(), len(dataset.cases))
            preprocessor.run(dataset.name, name, plans["plans_name"], num_processes=workers)
        except Exception as error:
            raise UserError(f"nnU-Net's preprocessing of {dataset.name} failed: {str(error).strip()[:300]}") from error
        volumes = _volumes(dataset)
        if volumes is not None:
            write_json(_record(dataset, identifier), volumes)
    _copy_labels(dataset)
    return notes


def _copy_labels(dataset: RawDataset) -> None:
    """Keep the labels beside the data, where nnU-Net validates against them when the raw data is gone."""
    folder = dataset.folder / "gt_segmentations"
    folder.mkdir(parents=True, exist_ok=True)
    for case, files in dataset.cases.items():
        source, target = Path(files["label"]), folder / f"{case}{dataset.json['file_ending']}"
        if not target.is_file() or target.stat().st_mtime < source.stat().st_mtime:
            shutil.copyfile(source, target)
