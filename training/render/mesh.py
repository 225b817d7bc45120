"""A model as triangles, standing on the ground: what loaders return and the renderer draws.

The ground is y = 0, up is +y, and the longest side of a normalised model is 1. Colours of vertices
are linear, pixels of textures are sRGB; the renderer turns the latter to linear.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bootpig_rt.errors import InputError

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Part:
    """Triangles of one material: indices from `first`, `count` of them, and their texture.

    `texture` is uint8 [H, W, 4] in sRGB, None for a part of plain colour.
    """

    first: int
    count: int
    texture: Pixels | None = None


@dataclass(frozen=True)
class Mesh:
    """Vertices, triangles and materials of one model.

    Attributes:
        positions: float32 [V, 3].
        normals: float32 [V, 3], of unit length.
        uvs: float32 [V, 2], (0, 0) is the upper left corner of a texture.
        colours: float32 [V, 4], linear RGB and opacity, multiplied with the texture.
        indices: uint32 [3 F], three a triangle.
        parts: Cover `indices`.
    """

    positions: Floats
    normals: Floats
    uvs: Floats
    colours: Floats
    indices: NDArray[np.uint32]
    parts: tuple[Part, ...]

    @property
    def num_faces(self) -> int:
        """Number of triangles."""
        return len(self.indices) // 3

    @property
    def is_plain(self) -> bool:
        """Whether it has one grey colour and no texture, so that it may be given any look."""
        if any(part.texture is not None for part in self.parts):
            return False
        return bool(np.ptp(self.colours[:, :3], axis=0).max() < 0.01)


def join(meshes: list[Mesh]) -> Mesh:
    """One mesh of several."""
    vertices = np.cumsum([0, *(len(mesh.positions) for mesh in meshes)])
    indices = np.cumsum([0, *(len(mesh.indices) for mesh in meshes)])
    return Mesh(
        np.concatenate([mesh.positions for mesh in meshes]),
        np.concatenate([mesh.normals for mesh in meshes]),
        np.concatenate([mesh.uvs for mesh in meshes]),
        np.concatenate([mesh.colours for mesh in meshes]),
        np.concatenate(
            [mesh.indices + np.uint32(n) for mesh, n in zip(meshes, vertices, strict=False)]
        ),
        tuple(
            replace(part, first=part.first + int(first))
            for mesh, first in zip(meshes, indices, strict=False)
            for part in mesh.parts
        ),
    )


def stand(mesh: Mesh, name: str) -> Mesh:
    """Put a model on the ground, centred, with a longest side of 1.

    Raises:
        InputError: It has no triangles, no extent, or positions that are no numbers.
    """
    if mesh.num_faces == 0:
        raise InputError(f"{name} has no triangles; does it need DracoPy, or is it only bones?")
    used = mesh.positions[mesh.indices]
    low, high = used.min(0), used.max(0)
    with np.errstate(all="ignore"):
        longest = float((high - low).max())
    if not np.isfinite(longest) or longest <= 0:
        raise InputError(f"{name} has no extent ({longest}); leave the model out")
    origin = np.array([(low[0] + high[0]) / 2, low[1], (low[2] + high[2]) / 2], np.float32)
    return replace(mesh, positions=((mesh.positions - origin) / longest).astype(np.float32))


def face_normals(positions: Floats, indices: NDArray[np.uint32]) -> Floats:
    """Normals for a mesh that has none, float32 [V, 3]: the mean of the faces at a vertex."""
    corners = positions[indices.reshape(-1, 3)]
    faces = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = np.zeros_like(positions)
    for corner in range(3):
        np.add.at(normals, indices.reshape(-1, 3)[:, corner], faces)
    return unit(normals)


def unit(vectors: Floats) -> Floats:
    """Vectors [..., 3] of unit length; those of no length point up."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    up = np.array([0, 1, 0], np.float32)
    return np.where(lengths > 1e-12, vectors / np.maximum(lengths, 1e-12), up).astype(np.float32)
