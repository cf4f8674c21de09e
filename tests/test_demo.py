"""The parts of the demo; the whole of it is run by .ci/run in its shortest form."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import signal
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_ssl.cli.main import build_parser, main
from nnunet_ssl.demo import page, shell, story
from nnunet_ssl.errors import UserError
from nnunet_ssl.nnunet.demo_data import coloured, draw_predictions, write_phantoms

TAGS_WITHOUT_END = {"meta", "img", "br"}


class Checker(HTMLParser):
    """Counts open tags and collects what the page loads from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in TAGS_WITHOUT_END:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def results() -> story.Results:
    size = dataclasses.replace(story.SHORTEST, arms=story.ARMS)
    made = story.Results(size, organs={"1": "liver", "2": "left <kidney>"}, seconds=90.0)
    for number, arm in enumerate(story.ARMS):
        made.dice[arm.name] = {"mean": 0.1 * number, "1": 0.2 * number, "2": math.nan}
    made.metrics = [{"retrieval_at_1": 0.25, "effective_rank": 31.0}]
    return made


def test_the_page_is_whole_and_loads_nothing(tmp_path: Path, results: story.Results) -> None:
    drawn = tmp_path / "picture.png"
    drawn.write_bytes(b"\x89PNG\r\n\x1a\nbytes")
    steps = [shell.Step("import", "nnunet_ssl import a&b", 3.0)]
    target = page.write(tmp_path, results, steps, {"features": [drawn], "progress": [tmp_path / "missing.png"]})
    text = target.read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(text)
    assert not checker.open and len(checker.sources) == 1 and checker.sources[0].startswith("data:image/png;base64,")
    assert all(arm.title in text for arm in story.ARMS)
    assert "left &lt;kidney&gt;" in text and "a&amp;b" in text and "nothing had time to learn" in text
    assert "retrieval at 1 0.25" in text and "What the network sees" in text and "The pretraining</h2>" not in text


def test_the_best_of_a_column_stands_out_and_nan_is_a_dash(results: story.Results) -> None:
    rows = re.findall(r"<tr><td>.*?</tr>", page.table(results))
    assert ['class="best"' in row for row in rows] == [False, False, False, True]
    assert all(row.endswith("<td>-</td></tr>") for row in rows)


def test_the_table_of_the_terminal(results: story.Results) -> None:
    lines = page.text_table(results).splitlines()
    assert lines[0].split() == ["mean", "liver", "left", "<kidney>"]
    assert lines[2].split() == ["fine-tuning", "0.100", "0.200", "-"] and len(lines) == 1 + len(story.ARMS)


def test_a_folder_of_something_else_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("irreplaceable")
    assert main(["demo", "--shortest", "-o", str(tmp_path)]) == 1
    assert "is not empty" in capsys.readouterr().err and (tmp_path / "thesis.txt").read_text() == "irreplaceable"
    assert main(["demo", "-o", str(tmp_path / "thesis.txt")]) == 1
    assert "is a file" in capsys.readouterr().err


def test_an_earlier_demo_is_replaced(tmp_path: Path) -> None:
    story.clear(tmp_path / "demo")
    (tmp_path / "demo" / "old").touch()
    story.clear(tmp_path / "demo")
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == sorted([story.MARK, *shell.FOLDERS])


@pytest.fixture
def made_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> shell.Shell:
    """A shell whose commands are pieces of Python."""
    monkeypatch.setattr(shell, "located", lambda words: [sys.executable, "-c", words[-1]])
    return shell.Shell(tmp_path, shell.environment(tmp_path, os.environ))


def test_a_command_gets_nnunets_variables_and_its_log(made_shell: shell.Shell, tmp_path: Path) -> None:
    code = "from os import environ as e; print(e['nnUNet_raw'], e.get('nnUNet_n_proc_DA'), e['nnUNet_extTrainer'])"
    made_shell.run("one", "nnunet_ssl", code)
    made_shell.run("two", "nnunet_ssl", code, workers=None)
    one, two = ((tmp_path / "logs" / f"{name}.txt").read_text() for name in ("00_one", "01_two"))
    assert one.split()[:2] == [str(tmp_path / "nnUNet_raw"), "0"] and two.split()[1] == "None"
    assert one.strip().endswith("discovery") and [step.title for step in made_shell.steps] == ["one", "two"]


def test_the_users_trainers_stay_in_front(tmp_path: Path) -> None:
    ours = shell.environment(tmp_path, {})["nnUNet_extTrainer"]
    assert shell.environment(tmp_path, {"nnUNet_extTrainer": f"/mine:{ours}"})["nnUNet_extTrainer"] == f"/mine:{ours}"


def test_a_command_that_fails_is_shown_with_its_last_lines(made_shell: shell.Shell) -> None:
    with pytest.raises(UserError, match=r"(?s)'sums' of the demo failed with exit status 3.*because of this"):
        made_shell.run("sums", "nnunet_ssl", "import sys; print('because of this'); sys.exit(3)")


def test_one_of_several_that_fails_ends_the_others(made_shell: shell.Shell, tmp_path: Path) -> None:
    # The other one cannot end by itself, and the failing one waits until it runs.
    flag = tmp_path / "started"
    endless = f"import pathlib, threading; pathlib.Path({str(flag)!r}).touch(); threading.Event().wait()"
    failing = f"import os, sys\nwhile not os.path.exists({str(flag)!r}): pass\nsys.exit('no')"
    with pytest.raises(UserError, match="failing"):
        made_shell.together([("failing", "nnunet_ssl", failing), ("endless", "nnunet_ssl", endless),
                             ("never", "nnunet_ssl", "print()")])  # fmt: skip
    assert "never" not in [step.title for step in made_shell.steps]


def test_a_missing_program_is_said() -> None:
    with pytest.raises(UserError, match="nnUNetv2_no_such_thing was not found"):
        shell.located(["nnUNetv2_no_such_thing"])


def test_phantoms_become_an_ordinary_dataset(tmp_path: Path) -> None:
    organs = write_phantoms(tmp_path / "scans", tmp_path / "raw", unlabelled=2, labelled=1, tests=1, organs=3)
    described = json.loads((tmp_path / "raw" / "dataset.json").read_text(encoding="utf-8"))
    assert list(described["labels"].values()) == [0, 1, 2, 3] and described["numTraining"] == 1
    assert list(organs) == ["1", "2", "3"]
    scans = [sitk.GetArrayFromImage(sitk.ReadImage(str(p))) for p in sorted((tmp_path / "scans").iterdir())]
    assert len(scans) == 2 and not np.array_equal(*scans)
    for part, case in (("Tr", "train_000"), ("Ts", "test_000")):
        image = sitk.ReadImage(str(tmp_path / "raw" / f"images{part}" / f"{case}_0000.nii.gz"))
        label = sitk.ReadImage(str(tmp_path / "raw" / f"labels{part}" / f"{case}.nii.gz"))
        assert image.GetSize() == label.GetSize() and image.GetSpacing() == label.GetSpacing()
        assert set(np.unique(sitk.GetArrayViewFromImage(label))) == {0, 1, 2, 3}
    raw = tmp_path / "raw"
    drawn = draw_predictions(tmp_path / "p.png", raw / "imagesTs", raw / "labelsTs", {"truth again": raw / "labelsTs"})
    assert drawn.read_bytes().startswith(b"\x89PNG")


def test_labels_are_laid_over_in_colour() -> None:
    picture = coloured(np.full((2, 2), 40.0, np.float32), np.array([[0, 1], [2, 0]], np.float32))
    assert np.allclose(picture[0, 0], 0.5) and not np.allclose(picture[0, 1], picture[1, 0])
    assert np.ptp(picture[0, 1]) > 0.2 and picture.min() >= 0 and picture.max() <= 1


def test_the_sizes_differ() -> None:
    assert story.SHORTEST.epochs * story.SHORTEST.epoch_steps < story.NORMAL.epochs * story.NORMAL.epoch_steps


def test_the_cores_are_shared_out() -> None:
    mine = os.sched_getaffinity(0)
    (everything,) = shell.shares(1)
    assert everything == mine
    parts = shell.shares(2)
    if len(mine) >= 2:
        assert set().union(*parts) == mine and not parts[0] & parts[1]
    assert shell.shares(len(mine) + 1) == [frozenset()] * (len(mine) + 1)  # too few: nobody is bound


def test_a_terminated_demo_ends_what_it_started() -> None:
    with pytest.raises(KeyboardInterrupt), shell.sigterm_as_interrupt():
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("size", [story.NORMAL, story.SHORTEST])
def test_the_story_is_told_with_commands_that_exist(
    size: story.Size, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All commands in order, with a shell that runs none and leaves what they would."""
    typed: list[list[str]] = []

    def pretend(self: shell.Shell, title: str, *words: object, **_: object) -> None:
        command = [str(word) for word in words]
        typed.append(command)
        if command[0] == "nnunet_ssl":
            build_parser([command[1]]).parse_args(command[1:])
        elif command[0] == "nnUNetv2_train" and "Pretrain" in title + command[5]:
            run = told._run_of(command[2])
            run.mkdir(parents=True)
            (run / "metrics.jsonl").write_text('{"retrieval_at_1": 0.5}\n')
        elif command[0] == "nnUNetv2_evaluate_folder":
            scores = {str(label): {"Dice": 0.5} for label in range(1, 5)}
            Path(command[2]).mkdir(parents=True)
            (Path(command[2]) / "summary.json").write_text(
                json.dumps({"foreground_mean": {"Dice": 0.5}, "mean": scores}))

    monkeypatch.setattr(shell.Shell, "run", pretend)
    monkeypatch.setattr(story.Story, "_pictures", lambda self: {})
    told = story.Story(tmp_path / "demo")
    told.size = told.results.size = dataclasses.replace(size, unlabelled=1, labelled=1, tests=1)
    assert told.tell().is_file()
    trained = [command[5] for command in typed if command[0] == "nnUNetv2_train"]
    assert trained == [story.PRETRAINER] * (2 if size is story.NORMAL else 1) + [arm.trainer for arm in size.arms]
    weights = {command[command.index("-n") + 1]: command[command.index("-w") + 1]
               for command in typed if command[1] == "adapt"}  # fmt: skip
    assert set(weights) == {arm.plan for arm in size.arms} and len(set(weights.values())) == len(weights)
    assert (tmp_path / "demo" / story.MARK).is_file()
