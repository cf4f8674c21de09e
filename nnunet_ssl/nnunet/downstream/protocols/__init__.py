"""What the downstream trainers do with a pretrained network: one protocol a file, each a value named PROTOCOL."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Protocol:
    """name: how the logs call it. head: ``linear`` | ``nonlinear`` on the pyramid, None: what ``ssl.head`` says.
    frozen: modules of the network that neither learn nor leave eval mode. pretrained: refuses to start from random
    weights. staged: head only at first, then everything, the backbone at a rate of its own. The rest are the defaults
    of the fields of the same name; with ``ssl.protocol = "vox2vec"`` the paper's apply instead (settings.py).
    """

    name: str
    head: str | None = None
    frozen: tuple[str, ...] = ()
    pretrained: bool = True
    staged: bool = False
    initial_lr: float = 1e-2
    weight_decay: float = 3e-5
    optimizer: str = "sgd"
    schedule: str = "poly"
    standardise: bool = False
