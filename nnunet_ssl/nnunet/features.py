"""Dense features of an image file, written as images that lie where the anatomy lies."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor, nn

from nnunet_ssl.errors import UserError
from nnunet_ssl.nnunet.dense import dense_features, levels_reader, pick_levels
from nnunet_ssl.nnunet.files import replacing, write_json
from nnunet_ssl.nnunet.network import build_backbone
from nnunet_ssl.nnunet.pca import fit_components
from nnunet_ssl.nnunet.pyramid_of import pyramid_channels, pyramid_strides
from nnunet_ssl.nnunet.weights import Pretrained, read_checkpoint, transfer

PCA_VOXELS = 50_000  # drawn to fit the components


@dataclass(frozen=True)
class Grid:
    """Where a voxel grid lies in the world. Axes in ITK's order (x, y, z); spacing and origin in mm."""

    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]

    def place(self, image: sitk.Image) -> sitk.Image:
        """Give `image` this geometry."""
        image.SetSpacing(self.spacing)
        image.SetOrigin(self.origin)
        image.SetDirection(self.direction)
        return image


@dataclass(frozen=True)
class FrozenNetwork:
    """A pretrained backbone in eval mode with the plan that its inputs follow."""

    network: nn.Module
    plans: Any  # PlansManager
    configuration: Any  # ConfigurationManager
    input_channels: int


def load_frozen(checkpoint: str | Path, device: torch.device | str = "cpu") -> FrozenNetwork:
    """The backbone of a checkpoint on `device`. Raises UserError for a file without a plan or of another network."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    pretrained = read_checkpoint(checkpoint)
    if pretrained.plans is None or pretrained.configuration is None:
        raise UserError(
            f"{checkpoint} holds no plans, so how its images were preprocessed is unknown. Expected a checkpoint "
            "that a training of nnU-Net or of this package wrote."
        )
    plans = PlansManager(pretrained.plans)
    configuration = plans.get_configuration(pretrained.configuration)
    channels = input_channels(pretrained)
    network = build_backbone(configuration, channels, 2, enable_deep_supervision=False)
    transfer(network, pretrained, threshold=0.999, adapt_stem=False)
    return FrozenNetwork(network.to(device).eval().requires_grad_(False), plans, configuration, channels)


def input_channels(pretrained: Pretrained) -> int:
    """Image channels of the network: those of the first convolution of its encoder."""
    for name, weight in pretrained.weights.items():
        if name.startswith("encoder.") and weight.ndim >= 4:
            return int(weight.shape[1])
    raise UserError(f"{pretrained.path} holds no convolution under encoder.*; expected the checkpoint of a U-Net.")


def preprocess(frozen: FrozenNetwork, images: Sequence[str | Path]) -> tuple[np.ndarray, dict[str, Any], type]:
    """Read the channels of one subject and preprocess them -> (C, z, y, x), properties, the reader used."""
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_file_ending

    paths = [str(path) for path in images]
    missing = [path for path in paths if not Path(path).is_file()]
    if missing:
        raise UserError(f"No image at {', '.join(missing)}. Give one file a channel, in the order of the training.")
    reader = frozen.plans.image_reader_writer_class
    try:
        if not paths[0].lower().endswith(tuple(reader.supported_file_endings)):
            ending = "".join(Path(paths[0]).suffixes[-2:]) if paths[0].endswith(".gz") else Path(paths[0]).suffix
            reader = determine_reader_writer_from_file_ending(ending, paths[0], verbose=False)
        data, properties = reader().read_images(paths)
    except Exception as error:  # each reader has its own; all of them mean the same here
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{', '.join(paths)} could not be read as an image: {reason}") from error
    if len(data) != frozen.input_channels:
        raise UserError(
            f"The network takes {frozen.input_channels} channel(s), {len(data)} were given. Give -i one file a "
            "channel, in the order of the training's channel_names."
        )
    preprocessor = frozen.configuration.preprocessor_class(verbose=False)
    done, _, properties = preprocessor.run_case_npy(data, None, properties, frozen.plans, frozen.configuration, {})
    return done, properties, reader


def grid_of(image: str | Path, reader: type, properties: dict[str, Any], plans: Any, shape: Sequence[int]) -> Grid:
    """The world position of the preprocessed grid of `shape` (z, y, x, transposed as the plan says).

    nnU-Net crops and then resamples so that the outer borders of the first and last voxels stay: voxel i of n new ones
    lies at (i + 0.5) * old / n - 0.5 of the `old` cropped ones.
    """
    original = sitk.ReadImage(str(image))
    if original.GetDimension() == 4:  # several channels in one file
        original = original[:, :, :, 0]
    if "Reorient" in reader.__name__:  # these readers turn every image to RAS first
        original = sitk.DICOMOrient(original, "RAS")
    first, ratio = [], []
    for axis in plans.transpose_backward:
        low, high = properties["bbox_used_for_cropping"][axis]
        ratio.append((high - low) / shape[axis])
        first.append(low + 0.5 * ratio[-1] - 0.5)
    dimension = original.GetDimension()
    ratio, first = ratio[::-1][:dimension], first[::-1][:dimension]  # ITK's x, y, z
    spacing = tuple(float(s * r) for s, r in zip(original.GetSpacing(), ratio, strict=True))
    origin = original.TransformContinuousIndexToPhysicalPoint([float(value) for value in first])
    return Grid(spacing, tuple(origin), tuple(original.GetDirection()))


def write_vectors(path: Path, array: np.ndarray, grid: Grid) -> None:
    """Write (z, y, x, C) as an image with C components a voxel."""
    if len(grid.spacing) == 2:
        array = array[0]
    with replacing(path) as beside:
        sitk.WriteImage(grid.place(sitk.GetImageFromArray(array, isVector=True)), str(beside), True)


def colour(features: Tensor, components: int, channels: Sequence[int], seed: int = 0) -> np.ndarray:
    """(C, z, y, x) -> (z, y, x, components) uint8: principal components, percentile-scaled, levels weighing the same.

    channels: widths of the levels, C in all.
    """
    flat = features.flatten(1)  # (C, V)
    rng = np.random.default_rng(seed)
    drawn = rng.choice(flat.shape[1], min(PCA_VOXELS, flat.shape[1]), replace=False)
    basis = fit_components(flat[:, torch.from_numpy(drawn)].T.float(), components, groups=channels)
    parts = [basis.colours(part.T) for part in flat.split(2**18, dim=1)]
    return (torch.cat(parts) * 255).round().byte().view(*features.shape[1:], components).numpy()


def write_features(
    images: Sequence[str | Path],
    checkpoint: str | Path,
    output: str | Path,
    *,
    levels: Sequence[int] | None = None,
    pca: int | None = None,
    fp16: bool = False,
    step: float = 0.5,
    stitch: str = "core",
    device: torch.device | str = "cpu",
) -> list[Path]:
    """Write the dense features of one subject on the network's own grid; returns the files written.

    output: NAME.nii.gz or NAME.nii. NAME.nii.gz holds a vector a voxel (float32; the levels in order, finest first).
    fp16 writes NAME.npy (C, z, y, x) float16 and NAME.json (its geometry) instead, because NIfTI has no half precision.
    pca adds NAME_pca.nii.gz: that many principal components, uint8 (3: shown as RGB). Raises UserError.
    """
    output = Path(output)
    if not output.name.endswith((".nii", ".nii.gz")):
        raise UserError(f"The output is {output}; expected a name that ends in .nii.gz or .nii.")
    frozen = load_frozen(checkpoint, device)
    channels = pyramid_channels(frozen.network)
    chosen = _checked_levels(channels, levels, pca)
    data, properties, reader = preprocess(frozen, images)
    _check_memory(sum(channels[i] for i in chosen), data.shape[1:], fp16)
    features = dense_features(
        levels_reader(frozen.network), pyramid_strides(frozen.network), data, frozen.configuration.patch_size,
        levels=chosen, dtype=torch.float16 if fp16 else torch.float32, step=step, stitch=stitch, device=device,
    )  # fmt: skip
    grid = grid_of(images[0], reader, properties, frozen.plans, data.shape[1:])
    features = features.permute(0, *(1 + axis for axis in frozen.plans.transpose_backward))  # the file's own axes
    return _write(output, features, grid, {"levels": chosen, "channels": [channels[i] for i in chosen]}, pca)


def _checked_levels(channels: Sequence[int], levels: Sequence[int] | None, pca: int | None) -> list[int]:
    try:
        chosen = pick_levels(channels, levels)
    except ValueError as error:
        raise UserError(f"--levels: {error}.") from error
    width = sum(channels[i] for i in chosen)
    if pca is not None and not 1 <= pca <= width:
        raise UserError(f"--pca is {pca}; expected 1 to {width}, the levels' channels.")
    return chosen


def _write(output: Path, features: Tensor, grid: Grid, about: dict[str, Any], pca: int | None) -> list[Path]:
    """Write (C, z, y, x) and its components by the names that `write_features` states; returns the files."""
    ending = ".nii.gz" if output.name.endswith(".gz") else ".nii"
    name = output.name[: -len(ending)]
    if features.dtype == torch.float16:
        written = _write_half(output.with_name(name), features, grid, about)
    else:
        write_vectors(output, features.permute(1, 2, 3, 0).contiguous().numpy(), grid)
        written = [output]
    if pca is not None:
        written.append(output.with_name(f"{name}_pca{ending}"))
        write_vectors(written[-1], colour(features, pca, about["channels"]), grid)
    return written


def _write_half(stem: Path, features: Tensor, grid: Grid, about: dict[str, Any]) -> list[Path]:
    array, description = stem.with_name(stem.name + ".npy"), stem.with_name(stem.name + ".json")
    with replacing(array) as beside:
        np.save(beside, features.numpy())
    write_json(description, {
        "array": array.name, "axes": "C, z, y, x", **about,
        "spacing_mm_xyz": grid.spacing, "origin_mm_xyz": grid.origin, "direction": grid.direction,
    })  # fmt: skip
    return [array, description]


def _check_memory(channels: int, shape: Sequence[int], fp16: bool) -> None:
    """Refuse before the work what cannot be held. The array is held twice while it is written."""
    needed = 2 * channels * int(np.prod(shape)) * (2 if fp16 else 4)
    try:
        present = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not a POSIX system
        return
    if needed > 0.9 * present:
        raise UserError(
            f"{channels} features at {tuple(int(n) for n in shape)} voxels take {needed / 2**30:.1f} GiB; this machine "
            f"has {present / 2**30:.1f}. Choose fewer levels (--levels 0 1) or half precision (--fp16)."
        )
