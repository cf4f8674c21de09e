"""Figures that papers published, one JSON a paper and dataset: see ``nnunet_ssl.bench.published_rows``."""
