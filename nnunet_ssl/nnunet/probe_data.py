"""The online probe's cases: found, and checked to look as the pretraining's do."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_ssl.errors import UserError
from nnunet_ssl.probe import ProbeSettings


def preprocessed(settings: ProbeSettings, trainer: Any) -> tuple[Path, Any, Any]:
    """Folder, configuration and label manager of the probe's dataset, checked against the pretraining's."""
    from nnunetv2.paths import nnUNet_preprocessed
    from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans_name = settings.plans or trainer.plans_manager.plans_name
    try:
        name = maybe_convert_to_dataset_name(settings.dataset)
    except RuntimeError as error:
        raise UserError(f"ssl.probe: there is no dataset {settings.dataset} in nnU-Net's folders.") from error
    folder = Path(str(nnUNet_preprocessed)) / name
    source = trainer.plans_manager.dataset_name
    wanted = settings.configuration or trainer.configuration_name
    advice = ("Preprocess it as the pretraining data were: "
              f"`nnUNetv2_move_plans_between_datasets -s {source} -t {name} "
              f"-sp {trainer.plans_manager.plans_name} -tp {plans_name}`, then `nnUNetv2_preprocess -d {name} "
              f"-plans_name {plans_name} -c {wanted}`; or name the plans that fit in ssl.probe.plans.")  # fmt: skip
    plans_file = folder / f"{plans_name}.json"
    if not plans_file.is_file():
        raise UserError(f"ssl.probe: {plans_file} is missing. {advice}")
    plans = PlansManager(str(plans_file))
    wanted = settings.configuration or _known_configuration(trainer, plans)
    if wanted not in plans.available_configurations:
        raise UserError(f"ssl.probe: {plans_file} has the configurations {sorted(plans.available_configurations)}, "
                        f"expected {wanted}. {advice}")  # fmt: skip
    configuration = plans.get_configuration(wanted)
    difference = _difference(plans, configuration, trainer.plans_manager, trainer.configuration_manager)
    if difference:
        raise UserError(f"ssl.probe: {name} is preprocessed in another way than the pretraining data: {difference}. "
                        f"{advice}")  # fmt: skip
    return folder, configuration, plans.get_label_manager(_dataset_json(folder))


def _dataset_json(folder: Path) -> dict[str, Any]:
    path = folder / "dataset.json"
    if not path.is_file():
        raise UserError(f"ssl.probe: {path} is missing; plan and preprocess the dataset with nnU-Net first.")
    return dict(json.loads(path.read_text(encoding="utf-8")))


def _known_configuration(trainer: Any, plans: Any) -> str:
    """The pretraining's configuration, or the one it inherits from that the probe's plans know."""
    name = trainer.configuration_name
    while name not in plans.available_configurations:
        parent = trainer.plans_manager.plans["configurations"].get(name, {}).get("inherits_from")
        if parent is None:
            return str(trainer.configuration_name)
        name = parent
    return str(name)


def _difference(plans: Any, configuration: Any, own_plans: Any, own: Any) -> str | None:
    """What makes images of the two plans look different to a network, None where nothing does."""
    for what in ("normalization_schemes", "use_mask_for_norm", "spacing"):
        theirs, ours = list(getattr(configuration, what)), list(getattr(own, what))
        numbers = what == "spacing" and len(theirs) == len(ours)
        if not (np.allclose(theirs, ours, rtol=0.02) if numbers else theirs == ours):
            return f"{what} is {theirs}, expected {ours}"
    if list(plans.transpose_forward) != list(own_plans.transpose_forward):
        return f"transpose_forward is {plans.transpose_forward}, expected {own_plans.transpose_forward}"
    for channel, scheme in enumerate(own.normalization_schemes):
        if scheme != "CTNormalization":
            continue
        theirs, ours = (p.foreground_intensity_properties_per_channel[str(channel)] for p in (plans, own_plans))
        for key in ("mean", "std", "percentile_00_5", "percentile_99_5"):
            if not np.isclose(theirs[key], ours[key], rtol=1e-3, atol=1e-3):
                return f"{key} of CT channel {channel} is {theirs[key]}, expected {ours[key]}"
    return None


def open_folder(folder: Path, configuration: Any) -> tuple[Any, list[str]]:
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

    data = folder / configuration.data_identifier
    try:
        kind = infer_dataset_class(str(data))
        identifiers = sorted(kind.get_identifiers(str(data)))
    except (OSError, AssertionError) as error:
        raise UserError(f"ssl.probe: {data} holds no preprocessed cases; run nnUNetv2_preprocess for it.") from error
    return kind(str(data), identifiers), identifiers


def split(settings: ProbeSettings, identifiers: Sequence[str], folder: Path) -> tuple[list[str], list[str]]:
    """Cases to fit on and to measure on; drawn ones are the same for the same seed and names."""
    named = [case for part in (settings.cases, settings.held_out) if isinstance(part, list) for case in part]
    unknown = sorted(set(named) - set(identifiers))
    if unknown:
        raise UserError(f"ssl.probe: {folder.name} has no preprocessed cases {unknown[:5]}.")
    order = [identifiers[i] for i in np.random.default_rng(settings.seed).permutation(len(identifiers))]
    free = [case for case in order if case not in named]
    train = settings.cases if isinstance(settings.cases, list) else free[: settings.cases]
    free = [case for case in free if case not in train]
    held_out = settings.held_out if isinstance(settings.held_out, list) else free[: settings.held_out]
    if not train or not held_out or set(train) & set(held_out):
        raise UserError(f"ssl.probe: {folder.name} has {len(identifiers)} preprocessed cases; expected "
                        f"{settings.cases} to fit on and at least one other to measure on.")  # fmt: skip
    if isinstance(settings.cases, int) and len(train) < settings.cases:
        raise UserError(f"ssl.probe.cases is {settings.cases}; {folder.name} has only {len(identifiers)} cases.")
    return list(train), list(held_out)
