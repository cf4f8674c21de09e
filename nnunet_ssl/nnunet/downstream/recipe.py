"""The downstream ``ssl`` block of a configuration: what the downstream trainers read from the plans file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

ALLOWED: dict[str, tuple[Any, ...]] = {
    "protocol": ("default", "vox2vec"),
    "head": ("stock", "linear", "nonlinear"),
    "head_init": (None, "random", "probe"),
    "optimizer": (None, "sgd", "adam", "adamw"),
    "schedule": (None, "poly", "cosine", "constant"),
    "amp": ("auto", "bf16"),
}


@dataclass(frozen=True)
class DownstreamRecipe:
    """Every field of a downstream ``ssl`` block, with its default. ``None``: the protocol's own value (settings.py).

    pretrained        what ``nnunet_ssl adapt`` writes: ``path``, ``sha256`` (checked), ...; None: -pretrained_weights
    protocol          ``default`` keeps nnU-Net's losses and augmentations; ``vox2vec`` is the paper's evaluation
                      (Goncharov et al. 2023: sigmoid a class, BCE inside the body + squared soft Dice, no
                      augmentation), always with a head on the pyramid
    head              ``stock`` (nnU-Net's segmentation layers, deep supervision), ``linear`` or ``nonlinear`` (the
                      paper's heads on the pyramid), for the frozen, fine-tune and scratch trainers; a probe has its own
    head_init         ``random``, or ``probe``: first a linear fit on the training cases' frozen features. None: probe
                      where weights are pretrained, random from scratch and under protocol ``vox2vec``
    initial_lr, weight_decay, optimizer, schedule, oversample_foreground_percent
                      apply to every trainer that reads the configuration
    freeze_fraction, ramp_fraction, backbone_lr_factor
                      fine-tune only: share of all steps in which only the head learns; share in which the backbone's
                      rate rises from a tenth of its value; its value, as a multiple of the head's
    standardise       probes, and a nonlinear head on pretrained weights: channels are standardised by the training
                      cases' moments before the first step
    mirror_axes       spatial axes (0: first axis of the patch) mirrored in training and at test time; None: nnU-Net's
    labelled          ``{"n": N, "draw": k}``: train on N of the fold's training cases; nested over N
    mean_teacher      fine-tune only: ``{"decay": .99, "weight": .1, "rampup": .4, "noise": .1}`` (mean_teacher.py), all
                      optional: the fold's training cases that ``labelled`` leaves out are learned from without labels
    representation_channels
                      what adapt writes where the pretraining widened its finest level: heads on the pyramid see it, the
                      stock segmentation layers do not
    min_transferred   smallest share of the backbone's parameters that must come from the checkpoint
    amp               ``auto``: nnU-Net's precision (fp16 autocast on a GPU, float32 elsewhere); ``bf16``: the network
                      computes in bfloat16 in training and in prediction, on a CPU, too
    seed              None leaves the random generators alone, as nnU-Net does; with a number, and nnUNet_n_proc_DA=0
                      (nnU-Net's worker processes draw freely), a training repeats itself, also across --c
    regions           written by the trainer into its copy of the plan where the labels are regions: leave it alone
    The other names are nnU-Net's.
    """

    pretrained: dict[str, Any] | None = None
    protocol: str = "default"
    head: str = "stock"
    head_init: str | None = None
    num_epochs: int = 1000
    num_iterations_per_epoch: int = 250
    num_val_iterations_per_epoch: int = 50
    save_every: int = 50
    initial_lr: float | None = None
    weight_decay: float | None = None
    optimizer: str | None = None
    schedule: str | None = None
    backbone_lr_factor: float | None = None
    freeze_fraction: float | None = None
    ramp_fraction: float | None = None
    oversample_foreground_percent: float | None = None
    standardise: bool | None = None
    mirror_axes: list[int] | None = None
    labelled: dict[str, int] | None = None
    mean_teacher: dict[str, Any] | None = None
    representation_channels: int | None = None
    min_transferred: float = 0.9
    amp: str = "auto"
    seed: int | None = None
    regions: bool = False

    def validate(self) -> None:
        """Raise ValueError with the field's name, what was found and what is allowed."""
        for name, allowed in ALLOWED.items():
            value = getattr(self, name)
            _check(value in allowed, name, value, "one of " + ", ".join("null" if a is None else a for a in allowed))
        for name in ("num_epochs", "num_iterations_per_epoch", "num_val_iterations_per_epoch", "save_every"):
            _check(getattr(self, name) >= 1, name, getattr(self, name), "a whole number from 1 up")
        for name in ("freeze_fraction", "ramp_fraction", "min_transferred", "oversample_foreground_percent"):
            value = getattr(self, name)
            _check(value is None or 0 <= value <= 1, name, value, "a number from 0 to 1")
        _check((self.freeze_fraction or 0) + (self.ramp_fraction or 0) <= 1, "ramp_fraction", self.ramp_fraction,
               "at most 1 - freeze_fraction")
        _check(self.initial_lr is None or self.initial_lr > 0, "initial_lr", self.initial_lr, "a number above 0")
        _check(self.weight_decay is None or self.weight_decay >= 0, "weight_decay", self.weight_decay,
               "a number from 0 up")
        factor = self.backbone_lr_factor
        _check(factor is None or factor >= 0, "backbone_lr_factor", factor, "a number from 0 up")
        self._validate_blocks()

    def _validate_blocks(self) -> None:
        if self.mean_teacher is not None:
            from nnunet_ssl.nnunet.downstream.mean_teacher import MeanTeacherSettings

            MeanTeacherSettings.parse(self.mean_teacher)
            _check(self.protocol == "default", "protocol", self.protocol, "default with mean_teacher")
        axes = self.mirror_axes
        _check(not (self.protocol == "vox2vec" and axes), "mirror_axes", axes,
               "null or [] with protocol vox2vec, which has no augmentation")
        _check(axes is None or (all(isinstance(a, int) and 0 <= a <= 2 for a in axes) and len(set(axes)) == len(axes)),
               "mirror_axes", axes, "a list of different axes out of 0, 1, 2 (an empty list: no mirroring)")
        chosen = self.labelled
        _check(chosen is None or (set(chosen) == {"n", "draw"} and all(type(v) is int for v in chosen.values())
                                  and chosen["n"] >= 1 and chosen["draw"] >= 0),
               "labelled", chosen, '{"n": cases to train on (from 1 up), "draw": number of the draw (from 0 up)}')
        pretrained = self.pretrained
        _check(pretrained is None or isinstance(pretrained.get("path"), str), "pretrained", pretrained,
               'null or {"path": "checkpoint_final.pth", "sha256": ...}')


def _check(good: bool, name: str, found: object, expected: str) -> None:
    if not good:
        raise ValueError(f"ssl.{name} is {found!r}, expected {expected}")
