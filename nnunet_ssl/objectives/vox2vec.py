"""vox2vec (Goncharov et al., MICCAI 2023, arXiv 2307.14725): the numbers of one pretraining, and what they may be.

The defaults are those of the published code. Where the paper's text and the code differ, the choice is a field:
``volumes_per_batch`` (code: all pairs from one volume; text: one volume a pair) and ``loss`` (text: also VICReg).
How views are drawn from these numbers is in ``nnunet_ssl.views`` (space) and ``nnunet_ssl.intensity``; the training
step that uses them is in ``nnunet_ssl.step``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from nnunet_ssl import fields
from nnunet_ssl.probe import ProbeSettings


@dataclass(frozen=True)
class Recipe:
    """All settings of a vox2vec pretraining, JSON-able: the ``ssl`` block of a plans file.

    Lengths are in voxels, angles in degrees, intensities in HU (``*_hu``) or in units of the normalised image
    (``noise_z``, ``gain``, ``shift``). Pairs of numbers are [least, greatest] of a uniform draw.
    """

    # a batch
    objective: str = "vox2vec"
    volumes_per_batch: int = 1  # 1: published code; as many as pairs: the paper's text
    pairs_per_batch: int | None = None  # over all processes; None: the plan's batch_size (preset vox2vec: 10)
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
    reading: str | None = None  # of the levels; None: nearest, and linear for affine views (points between voxels)
    projector_hidden: list[int] | None = None  # None: two layers as wide as the pyramid (vicreg: 8192, 8192)
    projector_out: int | None = None  # length of an embedding; None: 128 (vicreg: 8192)

    # views: space
    spatial: str = "none"  # none: crops at integer positions; affine: rotated and scaled in mm, read linearly
    rotation_deg: float | list[float] = 10.0  # angles U(-r, r) about each axis (z, y, x), or one number for all
    scale: list[float] = field(default_factory=lambda: [0.8, 1.25])  # apparent size, drawn uniformly in its logarithm
    flip_axes: list[int] = field(default_factory=list)  # each with probability 1/2, each view by itself

    # views: intensity
    intensity: str = "auto"  # auto: hu for CT channels, zscore for all others
    blur_sharpen_p: float = 0.5
    blur_sigma: list[float] = field(default_factory=lambda: [0.25, 1.5])
    sharpen_sigma: list[float] = field(default_factory=lambda: [0.5, 1.0])
    sharpen_amount: list[float] = field(default_factory=lambda: [10.0, 30.0])
    noise_p: float = 0.5
    noise_hu: list[float] = field(default_factory=lambda: [0.0, 30.0])
    noise_z: list[float] = field(default_factory=lambda: [0.0, 0.1])
    window_p: float = 0.8
    window_lo_hu: list[float] = field(default_factory=lambda: [-1350.0, -1000.0])
    window_hi_hu: list[float] = field(default_factory=lambda: [300.0, 1000.0])
    gain_shift_p: float = 0.8  # what the window is to CT, gain and shift are to the others
    gain: list[float] = field(default_factory=lambda: [0.75, 1.25])
    shift: list[float] = field(default_factory=lambda: [-0.25, 0.25])

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

    @property
    def level_reading(self) -> str:
        """How levels are read: ``nearest`` or ``linear``."""
        return self.reading or ("linear" if self.spatial == "affine" else "nearest")

    def hidden_widths(self, pyramid_width: int) -> list[int]:
        """Widths of the projector's hidden layers for a voxel vector of `pyramid_width` numbers."""
        if self.projector_hidden is not None:
            return list(self.projector_hidden)
        return [8192, 8192] if self.loss == "vicreg" else [pyramid_width, pyramid_width]

    @property
    def embedding_width(self) -> int:
        """Length of an embedding."""
        return self.projector_out or (8192 if self.loss == "vicreg" else 128)

    def validate(self) -> None:
        """Raise ValueError that names the first field with a value that cannot be used, and what can."""
        fields.check(self, RULES)
        if self.probe is not None:
            ProbeSettings.parse(self.probe)
        lo, hi = self.window_lo_hu, self.window_hi_hu
        if lo[1] >= hi[0]:
            raise ValueError(f"window_lo_hu is {lo}; expected to end below the start of window_hi_hu {hi}")


def _rules() -> dict[str, fields.Rule]:
    """What each field may be."""
    axes = fields.list_of(fields.whole(0, 2), distinct=True)
    angle = fields.number(0.0, 180.0)
    choices = {
        "objective": ("vox2vec",),
        "loss": ("info_nce", "vicreg", "barlow_twins"),
        "spatial": ("none", "affine"),
        "intensity": ("auto", "hu", "zscore", "none"),
        "optimizer": ("adam", "adamw", "sgd"),
        "schedule": ("constant", "cosine", "poly"),
        "amp": ("auto", "bf16", "fp16", "off"),
        "gather": ("all", "none"),
    }
    groups: list[tuple[fields.Rule, str]] = [
        (fields.whole(1), "volumes_per_batch voxels_per_pair save_every"),
        (fields.whole(1), "num_epochs num_iterations_per_epoch"),
        (fields.whole(0), "warmup_epochs seed num_val_iterations_per_epoch"),
        (fields.number(0.0, 1.0), "blur_sharpen_p noise_p window_p gain_shift_p"),
        (fields.number(0.0), "vicreg_sim vicreg_var vicreg_cov lambda_off weight_decay min_effective_rank"),
        (fields.number(0.0, above=True), "temperature initial_lr"),
        (fields.interval(0.0), "blur_sigma sharpen_sigma sharpen_amount noise_hu noise_z gain"),
        (fields.interval(), "window_lo_hu window_hi_hu shift"),
    ]
    return {
        **{name: fields.choice(*values) for name, values in choices.items()},
        **{name: rule for rule, names in groups for name in names.split()},
        "reading": fields.or_none(fields.choice("nearest", "linear")),
        "pairs_per_batch": fields.or_none(fields.whole(1)),
        "projector_out": fields.or_none(fields.whole(1)),
        "clip": fields.or_none(fields.number(0.0, above=True)),
        "level_width": fields.either(fields.choice("native"), fields.whole(1)),
        "projector_hidden": fields.or_none(fields.list_of(fields.whole(1))),
        "rotation_deg": fields.either(angle, fields.list_of(angle)),
        "scale": fields.interval(0.0, above=True),
        "flip_axes": axes,
        "mirror_axes": fields.or_none(axes),
        "probe": fields.or_none(fields.mapping("dataset")),
    }


RULES = _rules()
