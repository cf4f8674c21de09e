"""Networks that a plans file may name."""

from nnunet_ssl.networks.fpn import FPN3d, FPN3dUNet

__all__ = ["FPN3d", "FPN3dUNet"]
