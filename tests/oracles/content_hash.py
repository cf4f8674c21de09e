"""The content hash of a volume, literally: nibabel turns the axes to RAS+, one voxel after the other is hashed."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import nibabel


def content_hash(path: Path) -> str:
    """Of a NIfTI file: shape (x, y, z), spacing in um, voxels as float32 with x running fastest, little-endian."""
    image = nibabel.as_closest_canonical(nibabel.load(path))
    voxels, (nx, ny, nz) = image.get_fdata(), image.shape
    content = struct.pack("<3q", nx, ny, nz)
    content += struct.pack("<3q", *(round(float(mm) * 1000) for mm in image.header.get_zooms()))
    for z in range(nz):
        for y in range(ny):
            for x in range(nx):
                content += struct.pack("<f", voxels[x, y, z])
    return hashlib.sha256(content).hexdigest()
