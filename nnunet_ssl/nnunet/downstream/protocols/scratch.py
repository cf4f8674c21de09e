"""The same network and number of steps from random weights, at nnU-Net's own rate: what pretraining is measured by."""

from nnunet_ssl.nnunet.downstream.protocols import Protocol

PROTOCOL = Protocol("scratch", pretrained=False)
