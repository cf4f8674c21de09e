"""The encoder stays as it was pretrained; decoder and head learn at nnU-Net's rate."""

from nnunet_ssl.nnunet.downstream.protocols import Protocol

PROTOCOL = Protocol("frozen encoder", frozen=("encoder",))
