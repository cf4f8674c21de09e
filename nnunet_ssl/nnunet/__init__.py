"""The bridge to nnU-Net: the only package here that imports nnunetv2."""
