"""``-tr SSLNonlinearProbeTrainer``."""

from nnunet_ssl.nnunet.downstream.protocols.nonlinear_probe import PROTOCOL
from nnunet_ssl.nnunet.downstream.trainer import DownstreamTrainer


class SSLNonlinearProbeTrainer(DownstreamTrainer):
    """A small non-linear head on the frozen pyramid of a pretrained network."""

    protocol = PROTOCOL
