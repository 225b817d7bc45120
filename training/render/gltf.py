"""Reads glTF and GLB: triangles, base colours and textures of the default pose.

Base colour factors and vertex colours are linear as the format says; textures stay in sRGB.
Skinned meshes are posed by their joints. Animations, lights and cameras are left out.
"""

from __future__ import annotations

import base64
import io
import json
import struct
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bootpig_rt.errors import BackendUnavailable, InputError
from bootpig_rt.training.render.mesh import Floats, Mesh, Part, Pixels, face_normals, join, unit

TYPES: dict[int, np.dtype[Any]] = {
    5120: np.dtype("<i1"),
    5121: np.dtype("<u1"),
    5122: np.dtype("<i2"),
    5123: np.dtype("<u2"),
    5125: np.dtype("<u4"),
    5126: np.dtype("<f4"),
}
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}
DRACO = "KHR_draco_mesh_compression"
TRIANGLES = 4


def read_gltf(path: Path) -> Mesh:
    """Read all triangles of a file's scene.

    Raises:
        InputError: The file is damaged or has no triangles.
        BackendUnavailable: It is compressed by Draco, and DracoPy is missing.
        OSError: It cannot be read.
    """
    try:
        # Numbers that are none are refused where the model is stood on the ground.
        with np.errstate(all="ignore"):
            return _Reader(path).mesh()
    except (ValueError, KeyError, IndexError, TypeError, struct.error, SyntaxError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is damaged ({error!r}); fetch it again") from error


class _Reader:
    """One file while it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        data = path.read_bytes()
        self.chunk = b""
        if data[:4] == b"glTF":
            size = struct.unpack_from("<I", data, 12)[0]
            self.json: dict[str, Any] = json.loads(data[20 : 20 + size])
            self.chunk = data[28 + size :]
        else:
            self.json = json.loads(data)
        self.buffers: dict[int, bytes] = {}

    def mesh(self) -> Mesh:
        nodes = self.json.get("nodes", [])
        scenes = self.json.get("scenes") or [{"nodes": list(range(len(nodes)))}]
        placed: list[tuple[int, NDArray[np.float64]]] = []
        todo = [(int(n), np.eye(4)) for n in scenes[self.json.get("scene", 0)].get("nodes", [])]
        while todo:
            number, parent = todo.pop()
            if len(placed) > len(nodes):
                raise InputError(f"{self.path} has a loop in its nodes; fetch it again")
            matrix = parent @ _matrix(nodes[number])
            placed.append((number, matrix))
            todo += [(int(child), matrix) for child in nodes[number].get("children", [])]
        world = dict(placed)
        found = []
        for number, matrix in placed:
            node = nodes[number]
            if "mesh" not in node:
                continue
            skin = self.json["skins"][node["skin"]] if "skin" in node else None
            for primitive in self.json["meshes"][node["mesh"]]["primitives"]:
                if primitive.get("mode", TRIANGLES) == TRIANGLES:
                    found.append(self._primitive(primitive, matrix, skin, world))
        found = [mesh for mesh in found if mesh.num_faces]
        if not found:
            raise InputError(f"{self.path} has no triangles; leave the model out")
        return join(found)

    def _primitive(
        self,
        primitive: dict[str, Any],
        matrix: NDArray[np.float64],
        skin: dict[str, Any] | None,
        world: dict[int, NDArray[np.float64]],
    ) -> Mesh:
        names = primitive["attributes"]
        if DRACO in primitive.get("extensions", {}):
            arrays, indices = self._draco(primitive["extensions"][DRACO])
        else:
            arrays = {name: self._accessor(number) for name, number in names.items()}
            indices = (
                self._accessor(primitive["indices"]).ravel().astype(np.uint32)
                if "indices" in primitive
                else np.arange(len(arrays["POSITION"]), dtype=np.uint32)
            )
        positions = arrays["POSITION"].astype(np.float32)
        if len(indices) and indices.max() >= len(positions):
            raise InputError(f"{self.path} names a vertex that it lacks; fetch it again")
        indices = indices[: len(indices) // 3 * 3]
        normals = arrays.get("NORMAL")
        if normals is None or len(normals) != len(positions):
            normals = face_normals(positions, indices)
        if skin is not None and "JOINTS_0" in arrays:
            bones = self._skin(skin, world)
            weights = arrays["WEIGHTS_0"]
            blend = np.einsum("vk,vkij->vij", weights, bones[arrays["JOINTS_0"].astype(int)])
        else:
            blend = np.broadcast_to(matrix, (len(positions), 4, 4))
        placed = np.einsum("vij,vj->vi", blend[:, :3, :3], positions) + blend[:, :3, 3]
        turned = np.einsum("vij,vj->vi", _for_normals(blend[:, :3, :3]), normals)
        factor, texture = self._material(primitive.get("material"))
        colours = np.broadcast_to(factor, (len(positions), 4)).copy()
        if "COLOR_0" in arrays and len(arrays["COLOR_0"]) == len(positions):
            given = arrays["COLOR_0"]
            colours[:, : given.shape[1]] *= given
        uvs = arrays.get("TEXCOORD_0", np.zeros((len(positions), 2)))
        if texture is not None:
            texture, uvs = _moved(texture, uvs, self._transform(primitive.get("material")))
        return Mesh(
            placed.astype(np.float32),
            unit(turned.astype(np.float32)),
            uvs.astype(np.float32),
            colours.astype(np.float32),
            indices,
            (Part(0, len(indices), texture),),
        )

    def _accessor(self, number: int) -> NDArray[Any]:
        """An accessor's values, [N, width]; normalised integers become floats."""
        accessor = self.json["accessors"][number]
        kind, width = TYPES[accessor["componentType"]], WIDTHS[accessor["type"]]
        count = int(accessor["count"])
        if "bufferView" not in accessor:
            return np.zeros((count, width), kind)
        view = self.json["bufferViews"][accessor["bufferView"]]
        start = int(view.get("byteOffset", 0)) + int(accessor.get("byteOffset", 0))
        stride = int(view.get("byteStride", 0)) or width * kind.itemsize
        data = self._buffer(view.get("buffer", 0))
        values: NDArray[Any] = np.ndarray(
            (count, width), kind, data, start, (stride, kind.itemsize)
        )
        if accessor.get("normalized") and kind.kind in "iu":
            return values.astype(np.float32) / np.float32(np.iinfo(kind).max)
        return values

    def _buffer(self, number: int) -> bytes:
        if number not in self.buffers:
            uri = self.json["buffers"][number].get("uri")
            self.buffers[number] = self.chunk if uri is None else self._uri(uri)
        return self.buffers[number]

    def _uri(self, uri: str) -> bytes:
        if uri.startswith("data:"):
            return base64.b64decode(uri.partition(",")[2])
        path = (self.path.parent / unquote(uri)).resolve()
        if self.path.parent.resolve() not in path.parents:
            raise InputError(f"{self.path} names {uri!r}, expected a file beside it")
        return path.read_bytes()

    def _view(self, number: int) -> bytes:
        view = self.json["bufferViews"][number]
        start = int(view.get("byteOffset", 0))
        return self._buffer(view.get("buffer", 0))[start : start + int(view["byteLength"])]

    def _draco(self, extension: dict[str, Any]) -> tuple[dict[str, NDArray[Any]], Any]:
        try:
            import DracoPy
        except ImportError as error:
            raise BackendUnavailable(
                f"{self.path} is compressed by Draco, which needs DracoPy; install it with "
                "`pip install 'bootpig-rt[render]'`"
            ) from error
        mesh = DracoPy.decode(self._view(extension["bufferView"]))
        arrays = {
            name: np.asarray(mesh.get_attribute_by_unique_id(number)["data"])
            for name, number in extension["attributes"].items()
        }
        return arrays, np.asarray(mesh.faces).ravel().astype(np.uint32)

    def _skin(
        self, skin: dict[str, Any], world: dict[int, NDArray[np.float64]]
    ) -> NDArray[np.float64]:
        joints = np.stack([world.get(int(joint), np.eye(4)) for joint in skin["joints"]])
        if "inverseBindMatrices" not in skin:
            return joints
        # Columns first, as all matrices of the format.
        inverse = self._accessor(skin["inverseBindMatrices"]).reshape(-1, 4, 4).swapaxes(1, 2)
        return np.asarray(joints @ inverse)

    def _material(self, number: int | None) -> tuple[Floats, Pixels | None]:
        white = np.ones(4, np.float32)
        if number is None:
            return white, None
        material = self.json["materials"][number]
        pbr = material.get("pbrMetallicRoughness", {})
        factor = np.asarray(pbr.get("baseColorFactor", white), np.float32)
        if material.get("alphaMode", "OPAQUE") == "OPAQUE":
            factor = np.append(factor[:3], np.float32(1))
        if "baseColorTexture" not in pbr:
            return factor, None
        source = self.json["textures"][pbr["baseColorTexture"]["index"]].get("source")
        if source is None:  # in a format of an extension
            return factor, None
        image = self.json["images"][source]
        data = self._view(image["bufferView"]) if "bufferView" in image else self._uri(image["uri"])
        return factor, decode_texture(data)

    def _transform(self, number: int | None) -> dict[str, Any]:
        if number is None:
            return {}
        texture = self.json["materials"][number]["pbrMetallicRoughness"]["baseColorTexture"]
        found: dict[str, Any] = texture.get("extensions", {}).get("KHR_texture_transform", {})
        return found


@lru_cache(maxsize=64)
def decode_texture(data: bytes) -> Pixels:
    """Decode a texture, uint8 [H, W, 4] in sRGB; the models of a pack share one array."""
    with Image.open(io.BytesIO(data), formats=["PNG", "JPEG", "WEBP"]) as image:
        return np.asarray(image.convert("RGBA"), np.uint8)


def _moved(
    texture: Pixels, uvs: NDArray[Any], transform: dict[str, Any]
) -> tuple[Pixels, NDArray[Any]]:
    scale = np.asarray(transform.get("scale", (1, 1)))
    return texture, uvs * scale + np.asarray(transform.get("offset", (0, 0)))


def _matrix(node: dict[str, Any]) -> NDArray[np.float64]:
    """A node's own transform, [4, 4]."""
    if "matrix" in node:
        return np.asarray(node["matrix"], np.float64).reshape(4, 4).T
    x, y, z, w = node.get("rotation", (0, 0, 0, 1))
    matrix = np.eye(4)
    matrix[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    matrix[:3, :3] *= np.asarray(node.get("scale", (1, 1, 1)))
    matrix[:3, 3] = node.get("translation", (0, 0, 0))
    return matrix


def _for_normals(matrices: NDArray[np.float64]) -> NDArray[np.float64]:
    """The cofactors of [V, 3, 3]: what turns normals, also where a scale is not even."""
    a, b, c = matrices[:, :, 0], matrices[:, :, 1], matrices[:, :, 2]
    return np.stack([np.cross(b, c), np.cross(c, a), np.cross(a, b)], axis=2)
