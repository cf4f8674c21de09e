"""Voxel-level self-supervised pretraining as trainers of stock nnU-Net v2."""

__version__ = "0.1.0"
