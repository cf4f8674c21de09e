"""Reading pretrained files without executing anything that they contain.

A pretrained file may be a checkpoint of this package (``network_weights`` + ``ssl``), a checkpoint of a stock nnU-Net
training, or the published vox2vec weights (a bare state dict of FPN3d whose kernel axes run x, y, z).
"""

from __future__ import annotations

import hashlib
import pickle
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnunet_ssl.errors import UserError

PUBLISHED_ENCODER = ("first_conv", "left_blocks", "down_blocks", "bottom_block")
PUBLISHED_DECODER = ("up_blocks", "skip_blocks", "right_blocks")


@dataclass
class Pretrained:
    """What a pretrained file holds.

    ``weights``: name -> tensor, names as in an nnU-Net network (``encoder.*``, ``decoder.*``), kernel axes z, y, x.
    ``ssl``: the block of a checkpoint of ours, else None. ``sha256``: of the file. ``trainer_name``: who wrote it.
    ``plans``, ``configuration``, ``dataset_json``: those it was trained with, where the file knows them.
    """

    weights: dict[str, Tensor]
    ssl: dict[str, Any] | None
    sha256: str
    trainer_name: str | None
    path: str = ""
    plans: dict[str, Any] | None = None
    configuration: str | None = None
    dataset_json: dict[str, Any] | None = None
    published: bool = False

    @property
    def objective(self) -> str:
        """The name of the pretraining method, ``supervised`` for a stock checkpoint."""
        if self.ssl is not None:
            return str(self.ssl.get("objective", "ssl"))
        return "vox2vec" if self.published else "supervised"


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def _numpy_reconstructors() -> list[Any]:
    """What stock checkpoints need to be unpickled without executing anything: numpy scalars and their dtypes."""
    core = np._core if hasattr(np, "_core") else np.core  # type: ignore[attr-defined]
    scalar, rebuild = core.multiarray.scalar, core.multiarray._reconstruct
    dtypes = (
        [getattr(np.dtypes, name) for name in dir(np.dtypes) if name.endswith("DType")] if hasattr(np, "dtypes") else []
    )
    allowed: list[Any] = [scalar, rebuild, np.ndarray, np.dtype, *dtypes]
    # numpy 1 and 2 write different module names for the same two functions
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        allowed += [(scalar, f"{module}.scalar"), (rebuild, f"{module}._reconstruct")]
    return allowed


def _allowing_numpy() -> Any:
    """Context in which ``torch.load(weights_only=True)`` also rebuilds numpy scalars."""
    safe_globals = getattr(torch.serialization, "safe_globals", None)
    return safe_globals(_numpy_reconstructors()) if safe_globals is not None else nullcontext()


def load_safely(path: str | Path) -> Any:
    """``torch.load`` that executes nothing a file contains. Raises UserError for a missing, broken or unsafe file."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"No checkpoint at {path}. Give the path of a checkpoint_final.pth of a pretraining.")
    try:
        with _allowing_numpy():
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types: foreign code, truncated zip, not a zip, disk trouble
        reason = _refusal(error)
        if reason is not None:
            raise UserError(
                f"{path} is not a plain checkpoint of tensors and numbers and was not loaded, because unpickling it "
                f"could run foreign code ({reason}). Expected a checkpoint_final.pth written by this package or by "
                "nnU-Net; get the file again from a source that you trust."
            ) from error
        first = (str(error).splitlines() or ["empty file"])[0][:120]
        raise UserError(
            f"{path} could not be read as a checkpoint ({type(error).__name__}: {first}). It is broken, truncated or "
            "of another kind; copy it again, or use checkpoint_latest.pth or checkpoint_best.pth beside it."
        ) from error


def _refusal(error: Exception) -> str | None:
    """What the safe unpickler would not build, None if the error is of another kind."""
    if not isinstance(error, pickle.UnpicklingError):
        return None
    lines = (part.strip() for part in str(error).splitlines())
    return next((line[:160] for line in lines if "GLOBAL" in line or "Unsupported class" in line), None)


def _clean(name: str) -> str:
    """A tensor's name without what DDP and torch.compile put in front."""
    for prefix in ("module.", "_orig_mod."):
        name = name.removeprefix(prefix)
    return name


def _is_state_dict(content: Any) -> bool:
    return isinstance(content, dict) and bool(content) and all(isinstance(value, Tensor) for value in content.values())


def from_published(state: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """Published FPN3d state dict (kernel axes x, y, z) -> names and axes (z, y, x) of FPN3dUNet; None if another."""
    state = {key.removeprefix("backbone."): value for key, value in state.items()}
    if "first_conv.weight" not in state:
        return None
    weights = {}
    for key, value in state.items():
        top = key.split(".")[0]
        if top not in PUBLISHED_ENCODER + PUBLISHED_DECODER:
            continue  # heads and projectors of the published training
        part = "encoder" if top in PUBLISHED_ENCODER else "decoder"
        weights[f"{part}.{key}"] = value.permute(0, 1, 4, 3, 2).contiguous() if value.ndim == 5 else value
    return weights


def read_checkpoint(path: str | Path) -> Pretrained:
    """Read a pretrained file without executing anything in it.

    Raises UserError for a missing or broken file, for a pickle that would run code, and for a file of another kind.
    """
    content = load_safely(path)
    digest = file_sha256(path)
    if isinstance(content, dict) and _is_state_dict(content.get("network_weights")):
        ssl = content.get("ssl")
        arguments = content.get("init_args") or {}
        source = ssl if isinstance(ssl, dict) else arguments
        return Pretrained(
            weights={_clean(key): value for key, value in content["network_weights"].items()},
            ssl=ssl if isinstance(ssl, dict) else None,
            sha256=digest,
            trainer_name=content.get("trainer_name"),
            path=str(path),
            plans=source.get("plans") or arguments.get("plans"),
            configuration=source.get("configuration") or arguments.get("configuration"),
            dataset_json=source.get("dataset_json") or arguments.get("dataset_json"),
        )
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    weights = from_published(state) if _is_state_dict(state) else None
    if weights is None:
        found = (
            f"the keys {sorted(map(str, content))[:6]}" if isinstance(content, dict) else f"a {type(content).__name__}"
        )
        raise UserError(
            f"{path} is neither a checkpoint of this package or of nnU-Net (key network_weights) nor the published "
            f"vox2vec weights (key first_conv.weight): it holds {found}. Give a checkpoint_final.pth."
        )
    return Pretrained(weights, None, digest, None, path=str(path), published=True)
