"""A linear classifier on the frozen voxel vectors (vox2vec, linear probing)."""

from nnunet_ssl.nnunet.downstream.protocols import Protocol

PROTOCOL = Protocol("linear probe", head="linear", frozen=("encoder", "decoder"), initial_lr=1e-3, weight_decay=1e-2,
                    optimizer="adamw", schedule="cosine", standardise=True)  # fmt: skip
