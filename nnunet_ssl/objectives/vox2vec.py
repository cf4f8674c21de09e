"""vox2vec (Goncharov et al., MICCAI 2023, arXiv 2307.14725): the numbers of one pretraining, and what they may be.

The defaults are those of the published code. Where the paper's text and the code differ, the choice is a field:
``volumes_per_batch`` (code: all pairs from one volume; text: one volume a pair) and ``loss`` (text: also VICReg).
How views are drawn from these numbers is in ``nnunet_ssl.views`` (space) and ``nnunet_ssl.intensity``; the training
step that uses them is in ``nnunet_ssl.step``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

CHOICES: dict[str, tuple[str, ...]] = {
    "objective": ("vox2vec",),
    "loss": ("info_nce", "vicreg", "barlow_twins"),
    "reading": ("nearest", "linear"),
    "spatial": ("none", "affine"),
    "intensity": ("auto", "hu", "zscore", "none"),
    "optimizer": ("adam", "adamw", "sgd"),
    "schedule": ("constant", "cosine", "poly"),
    "amp": ("auto", "bf16", "fp16", "off"),
    "gather": ("all", "none"),
}


def _list(*values: float) -> Any:
    """A dataclass default that is a fresh list each time."""
    return field(default_factory=lambda: list(values))


@dataclass(frozen=True)
class Recipe:
    """All settings of a vox2vec pretraining, JSON-able: the ``ssl`` block of a plans file. Lengths are in voxels, angles
    in degrees, intensities in HU (``*_hu``) or in units of the normalised image (``noise_z``, ``gain``, ``shift``).
    Pairs of numbers are [least, greatest] of a uniform draw. ``validate()`` says whether the values make sense.
    """

    # a batch
    objective: str = "vox2vec"
    volumes_per_batch: int = 1  # 1: published code; as many as pairs: the paper's text
    pairs_per_batch: int | None = 10  # over all processes; None: the plan's batch_size
    voxels_per_pair: int = 1024  # at most: as many as the overlap has

    # the loss
    loss: str = "info_nce"
    temperature: float = 0.1
    vicreg_sim: float = 25.0
    vicreg_var: float = 25.0
    vicreg_cov: float = 1.0
    lambda_off: float = 5e-3  # Barlow Twins: weight of the off-diagonal terms
    gather: str = "all"  # all: points of all processes are compared; none: of each process alone

    # from levels to embeddings
    level_width: str | int = "native"  # a number: every level is projected to this many channels
    reading: str = "nearest"
    projector_hidden: list[int] | None = None  # None: two layers as wide as the pyramid (vicreg: 8192, 8192)
    projector_out: int = 128

    # views: space
    spatial: str = "none"  # none: crops at integer positions; affine: rotated and scaled in mm, read linearly
    rotation_deg: float | list[float] = 10.0  # angles U(-r, r) about each axis (z, y, x), or one number for all
    scale: list[float] = _list(0.8, 1.25)  # apparent size, drawn uniformly in its logarithm
    flip_axes: list[int] = _list()  # each with probability 1/2, each view by itself

    # views: intensity
    intensity: str = "auto"  # auto: hu for CT channels, zscore for all others
    blur_sharpen_p: float = 0.5
    blur_sigma: list[float] = _list(0.25, 1.5)
    sharpen_sigma: list[float] = _list(0.5, 1.0)
    sharpen_amount: list[float] = _list(10.0, 30.0)
    noise_p: float = 0.5
    noise_hu: list[float] = _list(0.0, 30.0)
    noise_z: list[float] = _list(0.0, 0.1)
    window_p: float = 0.8
    window_lo_hu: list[float] = _list(-1350.0, -1000.0)
    window_hi_hu: list[float] = _list(300.0, 1000.0)
    gain_shift_p: float = 0.8  # what the window is to CT, gain and shift are to the others
    gain: list[float] = _list(0.75, 1.25)
    shift: list[float] = _list(-0.25, 0.25)

    # optimisation
    optimizer: str = "adam"
    schedule: str = "constant"
    initial_lr: float = 3e-4
    weight_decay: float = 0.0
    warmup_epochs: int = 0
    clip: float | None = 1.0  # norm of the gradient; None: not clipped
    seed: int = 0
    num_epochs: int = 1000
    num_iterations_per_epoch: int = 100
    num_val_iterations_per_epoch: int = 10
    save_every: int = 10
    amp: str = "auto"

    # watching
    probe: dict[str, Any] | None = None  # {"dataset": id, "every": epochs, "cases": number, ...}
    min_effective_rank: float = 4.0  # a warning below it
    mirror_axes: list[int] | None = None  # for the downstream trainers; None: as nnU-Net decides

    def to_dict(self) -> dict[str, Any]:
        """All fields as a dict that ``json.dumps`` takes."""
        return asdict(self)

    @property
    def normalised(self) -> bool:
        """Whether the loss wants embeddings of length one."""
        return self.loss == "info_nce"

    def hidden_widths(self, pyramid_width: int) -> list[int]:
        """Widths of the projector's hidden layers for a voxel vector of `pyramid_width` numbers."""
        if self.projector_hidden is not None:
            return list(self.projector_hidden)
        return [8192, 8192] if self.loss == "vicreg" else [pyramid_width, pyramid_width]

    def validate(self) -> None:
        """Raise ValueError that names the first field with a value that cannot be used, and what can."""
        for name, allowed in CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}; expected one of {', '.join(map(repr, allowed))}")
        for name, (test, expected) in _RULES.items():
            value = getattr(self, name)
            if not test(value):
                raise ValueError(f"{name} is {value!r}; expected {expected}")
        if self.window_lo_hu[1] >= self.window_hi_hu[0]:
            raise ValueError(
                f"window_lo_hu is {self.window_lo_hu}; expected to end below the start of window_hi_hu {self.window_hi_hu}"
            )


Rule = tuple[Callable[[Any], bool], str]


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _integer(least: int) -> Rule:
    def test(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= least

    return test, f"a whole number >= {least}"


def _real(least: float, open_end: bool = False, most: float = math.inf) -> Rule:
    def test(value: Any) -> bool:
        return _number(value) and (value > least if open_end else value >= least) and value <= most

    upper = "" if most == math.inf else f" and <= {most:g}"
    return test, f"a number {'>' if open_end else '>='} {least:g}{upper}"


def _range(least: float = -math.inf, open_end: bool = False) -> Rule:
    def test(value: Any) -> bool:
        if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
            return False
        return all(map(_number, value)) and value[0] <= value[1] and (value[0] > least if open_end else value[0] >= least)

    bound = "" if least == -math.inf else f", both {'>' if open_end else '>='} {least:g}"
    return test, f"two numbers [least, greatest]{bound}"


def _list_of(rule: Rule, distinct: bool = False) -> Rule:
    def test(value: Any) -> bool:
        if not isinstance(value, Sequence) or isinstance(value, str) or not all(map(rule[0], value)):
            return False
        return not distinct or len(set(value)) == len(value)

    return test, f"a list, each {rule[1]}" + (", none twice" if distinct else "")


def _either(word: str, special: Callable[[Any], bool], rule: Rule) -> Rule:
    return lambda value: special(value) or rule[0](value), f"{word} or {rule[1]}"


def _or_none(rule: Rule) -> Rule:
    return _either("null", lambda value: value is None, rule)


_AXES = _list_of((lambda value: type(value) is int and 0 <= value <= 2, "an axis 0, 1 or 2"), distinct=True)
_ANGLE = _real(0.0, most=180.0)
_PROBABILITY = _real(0.0, most=1.0)

_RULES: dict[str, Rule] = {
    **{name: _integer(1) for name in (
        "volumes_per_batch", "voxels_per_pair", "projector_out", "num_epochs", "num_iterations_per_epoch", "save_every")},
    **{name: _integer(0) for name in ("warmup_epochs", "seed", "num_val_iterations_per_epoch")},
    **{name: _PROBABILITY for name in ("blur_sharpen_p", "noise_p", "window_p", "gain_shift_p")},
    **{name: _real(0.0) for name in (
        "vicreg_sim", "vicreg_var", "vicreg_cov", "lambda_off", "weight_decay", "min_effective_rank")},
    **{name: _real(0.0, open_end=True) for name in ("temperature", "initial_lr")},
    **{name: _range(0.0) for name in ("blur_sigma", "sharpen_sigma", "sharpen_amount", "noise_hu", "noise_z", "gain")},
    **{name: _range() for name in ("window_lo_hu", "window_hi_hu", "shift")},
    "pairs_per_batch": _or_none(_integer(1)),
    "clip": _or_none(_real(0.0, open_end=True)),
    "level_width": _either("'native'", lambda value: value == "native", _integer(1)),
    "projector_hidden": _or_none(_list_of(_integer(1))),
    "rotation_deg": _either(_ANGLE[1], _ANGLE[0], _list_of(_ANGLE)),
    "scale": _range(0.0, open_end=True),
    "flip_axes": _AXES,
    "mirror_axes": _or_none(_AXES),
    "probe": _or_none((lambda value: isinstance(value, dict) and "dataset" in value, "an object with the key 'dataset'")),
}
