"""Losses on embeddings, one criterion a file."""

from nnunet_ssl.losses.barlow_twins import barlow_twins
from nnunet_ssl.losses.info_nce import info_nce
from nnunet_ssl.losses.vicreg import vicreg, vicreg_terms

__all__ = ["barlow_twins", "info_nce", "vicreg", "vicreg_terms"]
