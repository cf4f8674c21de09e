"""When preprocessed data is what a plan asks for: the cases, the volumes that they show, and how they were made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from nnunet_ssl.cli.main import main
from nnunet_ssl.nnunet.planning import Planned, PlanRequest, make_plan
from nnunet_ssl.nnunet.preprocessing import RECORD, is_preprocessed
from tests.import_tools import body, bring_in, places, write
from tests.plan_datasets import folders, raw_dataset

__all__ = ["folders", "places"]


def planned(*settings: str, config: str | None = None) -> Planned:
    return make_plan(PlanRequest(901, preset="tiny", settings=settings, config=config))


def ready(found: Planned) -> bool:
    return is_preprocessed(found.dataset, found.plans, found.configurations[0])


def write_cases(found: Planned) -> Path:
    """Cases as nnU-Net's own command leaves them: the folder is made anew, and nothing says how they were made."""
    folder = found.dataset.folder / found.plans["configurations"][found.configurations[0]]["data_identifier"]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for case in found.dataset.cases:
        (folder / f"{case}.pkl").touch()
    return folder


@pytest.mark.parametrize("changed", ["spacing=[3,1.5,1.5]", 'normalization_schemes=["ZScoreNormalization"]'])
def test_data_of_another_plan_of_the_same_name_is_not_ready(
    folders: Path, changed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    raw_dataset(folders, 901, cases=3)
    first = planned()
    assert not ready(first)
    write_cases(first)
    assert ready(first) and ready(planned("batch_size=2"))  # a change that the images do not depend on
    assert not ready(planned(changed))
    assert main(["plan", "-d", "901", "--preset", "tiny", "--set", changed]) == 0
    assert "nnUNetv2_preprocess -d 901 -plans_name nnssl_tinyPlans" in capsys.readouterr().out
    assert ready(planned())  # the old plan again, and its data is still there
    write_cases(planned(changed))
    assert ready(planned(changed)) and not ready(planned())


def test_an_added_configuration_that_is_changed_needs_its_own_data_again(folders: Path) -> None:
    raw_dataset(folders, 901, cases=3)
    planned()
    write_cases(planned("spacing=[3,1.5,1.5]", config="coarse"))
    assert ready(planned("spacing=[3,1.5,1.5]", config="coarse"))
    assert not ready(planned("spacing=[4,2,2]", config="coarse"))


def test_data_of_more_cases_or_of_other_volumes_is_not_the_dataset(places: Path) -> None:
    for name in "ab":
        write(places / f"scans/{name}.nii.gz", body(ord(name)))
    volumes = bring_in(places).report["volumes"]
    found = planned()
    folder = write_cases(found)
    assert ready(found)
    for recorded, expected in ((volumes, True), ({**volumes, "a": "0"}, False)):
        (folder / RECORD).parent.mkdir(exist_ok=True)
        (folder / RECORD).write_text(json.dumps({"volumes": recorded}))
        assert ready(found) == expected
    (folder / RECORD).unlink()
    (folder / "test1.pkl").touch()
    assert not ready(found)
    (folder / "test1.pkl").unlink()
    (folder / "a.pkl").unlink()
    assert not ready(found)
