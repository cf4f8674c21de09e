"""A small top-down network of 1^D convolutions on the frozen pyramid (vox2vec, non-linear probing)."""

from nnunet_ssl.nnunet.downstream.protocols import Protocol

PROTOCOL = Protocol("non-linear probe", head="nonlinear", frozen=("encoder", "decoder"), initial_lr=1e-3,
                    weight_decay=1e-2, optimizer="adamw", schedule="cosine", standardise=True)  # fmt: skip
