"""The story that the demo tells: pretrain on phantoms without labels, then segment with the labels of very few."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nnunet_ssl.demo import page
from nnunet_ssl.demo.shell import FOLDERS, Shell, environment
from nnunet_ssl.errors import UserError

MARK = "demo.json"  # a folder that holds it is a demo's and may be made anew
UNLABELLED, LABELLED = (901, "DemoScans"), (902, "DemoOrgans")
PRETRAINER = "Vox2VecPretrainTrainer"
PLAN, UNTRAINED = "nnssl_tinyPlans", "nnssl_untrainedPlans"


@dataclass(frozen=True)
class Arm:
    """One of the trainings that are compared."""

    name: str
    title: str
    trainer: str
    plan: str
    explanation: str


ADAPTED = "nnssl_demoPlans"
ARMS = (
    Arm("linear", "linear probe", "SSLLinearProbeTrainer", ADAPTED, "a linear classifier on the frozen features"),
    Arm("finetune", "fine-tuning", "SSLFineTuneTrainer", ADAPTED, "the whole pretrained network learns"),
    Arm("scratch", "from scratch", "SSLScratchTrainer", ADAPTED, "the same network, head start and steps, no weights"),
    Arm("random", "random network", "SSLLinearProbeTrainer", UNTRAINED, "a linear classifier on a network of random "
        "weights: what the probe does by itself"),
)  # fmt: skip


@dataclass(frozen=True)
class Size:
    """How much is done; the shortest form leaves out what repeats the same commands."""

    unlabelled: int
    labelled: int
    tests: int
    epochs: int
    epoch_steps: int
    downstream_epochs: int
    downstream_epoch_steps: int
    head_init: str = "probe"
    arms: tuple[Arm, ...] = ARMS


NORMAL = Size(unlabelled=30, labelled=2, tests=8, epochs=6, epoch_steps=30, downstream_epochs=5,
              downstream_epoch_steps=30)  # fmt: skip
SHORTEST = Size(unlabelled=4, labelled=1, tests=1, epochs=1, epoch_steps=2, downstream_epochs=1,
                downstream_epoch_steps=2, head_init="random", arms=ARMS[:2])  # fmt: skip


@dataclass
class Results:
    """What the page shows."""

    size: Size
    organs: dict[str, str] = field(default_factory=dict)
    dice: dict[str, dict[str, float]] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0


class Story:
    """Runs the demo in ``folder``; ``tell`` returns the path of the page."""

    def __init__(self, folder: Path, shortest: bool = False, device: str = "cpu") -> None:
        self.folder, self.device = folder.resolve(), device
        self.size = SHORTEST if shortest else NORMAL
        self.results = Results(self.size)

    def tell(self) -> Path:
        """All steps. Raises UserError where one fails; what ran before it stays for a look."""
        start = time.monotonic()
        clear(self.folder)
        self.shell = Shell(self.folder, environment(self.folder, os.environ))
        try:
            self._make_phantoms()
            self._pretrain()
            self._adapt()
            self._train_and_predict()
        except BaseException:
            self.shell.stop()
            raise
        self.results.seconds = time.monotonic() - start
        (self.folder / MARK).write_text(json.dumps(asdict(self.results), indent=1), encoding="utf-8")
        return page.write(self.folder, self.results, self.shell.steps, self._pictures())

    # ---- steps

    def _make_phantoms(self) -> None:
        from nnunet_ssl.nnunet.demo_data import write_phantoms

        print(f"making {self.size.unlabelled + self.size.labelled + self.size.tests} phantom CTs", flush=True)
        self.results.organs = write_phantoms(
            self.folder / "scans", self._raw(LABELLED), self.size.unlabelled, self.size.labelled, self.size.tests
        )

    def _pretrain(self) -> None:
        number, name = UNLABELLED
        size = self.size
        self.shell.run("import", "nnunet_ssl", "import", self.folder / "scans", "-d", number, "-n", name, "--channel",
                       "CT", workers=None)  # fmt: skip
        plan = ("nnunet_ssl", "plan", "-d", number, "--preset", "tiny")
        self.shell.run("plan", *plan, *_set(num_epochs=size.epochs, num_iterations_per_epoch=size.epoch_steps),
                       "--preprocess", workers=None)  # fmt: skip
        self._train_pretrainer("pretraining", "3d_fullres")
        lines = (self._run_of("3d_fullres") / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        self.results.metrics = [json.loads(line) for line in lines]
        if not self._has_random_arm():
            return
        # One step at a rate of nothing: a checkpoint of random weights, to be probed like the others.
        self.shell.run("plan of the random network", *plan, "--config", "untrained", *_set(
            num_epochs=1, num_iterations_per_epoch=1, num_val_iterations_per_epoch=1, initial_lr=1e-12,
            report_cases=0), workers=None)
        self._train_pretrainer("random network", "untrained")

    def _train_pretrainer(self, title: str, configuration: str) -> None:
        self.shell.run(title, "nnUNetv2_train", UNLABELLED[0], configuration, "all", "-tr", PRETRAINER, "-p", PLAN,
                       *self._device())  # fmt: skip

    def _has_random_arm(self) -> bool:
        return any(arm.plan == UNTRAINED for arm in self.size.arms)

    def _adapt(self) -> None:
        steps = {"num_epochs": self.size.downstream_epochs,
                 "num_iterations_per_epoch": self.size.downstream_epoch_steps}  # fmt: skip
        sources = [("adapt", ADAPTED, "3d_fullres")]
        if self._has_random_arm():
            sources.append(("adapt to the random network", UNTRAINED, "untrained"))
        for title, plan, configuration in sources:
            weights = self._run_of(configuration) / "checkpoint_final.pth"
            self.shell.run(title, "nnunet_ssl", "adapt", "-d", LABELLED[0], "-w", weights, "-n", plan, *_set(
                **steps, num_val_iterations_per_epoch=1, head_init=self.size.head_init, head="linear", mirror_axes=[]),
                "--preprocess", workers=None)  # fmt: skip

    def _train_and_predict(self) -> None:
        number, raw = LABELLED[0], self._raw(LABELLED)
        chosen = {arm.name: ("-tr", arm.trainer, "-p", arm.plan) for arm in self.size.arms}
        self.shell.together([
            (f"train {arm.title}", "nnUNetv2_train", number, "3d_fullres", "all", *chosen[arm.name], *self._device())
            for arm in self.size.arms
        ])  # fmt: skip
        self.shell.together([
            (f"predict {arm.title}", "nnUNetv2_predict", "-d", number, "-c", "3d_fullres", "-f", "all",
             *chosen[arm.name], "-i", raw / "imagesTs", "-o", self._predicted(arm), "-npp", 1, "-nps", 1,
             *self._device()) for arm in self.size.arms
        ])  # fmt: skip
        self.shell.together([
            (f"evaluate {arm.title}", "nnUNetv2_evaluate_folder", raw / "labelsTs", self._predicted(arm), "-djfile",
             self._predicted(arm) / "dataset.json", "-pfile", self._predicted(arm) / "plans.json", "-np", 1)
            for arm in self.size.arms
        ])  # fmt: skip
        for arm in self.size.arms:
            summary = json.loads((self._predicted(arm) / "summary.json").read_text(encoding="utf-8"))
            self.results.dice[arm.name] = {
                "mean": summary["foreground_mean"]["Dice"],
                **{label: values["Dice"] for label, values in summary["mean"].items()},
            }

    def _pictures(self) -> dict[str, list[Path]]:
        from nnunet_ssl.nnunet.demo_data import draw_predictions

        run, raw = self._run_of("3d_fullres"), self._raw(LABELLED)
        predictions = {arm.title: self._predicted(arm) for arm in self.size.arms}
        drawn = draw_predictions(self.folder / "predictions.png", raw / "imagesTs", raw / "labelsTs", predictions)
        report = run / "representation_report"
        return {"predictions": [drawn], "features": sorted(report.glob("pca_*.png")),
                "similarity": sorted(report.glob("similarity_*.png")), "progress": [run / "progress.png"]}  # fmt: skip

    # ---- names

    def _device(self) -> tuple[str, ...]:
        return ("-device", self.device)

    def _raw(self, dataset: tuple[int, str]) -> Path:
        return self.folder / "nnUNet_raw" / f"Dataset{dataset[0]}_{dataset[1]}"

    def _run_of(self, configuration: str) -> Path:
        name = f"Dataset{UNLABELLED[0]}_{UNLABELLED[1]}"
        return self.folder / "nnUNet_results" / name / f"{PRETRAINER}__{PLAN}__{configuration}" / "fold_all"

    def _predicted(self, arm: Arm) -> Path:
        return self.folder / "predicted" / arm.name


def clear(folder: Path) -> None:
    """Make ``folder`` an empty folder of a demo. Raises UserError for one that holds something else."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; expected a folder for the demo's results (-o).")
    if folder.exists() and any(folder.iterdir()):
        if not (folder / MARK).is_file():
            raise UserError(f"{folder} is not empty and is no earlier demo's; choose another folder (-o).")
        shutil.rmtree(folder)
    for name in FOLDERS:
        (folder / name).mkdir(parents=True)
    (folder / MARK).write_text("{}", encoding="utf-8")


def _set(**values: Any) -> list[str]:
    """``--set ssl.NAME=VALUE`` for each."""
    written = ((name, value if isinstance(value, str) else json.dumps(value)) for name, value in values.items())
    return [word for name, value in written for word in ("--set", f"ssl.{name}={value}")]
