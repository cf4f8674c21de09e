"""nnU-Net's preprocessing, and when it can be left out because another plan has made the same data."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_ssl.errors import UserError
from nnunet_ssl.nnunet.datasets import (
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

# In a folder of cases: what it was made of, and how. Deeper than the cases, where nnU-Net allows no such file; what
# deletes the cases, as nnU-Net's own preprocessing does first, deletes the record with them.
RECORD = Path("ssl_record") / "record.json"
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


def is_preprocessed(dataset: RawDataset, plans: Mapping[str, Any], name: str) -> bool:
    """Whether a configuration's folder holds the cases of the dataset, every one and no other, made as planned."""
    return _is_ready(dataset, resolved(plans, name)["data_identifier"], data_facts(plans, name))


def _is_ready(dataset: RawDataset, identifier: str, facts: Mapping[str, Any]) -> bool:
    """Of what was not recorded (nnU-Net's own command records nothing) the cases have to do."""
    folder = dataset.folder / identifier
    if {path.stem for path in folder.glob("*.pkl")} != set(dataset.cases):
        return False
    record = load_json(folder / RECORD) if (folder / RECORD).is_file() else {}
    volumes = _volumes(dataset)
    same_volumes = volumes is None or record.get("volumes", volumes) == volumes
    return same_volumes and record.get("facts", facts) == facts


def remember_data(dataset: RawDataset, plans: Mapping[str, Any]) -> None:
    """Record how data of this plan was preprocessed that has no record yet. To be called before the plan changes."""
    for identifier, facts in _planned_data(plans):
        folder = dataset.folder / identifier
        if _is_own(plans, identifier) and folder.is_dir() and not (folder / RECORD).is_file():
            write_json(folder / RECORD, {"facts": facts})


def _is_own(plans: Mapping[str, Any], identifier: str) -> bool:
    """Whether the folder was named for this plan, and not for one whose data it shares."""
    return identifier.startswith(plans["plans_name"] + "_")


def _planned_data(plans: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(folder of cases, what their images depend on) of every configuration; older and foreign formats are left out."""
    for name in plans.get("configurations", {}):
        try:
            found = str(resolved(plans, name)["data_identifier"]), data_facts(plans, name)
        except (KeyError, TypeError, ValueError, RuntimeError, UserError):
            continue
        yield found


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
        for identifier, planned in _planned_data(other):
            (same if planned == facts else taken).add(identifier)
    ready = sorted(identifier for identifier in same if _is_ready(dataset, identifier, facts))
    return (ready[0] if ready else None), taken


def preprocess(dataset: RawDataset, plans: Mapping[str, Any], configurations: Sequence[str]) -> list[str]:
    """Run nnU-Net's preprocessor; data that belongs to another plan and is complete is left as it is. Returns notes."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    publish_dataset_json(dataset)
    check_images(dataset)
    notes, done = [], set()
    for name in configurations:
        identifier = resolved(plans, name)["data_identifier"]
        if identifier in done or (not _is_own(plans, identifier) and is_preprocessed(dataset, plans, name)):
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
        record = {"facts": data_facts(plans, name), "volumes": _volumes(dataset)}
        write_json(dataset.folder / identifier / RECORD, {k: v for k, v in record.items() if v is not None})
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
