"""``-tr SSLFineTuneTrainer``."""

from nnunet_ssl.nnunet.downstream.protocols.fine_tune import PROTOCOL
from nnunet_ssl.nnunet.downstream.trainer import DownstreamTrainer


class SSLFineTuneTrainer(DownstreamTrainer):
    """The whole pretrained network is trained: first the head, then everything."""

    protocol = PROTOCOL
