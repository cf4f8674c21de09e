"""Where a downstream training starts from: the weights, checked to have arrived, and the moments of their features."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nnunet_ssl.errors import UserError
from nnunet_ssl.nnunet.downstream.network import bare
from nnunet_ssl.nnunet.weights import TransferReport, read_checkpoint, transfer

REPORT = "transfer_report.json"


def backbone_hash(network: nn.Module) -> str:
    """SHA-256 over the backbone's tensors: two networks with the same one start from the same weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(bare(network).state_dict().items()):
        if ".seg_layers." not in name:
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
                          if tensor.ndim else str(tensor.item()).encode())  # fmt: skip
    return digest.hexdigest()


def load_weights(network: nn.Module, pretrained: dict[str, Any], min_transferred: float) -> TransferReport:
    """Read the checkpoint of ``ssl.pretrained`` and copy its backbone. Raises UserError."""
    found = read_checkpoint(pretrained["path"])
    expected = pretrained.get("sha256")
    if expected is not None and expected != found.sha256:
        raise UserError(
            f"{pretrained['path']} has SHA-256 {found.sha256}, but the plan was made for {expected}: the file has "
            "changed since. Run `nnunet_ssl adapt` again for the new one, under another name (-n)."
        )
    return transfer(network, found, min_transferred)


def loaded_by_stock(network: nn.Module) -> TransferReport:
    """The report of -pretrained_weights: nnU-Net's loader takes every tensor but the segmentation layers."""
    rows = []
    for name, tensor in bare(network).state_dict().items():
        head = ".seg_layers." in name
        rows.append({"name": name, "status": "random" if head else "loaded", "shape": list(tensor.shape),
                     "reason": "head" if head else ""})  # fmt: skip
    return TransferReport("-pretrained_weights", "", 1.0, rows)


def start_weights(network: nn.Module, hash_before: str, recipe: Any, needed: bool, folder: str | Path | None,
                  trainer_name: str) -> TransferReport | None:  # fmt: skip
    """Bring the pretrained weights in and make sure that they did arrive; None for a training from scratch.

    hash_before: `backbone_hash` right after building. What -pretrained_weights loaded since then stays, in place of
    ``ssl.pretrained``. folder: where transfer_report.json goes, None to write none. Raises UserError where nothing was
    loaded although the trainer needs weights, or something was although it must not.
    """
    by_stock = backbone_hash(network) != hash_before
    if not needed:
        if by_stock:
            raise UserError(
                f"{trainer_name} starts from random weights, but -pretrained_weights has loaded some. Leave the option "
                "away, or train SSLFineTuneTrainer."
            )
        return None
    if not by_stock and recipe.pretrained is None:
        raise UserError(
            f"{trainer_name} has no pretrained weights: the configuration's ssl block names none (ssl.pretrained) and "
            "-pretrained_weights was not given. Make a plan with `nnunet_ssl adapt -d ID -w CHECKPOINT`, give "
            "-pretrained_weights CHECKPOINT, or train SSLScratchTrainer."
        )
    report = loaded_by_stock(network) if by_stock else load_weights(network, recipe.pretrained, recipe.min_transferred)
    report.backbone_sha256 = backbone_hash(network)
    if by_stock and recipe.pretrained is not None:
        report.overridden = recipe.pretrained["path"]
    if report.backbone_sha256 == hash_before:
        raise UserError(
            f"{report.source} was read, but the network's weights are what they were: {trainer_name} would start from "
            "random weights. Check that the checkpoint belongs to this plan's architecture."
        )
    if folder is not None:
        report.write(Path(folder) / REPORT)
    return report
