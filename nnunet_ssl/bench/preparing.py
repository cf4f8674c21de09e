"""The plans and configurations that jobs need, made before the first of them runs: jobs share these files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_ssl.bench.checkpoints import forget, read_once
from nnunet_ssl.bench.grid import Job
from nnunet_ssl.bench.results import folders_of
from nnunet_ssl.errors import UserError
from nnunet_ssl.nnunet.datasets import dataset_name, environment_folder, load_json, open_dataset, training_files
from nnunet_ssl.nnunet.downstream.recipe import DownstreamRecipe
from nnunet_ssl.nnunet.recipe import parse
from nnunet_ssl.nnunet.splits import validation_cases


def require_possible(jobs: Sequence[Job]) -> None:
    """UserError for a checkpoint or test cases that are not there, for a field of ``ssl`` that does not exist, and for
    more labelled cases than a fold has to choose from.
    """
    for path in dict.fromkeys(job.pretraining.path for job in jobs):
        if not Path(path).is_file():
            raise UserError(f"The checkpoint {path} is not there. Correct its path in the grid.")
    for job in {job.protocol.title: job for job in jobs}.values():
        parse(job.settings, DownstreamRecipe)
    for number in {job.dataset.id for job in jobs if job.dataset.cases == "test"}:
        _require_test_cases(number)
    wanted: dict[tuple[int, int | str], int] = {}
    for job in jobs:
        place = (job.dataset.id, job.fold)
        wanted[place] = max(wanted.get(place, 0), 0 if job.labelled == "all" else int(job.labelled))
    for (number, fold), asked in wanted.items():
        most, what = _choosable(number, fold)
        if asked > most:
            raise UserError(
                f"The grid asks for {asked} labelled {what} of dataset {number}, fold {fold}, which has {most}."
            )


def _require_test_cases(number: int) -> None:
    raw = environment_folder("nnUNet_raw") / dataset_name(number)
    ending = load_json(raw / "dataset.json")["file_ending"]
    lacks = [name for name in ("imagesTs", "labelsTs") if not any((raw / name).glob(f"*{ending}"))]
    if lacks:
        raise UserError(
            f"{raw} has no {' and '.join(lacks)} with {ending} files, expected test cases to score. Put them there, or "
            'give the dataset cases = "validation" in the grid.'
        )


def _choosable(number: int, fold: int | str) -> tuple[int, str]:
    """How many cases of a fold's training part ``ssl.labelled`` can choose from, and what it counts."""
    from nnunet_ssl.nnunet.downstream.sampling import case_subjects

    name = dataset_name(number)
    raw = environment_folder("nnUNet_raw") / name
    content = load_json(raw / "dataset.json")
    cases = set(training_files(raw, content))
    if fold != "all":
        cases -= set(validation_cases([environment_folder("nnUNet_preprocessed") / name, raw], sorted(cases), fold))
    subjects = case_subjects(content)
    return len({subjects.get(case, case) for case in cases}), "subjects" if subjects else "cases"


def prepare(jobs: Sequence[Job]) -> None:
    """One plan a dataset and pretraining, one configuration a job; preprocessing where data is missing.

    A checkpoint is read once for all jobs of its plan, and a configuration that is there already is left as it is: what
    this takes does not grow with the number of jobs by more than milliseconds each.
    """
    by_plan: dict[tuple[int, str], dict[str, Job]] = {}
    for job in jobs:
        by_plan.setdefault((job.dataset.id, job.plans), {})[job.configuration] = job
    for wanted in by_plan.values():
        _prepare_plan(list(wanted.values()))
    forget()


def _prepare_plan(jobs: Sequence[Job]) -> None:
    from nnunet_ssl.nnunet.adapting import AdaptRequest, make_adapted
    from nnunet_ssl.nnunet.planners import existing_plans
    from nnunet_ssl.nnunet.preprocessing import is_preprocessed, preprocess

    first = jobs[0]
    dataset, pretrained = open_dataset(first.dataset.id), read_once(first.pretraining.path)
    where = (first.dataset.id, first.pretraining.path, first.plans)
    plans = existing_plans(dataset, first.plans)
    if plans is None:
        request = AdaptRequest(*where, first.dataset.spacing, settings=first.dataset.adapt)
        made = make_adapted(request, pretrained)
        plans = made.plans
        patch = next(iter(plans["configurations"].values()))["patch_size"]
        print(f"{dataset.name}, {first.plans}: patch {patch}", *made.notes, sep="\n  ", flush=True)
    ready = set()
    for job in jobs:
        if not _is_there(plans, job, pretrained.sha256):
            request = AdaptRequest(*where, settings=settings_of(job), config=job.configuration)
            plans = make_adapted(request, pretrained).plans
        identifier = _data_of(plans, job.configuration)
        _require_own(plans, job)
        if identifier not in ready and not is_preprocessed(dataset, plans, job.configuration):
            preprocess(dataset, plans, [job.configuration])
        ready.add(identifier)


def _require_own(plans: Mapping[str, Any], job: Job) -> None:
    """UserError where the job's folder has a training by other settings: another grid's, or an earlier version's."""
    from nnunet_ssl.nnunet.planners import resolved

    fold = folders_of(job).fold
    used = fold.parent / "plans.json"  # nnU-Net's copy of the plan that it trained by
    if not used.is_file() or not any(fold.glob("checkpoint_*.pth")):
        return
    found, wanted = ({key: value for key, value in _flat(resolved(p, job.configuration)).items()
                      if key != "ssl.pretrained.path"} for p in (load_json(used), plans))  # fmt: skip
    other = sorted(key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key))
    if other:
        said = ", ".join(f"{key} {found.get(key)} and not {wanted.get(key)}" for key in other[:5])
        raise UserError(
            f"{fold} has a training by other settings than {job} ({said}). Give the pretraining or the protocol of "
            f"this grid another name or label, or move {fold.parent} away."
        )


def _flat(block: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in block.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def settings_of(job: Job) -> list[str]:
    """What ``nnunet_ssl adapt --set`` would be told for a job's configuration."""
    return [
        *(f"ssl.{key}={json.dumps(value)}" for key, value in job.settings.items()),
        *(f"{key}={json.dumps(value)}" for key, value in job.plan.items()),
    ]


def _data_of(plans: Mapping[str, Any], name: str) -> str:
    from nnunet_ssl.nnunet.planners import resolved

    return str(resolved(plans, name)["data_identifier"])


def _is_there(plans: Mapping[str, Any], job: Job, sha256: str) -> bool:
    """Whether the plan, made for this very checkpoint, has the configuration just as it would be made."""
    from nnunet_ssl.nnunet.configurations import apply_changes
    from nnunet_ssl.nnunet.downstream.recipe import DownstreamRecipe
    from nnunet_ssl.nnunet.planners import MARK, resolved
    from nnunet_ssl.nnunet.settings import DATA_KEYS, collect

    made = plans["configurations"].get(job.configuration)
    if made is None or plans[MARK].get("pretrained_sha256") != sha256 or "inherits_from" not in made:
        return False
    if any(key in job.plan for key in DATA_KEYS):  # these have consequences beyond their own values
        return False
    changes = collect((), settings_of(job))
    wanted = apply_changes(resolved(plans, made["inherits_from"]), changes, job.configuration, cls=DownstreamRecipe)
    return {**wanted, "inherits_from": made["inherits_from"]} == resolved(plans, job.configuration)
