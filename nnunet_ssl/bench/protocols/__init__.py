"""Protocols of evaluation, one JSON each: see ``nnunet_ssl.bench.presets``."""
