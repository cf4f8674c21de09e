"""``-tr SSLLinearProbeTrainer``."""

from nnunet_ssl.nnunet.downstream.protocols.linear_probe import PROTOCOL
from nnunet_ssl.nnunet.downstream.trainer import DownstreamTrainer


class SSLLinearProbeTrainer(DownstreamTrainer):
    """A linear classifier on the frozen voxel vectors of a pretrained network."""

    protocol = PROTOCOL
