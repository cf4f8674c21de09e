"""``-tr SSLScratchTrainer``."""

from nnunet_ssl.nnunet.downstream.protocols.scratch import PROTOCOL
from nnunet_ssl.nnunet.downstream.trainer import DownstreamTrainer


class SSLScratchTrainer(DownstreamTrainer):
    """The same network and number of steps without pretrained weights."""

    protocol = PROTOCOL
