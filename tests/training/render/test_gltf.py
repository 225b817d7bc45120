"""glTF files: colours, textures, poses and Draco as they are; what is damaged is refused."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import io
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from bootpig_rt.errors import BootPIGError, InputError
from bootpig_rt.training.render.gltf import read_gltf
from bootpig_rt.training.render.mesh import Mesh

Box = Callable[..., Mesh]
Glb = Callable[..., bytes]


def test_a_box_comes_back_as_it_was_written(make_box: Box, glb_of: Glb, tmp_path: Path) -> None:
    mesh = make_box(0.5, 2.0, (0.25, 0.5, 0.75, 1.0))
    (tmp_path / "box.glb").write_bytes(glb_of(mesh))
    found = read_gltf(tmp_path / "box.glb")
    for name in ("positions", "normals", "uvs", "indices"):
        assert np.allclose(getattr(found, name), getattr(mesh, name), atol=1e-6), name
    # The factor is linear and stays so.
    assert found.colours == pytest.approx(mesh.colours)
    assert found.num_faces == 12


def test_text_with_its_buffer_inside_reads_like_the_binary_form(
    make_box: Box, glb_of: Glb, tmp_path: Path
) -> None:
    data = glb_of(make_box())
    (tmp_path / "box.glb").write_bytes(data)
    (length,) = struct.unpack_from("<I", data, 12)
    document = json.loads(data[20 : 20 + length])
    packed = base64.b64encode(data[28 + length :]).decode()
    document["buffers"][0]["uri"] = f"data:application/octet-stream;base64,{packed}"
    (tmp_path / "box.gltf").write_text(json.dumps(document))
    one, two = read_gltf(tmp_path / "box.glb"), read_gltf(tmp_path / "box.gltf")
    assert np.array_equal(one.positions, two.positions)
    assert np.array_equal(one.indices, two.indices)


def test_nodes_move_turn_and_scale_what_is_below_them(
    make_box: Box, glb_of: Glb, tmp_path: Path
) -> None:
    half = 0.5**0.5
    nodes = [
        {"children": [1], "translation": [0, 5, 0], "rotation": [0, 0, half, half]},
        {"mesh": 0, "scale": [1, 3, 1]},
    ]
    (tmp_path / "box.glb").write_bytes(glb_of(make_box(), nodes=nodes))
    found = read_gltf(tmp_path / "box.glb")
    # 3 high along y, then turned so that y is -x.
    assert np.ptp(found.positions, axis=0) == pytest.approx([3, 1, 1], abs=1e-5)
    assert found.positions[:, 1].mean() == pytest.approx(5)
    assert np.linalg.norm(found.normals, axis=1) == pytest.approx(1)


def test_a_texture_stays_as_it_is_stored(make_box: Box, glb_of: Glb, tmp_path: Path) -> None:
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    (tmp_path / "skin.png").write_bytes(buffer.getvalue())
    more: dict[str, Any] = {
        "materials": [{"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}}],
        "textures": [{"source": 0}],
        "images": [{"uri": "skin.png"}],
    }
    (tmp_path / "box.glb").write_bytes(glb_of(make_box(), **more))
    texture = read_gltf(tmp_path / "box.glb").parts[0].texture
    assert texture is not None
    assert np.array_equal(texture[..., :3], pixels)


def test_bones_pose_what_they_hold(make_box: Box, glb_of: Glb, tmp_path: Path) -> None:
    mesh = make_box()
    data = glb_of(mesh)
    (length,) = struct.unpack_from("<I", data, 12)
    document, chunk = json.loads(data[20 : 20 + length]), data[28 + length :]
    extra: list[tuple[str, NDArray[Any], int, str]] = [
        ("JOINTS_0", np.zeros((24, 4), np.uint8), 5121, "VEC4"),
        ("WEIGHTS_0", np.tile(np.array([1, 0, 0, 0], np.float32), (24, 1)), 5126, "VEC4"),
        ("inverse", np.eye(4, dtype=np.float32)[None], 5126, "MAT4"),
    ]
    for name, array, component, kind in extra:
        document["bufferViews"].append(
            {"buffer": 0, "byteOffset": len(chunk), "byteLength": array.nbytes}
        )
        number = len(document["bufferViews"]) - 1
        document["accessors"].append(
            {"bufferView": number, "componentType": component, "count": len(array), "type": kind}
        )
        chunk += array.tobytes()
        if name != "inverse":
            document["meshes"][0]["primitives"][0]["attributes"][name] = number
    document["skins"] = [{"joints": [1], "inverseBindMatrices": number}]
    # The node of a skinned mesh moves nothing; its joint does.
    document["nodes"] = [
        {"mesh": 0, "skin": 0, "translation": [9, 9, 9]},
        {"translation": [0, 2, 0]},
    ]
    document["scenes"] = [{"nodes": [0, 1]}]
    packed = base64.b64encode(chunk).decode()
    document["buffers"] = [{"byteLength": len(chunk), "uri": f"data:;base64,{packed}"}]
    (tmp_path / "box.gltf").write_text(json.dumps(document))
    found = read_gltf(tmp_path / "box.gltf")
    assert found.positions == pytest.approx(mesh.positions + np.array([0, 2, 0]), abs=1e-6)


def test_a_compressed_model_has_all_of_its_triangles(
    make_box: Box, glb_of: Glb, tmp_path: Path
) -> None:
    draco = pytest.importorskip("DracoPy", reason="Draco needs the extra `render`")
    mesh = make_box()
    packed = draco.encode(mesh.positions, mesh.indices.reshape(-1, 3), quantization_bits=14)
    document = {
        "asset": {"version": "2.0"},
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [
            {
                "primitives": [
                    {
                        "attributes": {"POSITION": 0},
                        "extensions": {
                            "KHR_draco_mesh_compression": {
                                "bufferView": 0,
                                "attributes": {"POSITION": 0},
                            }
                        },
                    }
                ]
            }
        ],
        "bufferViews": [{"buffer": 0, "byteLength": len(packed)}],
        "buffers": [
            {
                "byteLength": len(packed),
                "uri": "data:;base64," + base64.b64encode(packed).decode(),
            }
        ],
    }
    (tmp_path / "box.gltf").write_text(json.dumps(document))
    found = read_gltf(tmp_path / "box.gltf")
    assert found.num_faces == 12
    assert np.ptp(found.positions, axis=0) == pytest.approx([1, 1, 1], abs=1e-3)


def test_a_file_that_names_one_outside_of_its_folder_is_refused(
    make_box: Box, glb_of: Glb, tmp_path: Path
) -> None:
    (tmp_path / "secret.bin").write_bytes(b"x" * 4096)
    (tmp_path / "models").mkdir()
    more = {"buffers": [{"byteLength": 4096, "uri": "../secret.bin"}]}
    (tmp_path / "models" / "box.glb").write_bytes(glb_of(make_box(), **more))
    with pytest.raises(InputError, match="expected a file beside it"):
        read_gltf(tmp_path / "models" / "box.glb")


def test_a_file_without_triangles_is_refused(make_box: Box, glb_of: Glb, tmp_path: Path) -> None:
    mesh = make_box()
    (tmp_path / "box.glb").write_bytes(glb_of(dataclasses.replace(mesh, indices=mesh.indices[:0])))
    with pytest.raises(InputError, match="no triangles"):
        read_gltf(tmp_path / "box.glb")


def test_nodes_that_lead_in_a_circle_are_refused(
    make_box: Box, glb_of: Glb, tmp_path: Path
) -> None:
    nodes = [{"children": [1]}, {"children": [0], "mesh": 0}]
    (tmp_path / "box.glb").write_bytes(glb_of(make_box(), nodes=nodes))
    with pytest.raises(InputError, match="loop"):
        read_gltf(tmp_path / "box.glb")


@settings(deadline=None, max_examples=60)
@given(cut=st.integers(0, 1500), byte=st.integers(0, 255))
def test_a_damaged_file_reads_or_is_refused_in_one_of_our_errors(
    make_box: Box, glb_of: Glb, tmp_path_factory: pytest.TempPathFactory, cut: int, byte: int
) -> None:
    data = bytearray(glb_of(make_box()))
    folder = tmp_path_factory.mktemp("damaged")
    for damaged in (data[:cut], data[:cut] + bytes([byte]) + data[cut + 1 :]):
        (folder / "box.glb").write_bytes(bytes(damaged))
        with contextlib.suppress(BootPIGError):
            read_gltf(folder / "box.glb")
