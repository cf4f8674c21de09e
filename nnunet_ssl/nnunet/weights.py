"""Moving pretrained weights into a network, with a report tensor by tensor that fails loudly when too little fits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_ssl.errors import UserError
from nnunet_ssl.nnunet.files import write_json
from nnunet_ssl.nnunet.reading import Pretrained, file_sha256, load_safely, read_checkpoint

__all__ = [
    "DEFAULT_THRESHOLD",
    "Pretrained",
    "TransferReport",
    "adapt_input_channels",
    "file_sha256",
    "load_safely",
    "read_checkpoint",
    "transfer",
]

SEG_LAYERS = ".seg_layers."
PROJECTOR = "projector."
DEFAULT_THRESHOLD = 0.9  # of the backbone's parameters


@dataclass
class TransferReport:
    """Which tensors of a network came from the pretrained file.

    ``tensors``: one entry a distinct tensor of the network: name, status (``loaded``, ``adapted`` or ``random``),
    shape, reason. ``transferred``: fraction of the backbone's parameters (all but segmentation layers) that is loaded
    or adapted.
    ``unused``: names in the file that found no place. ``backbone_sha256``: of the backbone that a training then starts
    from; ``overridden``: the checkpoint of the plan in whose place another was loaded.
    """

    source: str
    sha256: str
    transferred: float
    tensors: list[dict[str, Any]] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    backbone_sha256: str = ""
    overridden: str | None = None

    def count(self, status: str) -> int:
        """Number of tensors with that status."""
        return sum(row["status"] == status for row in self.tensors)

    def summary(self) -> str:
        """One line for a log."""
        return (
            f"transferred {100 * self.transferred:.1f} % of the backbone's parameters from {self.source} "
            f"({self.count('loaded')} tensors loaded, {self.count('adapted')} adapted, {self.count('random')} random; "
            "segmentation layers always are, and do not count)"
            + (f"; {self.overridden}, which ssl.pretrained names, was not used" if self.overridden else "")
        )

    def write(self, path: str | Path) -> None:
        """Write everything as JSON, atomically."""
        write_json(Path(path), {**asdict(self), "percent": round(100 * self.transferred, 2)})


def adapt_input_channels(weight: Tensor, channels: int) -> Tensor:
    """Convolution kernel (out, M, *k) -> (out, channels, *k) with the same sum over input channels.

    More channels: repeated in turn and divided by the number of copies, so that a network that gets each image several
    times answers as before. Fewer: the kernels that fall on the same channel are added.
    """
    old = weight.shape[1]
    if channels >= old:
        source = torch.arange(channels, device=weight.device) % old
        copies = torch.bincount(source, minlength=old).to(weight.dtype)[source]
        return weight[:, source] / copies.view(1, -1, *[1] * (weight.ndim - 2))
    adapted = weight.new_zeros(weight.shape[0], channels, *weight.shape[2:])
    return adapted.index_add_(1, torch.arange(old, device=weight.device) % channels, weight)


def _unwrap(network: nn.Module) -> nn.Module:
    for attribute in ("module", "_orig_mod"):  # DDP outside, compiled inside
        inner = getattr(network, attribute, None)
        network = inner if isinstance(inner, nn.Module) else network
    return network


def _stem(network: nn.Module) -> Tensor | None:
    """The first convolution's kernel: the only tensor whose shape knows the number of image channels."""
    encoder = getattr(network, "encoder", network)
    return next((p for p in encoder.parameters() if p.ndim >= 4), None)


def _distinct_tensors(network: nn.Module) -> Iterable[tuple[list[str], Tensor]]:
    """(all names, tensor) of each parameter and buffer; nnU-Net's networks hold most of theirs under several names."""
    names: dict[int, list[str]] = {}
    tensors: dict[int, Tensor] = {}
    for name, tensor in [
        *network.named_parameters(remove_duplicate=False),
        *network.named_buffers(remove_duplicate=False),
    ]:
        names.setdefault(id(tensor), []).append(name)
        tensors[id(tensor)] = tensor
    return [(names[key], tensors[key]) for key in tensors]


def _is_backbone(name: str) -> bool:
    return SEG_LAYERS not in f".{name}" and not name.startswith(PROJECTOR)


def _match(
    names: list[str], tensor: Tensor, weights: dict[str, Tensor], stem: Tensor | None
) -> tuple[str, Tensor | None, str]:
    """(status, value or None, reason) for one tensor of the network."""
    if not _is_backbone(names[0]):
        return "random", None, "head"
    value = next((weights[name] for name in names if name in weights), None)
    if value is None:
        return "random", None, "not in the file"
    if value.shape == tensor.shape:
        return "loaded", value, ""
    same_but_channels = (
        value.ndim == tensor.ndim and value.shape[:1] + value.shape[2:] == tensor.shape[:1] + tensor.shape[2:]
    )
    if tensor is stem and same_but_channels:
        reason = f"{value.shape[1]} -> {tensor.shape[1]} input channels"
        return "adapted", adapt_input_channels(value.float(), tensor.shape[1]), reason
    return "random", None, f"shape {list(value.shape)} in the file, {list(tensor.shape)} in the network"


def transfer(
    network: nn.Module, pretrained: Pretrained, threshold: float = DEFAULT_THRESHOLD, adapt_stem: bool = True
) -> TransferReport:
    """Copy the backbone's weights into a network, in place.

    Segmentation layers (names with ``.seg_layers.``) and projectors stay as they are. A stem of another number of input
    channels is adapted (:func:`adapt_input_channels`). Raises UserError, with the network untouched, if less than
    ``threshold`` (0..1) of the backbone's parameters found their values.
    """
    network = _unwrap(network)
    stem = _stem(network) if adapt_stem else None
    rows: list[dict[str, Any]] = []
    found: list[tuple[Tensor, Tensor]] = []
    total = moved = 0
    used: set[str] = set()
    for names, tensor in _distinct_tensors(network):
        status, value, reason = _match(names, tensor, pretrained.weights, stem)
        if value is not None:
            found.append((tensor, value))
            used.update(names)
        if isinstance(tensor, nn.Parameter) and _is_backbone(names[0]):
            total += tensor.numel()
            moved += tensor.numel() if value is not None else 0
        rows.append({"name": names[0], "status": status, "shape": list(tensor.shape), "reason": reason})
    unused = [name for name in pretrained.weights if name not in used and _is_backbone(name)]
    report = TransferReport(pretrained.path, pretrained.sha256, moved / max(total, 1), rows, unused)
    if report.transferred < threshold:
        raise UserError(_too_little(report, threshold))
    with torch.no_grad():
        for tensor, value in found:
            tensor.copy_(value)
    return report


def _too_little(report: TransferReport, threshold: float) -> str:
    missing = [row for row in report.tensors if row["status"] == "random" and row["reason"] != "head"]
    examples = "; ".join(f"{row['name']}: {row['reason']}" for row in missing[:3])
    return (
        f"Only {100 * report.transferred:.1f} % of the backbone's parameters could be taken from {report.source}, "
        f"expected at least {100 * threshold:.0f} %: the checkpoint belongs to another architecture ({examples}). Make "
        f"a plan for it with `nnunet_ssl adapt -d ID -w {report.source}`, or lower ssl.min_transferred if you mean it."
    )
