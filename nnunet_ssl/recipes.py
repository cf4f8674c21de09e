"""What the recipes of all objectives have in common: the batch, the loss, the embeddings, the optimisation.

An objective (a module of ``nnunet_ssl.objectives``) has a class ``Recipe`` that adds how its views are drawn and sets
its paper's numbers. The step, the networks and the trainers read only what is here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from nnunet_ssl import fields
from nnunet_ssl.probe import ProbeSettings


@dataclass(frozen=True)
class BaseRecipe:
    """Settings of a pretraining, JSON-able: the ``ssl`` block of a plans file."""

    RULES: ClassVar[dict[str, fields.Rule]]  # one a field
    # the largest part of the median image's axis that a planned patch takes; None: as much as nnU-Net plans
    PATCH_OF_IMAGE: ClassVar[float | None] = None

    # a batch
    objective: str = ""
    volumes_per_batch: int = 1
    pairs_per_batch: int | None = None  # over all processes; None: the plan's batch_size

    # the loss
    loss: str = "info_nce"
    temperature: float = 0.1
    vicreg_sim: float = 25.0
    vicreg_var: float = 25.0
    vicreg_cov: float = 1.0
    lambda_off: float = 5e-3  # Barlow Twins: weight of the off-diagonal terms
    gather: str = "all"  # all: points of all processes are compared; none: of each process alone
    loss_precision: str = "float32"  # of info_nce's products; reduced: bfloat16; fused: float16, in kernels on a GPU

    # from levels to embeddings
    level_width: str | int = "native"  # a number: every level is projected to this many channels
    reading: str | None = None  # of the levels, nearest or linear; None: as the objective's points ask for
    projector_hidden: list[int] | None = None
    projector_out: int | None = None  # length of an embedding

    # views
    intensity: str = "auto"
    flip_axes: list[int] = field(default_factory=list)  # each with probability 1/2

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
    report_cases: int = 3  # subjects whose features the report shows in the end; 0: numbers alone
    mirror_axes: list[int] | None = None  # for the downstream trainers; None: as nnU-Net decides

    def to_dict(self) -> dict[str, Any]:
        """All fields as a dict that ``json.dumps`` takes."""
        return asdict(self)

    def validate(self) -> None:
        """Raise ValueError that names the first field with a value that cannot be used, and what can."""
        fields.check(self, self.RULES)
        if self.probe is not None:
            ProbeSettings.parse(self.probe)

    @property
    def normalised(self) -> bool:
        """Whether the loss wants embeddings of length one."""
        return self.loss == "info_nce"

    @property
    def level_reading(self) -> str:
        """How levels are read: ``nearest`` or ``linear``."""
        return self.reading or "linear"

    @property
    def outside(self) -> str:
        """What reading linearly finds outside of a level: its ``border`` or ``zeros``."""
        return "border"

    @property
    def widened(self) -> int | None:
        """Channels that a 1^D convolution gives to the finest level; None: it stays as it is."""
        return None

    def read_levels(self, count: int) -> int:
        """How many of `count` levels, finest first, make a voxel vector."""
        return count

    def points(self, patch: Sequence[int]) -> int:
        """Points that are compared a pair, at most, for views of `patch` voxels."""
        raise NotImplementedError

    def hidden_widths(self, vector_width: int) -> list[int]:
        """Widths of the projector's hidden layers for a voxel vector of `vector_width` numbers."""
        raise NotImplementedError

    @property
    def embedding_width(self) -> int:
        """Length of an embedding."""
        raise NotImplementedError


def base_rules(objective: str) -> dict[str, fields.Rule]:
    """What each field of BaseRecipe may be."""
    axes = fields.list_of(fields.whole(0, 2), distinct=True)
    choices = {
        "objective": (objective,),
        "loss": ("info_nce", "vicreg", "barlow_twins"),
        "intensity": ("auto", "hu", "zscore", "none"),
        "optimizer": ("adam", "adamw", "sgd"),
        "schedule": ("constant", "cosine", "poly"),
        "amp": ("auto", "bf16", "fp16", "off"),
        "gather": ("all", "none"),
        "loss_precision": ("float32", "reduced", "fused"),
    }
    groups: list[tuple[fields.Rule, str]] = [
        (fields.whole(1), "volumes_per_batch save_every num_epochs num_iterations_per_epoch"),
        (fields.whole(0), "warmup_epochs seed num_val_iterations_per_epoch report_cases"),
        (fields.number(0.0), "vicreg_sim vicreg_var vicreg_cov lambda_off weight_decay min_effective_rank"),
        (fields.number(0.0, above=True), "temperature initial_lr"),
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
        "flip_axes": axes,
        "mirror_axes": fields.or_none(axes),
        "probe": fields.or_none(fields.mapping("dataset")),
    }
