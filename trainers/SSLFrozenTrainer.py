"""``-tr SSLFrozenTrainer``."""

from nnunet_ssl.nnunet.downstream.protocols.frozen import PROTOCOL
from nnunet_ssl.nnunet.downstream.trainer import DownstreamTrainer


class SSLFrozenTrainer(DownstreamTrainer):
    """A frozen pretrained encoder; decoder and head are trained."""

    protocol = PROTOCOL
