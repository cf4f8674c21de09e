"""Losses on embeddings, one criterion a file."""
