"""Light: what comes from above, how it turns, and what panoramas give."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bootpig_rt.errors import BootPIGError, InputError
from bootpig_rt.training.render.light import Light, harmonics, sun_at, turned, two_tone
from bootpig_rt.training.render.panorama import read_panorama, read_radiance

UP, DOWN = np.array([0.0, 1.0, 0.0]), np.array([0.0, -1.0, 0.0])


def level(light: Light, direction: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(harmonics(direction) @ light.ambient)


def rgbe(pixels: NDArray[np.float64]) -> NDArray[np.uint8]:
    mantissa, exponent = np.frexp(pixels.max(axis=-1))
    scale = np.where(pixels.max(axis=-1) > 0, mantissa * 256 / pixels.max(axis=-1), 0)
    return np.concatenate(
        [(pixels * scale[..., None]), (exponent + 128)[..., None]], axis=-1
    ).astype(np.uint8)


def write_radiance(path: Path, pixels: NDArray[np.float64], *, packed: bool) -> None:
    height, width = pixels.shape[:2]
    head = f"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y {height} +X {width}\n".encode()
    body = b""
    for row in rgbe(pixels):
        if not packed:
            body += row.tobytes()
            continue
        body += bytes([2, 2, width >> 8, width & 255])
        for plane in row.T:
            if (plane == plane[0]).all():
                body += bytes([128 + width, plane[0]])
            else:
                body += bytes([width]) + plane.tobytes()
    path.write_bytes(head + body)


def sky(brightest: tuple[int, int] = (6, 20)) -> NDArray[np.float64]:
    pixels = np.full((16, 32, 3), 0.25)
    pixels[:8] = (0.25, 0.5, 1.0)
    pixels[brightest] = 64.0
    return pixels


def test_light_of_two_colours_is_the_skys_above_and_the_grounds_below() -> None:
    blue, brown = np.array([0.2, 0.4, 1.0], np.float32), np.array([0.4, 0.2, 0.1], np.float32)
    light = Light(UP, np.zeros(3, np.float32), two_tone(blue, brown))
    assert level(light, UP)[2] > level(light, DOWN)[2]
    assert level(light, UP)[0] < level(light, DOWN)[0]
    same = Light(UP, np.zeros(3, np.float32), two_tone(blue, blue))
    assert level(same, UP) == pytest.approx(blue, rel=0.02)


@settings(deadline=None, max_examples=60)
@given(share=st.floats(-2, 2), azimuth=st.floats(-180, 180), height=st.floats(0, 80))
def test_a_turned_light_is_the_same_light_seen_from_elsewhere(
    share: float, azimuth: float, height: float
) -> None:
    ambient = np.linspace(-0.2, 0.5, 27, dtype=np.float32).reshape(9, 3)
    light = Light(sun_at(azimuth, height), np.ones(3, np.float32), ambient)
    moved = turned(light, share)
    assert moved.direction == pytest.approx(sun_at(azimuth + 360 * share, height), abs=1e-6)
    for at, up in ((10.0, 20.0), (200.0, -40.0)):
        before = level(light, sun_at(at, up))
        assert level(moved, sun_at(at + 360 * share, up)) == pytest.approx(before, abs=1e-4)


@pytest.mark.parametrize("packed", [False, True])
def test_a_radiance_file_comes_back_within_its_precision(tmp_path: Path, packed: bool) -> None:
    write_radiance(tmp_path / "a.hdr", sky(), packed=packed)
    assert read_radiance(tmp_path / "a.hdr") == pytest.approx(sky(), rel=0.01)


@pytest.mark.parametrize("column", [2, 12, 20, 29])
def test_the_sun_of_a_panorama_is_where_it_is_brightest(tmp_path: Path, column: int) -> None:
    write_radiance(tmp_path / "a.hdr", sky((4, column)), packed=True)
    light = read_panorama(tmp_path / "a.hdr").light
    # The middle column is -z, columns to the right go towards +x.
    turn = ((column + 0.5) / 32 - 0.5) * 2 * np.pi
    level_part = light.direction[[0, 2]] / np.linalg.norm(light.direction[[0, 2]])
    assert level_part == pytest.approx([np.sin(turn), -np.cos(turn)], abs=0.05)
    assert light.direction[1] >= 0.44
    # A white sheet on the ground is about as bright in every panorama.
    total = level(light, UP) + light.sun * light.direction[1]
    assert float(total.mean()) == pytest.approx(0.95, abs=0.15)


def test_another_shape_or_format_is_refused(tmp_path: Path) -> None:
    write_radiance(tmp_path / "square.hdr", np.full((16, 16, 3), 0.5), packed=False)
    with pytest.raises(InputError, match="twice as wide"):
        read_panorama(tmp_path / "square.hdr")
    (tmp_path / "text.hdr").write_bytes(b"no panorama")
    with pytest.raises(InputError, match="no Radiance picture"):
        read_panorama(tmp_path / "text.hdr")


@settings(deadline=None, max_examples=60)
@given(cut=st.integers(0, 400), byte=st.integers(0, 255))
def test_a_damaged_panorama_reads_or_is_refused_in_one_of_our_errors(
    tmp_path_factory: pytest.TempPathFactory, cut: int, byte: int
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    write_radiance(folder / "a.hdr", sky(), packed=True)
    data = (folder / "a.hdr").read_bytes()
    for damaged in (data[:cut], data[:cut] + bytes([byte]) + data[cut + 1 :]):
        (folder / "a.hdr").write_bytes(damaged)
        with contextlib.suppress(BootPIGError):
            read_radiance(folder / "a.hdr")
