"""Subjects are cut out where there are any; nothing and specks are taken whole and counted."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from bootpig_rt.images.image_input import load_image
from bootpig_rt.training.evaluation.dreambench.cutting import Cutter, KeptMasks


@pytest.fixture
def cutter() -> Cutter:
    """One with a remover that takes what is red."""
    cutter = Cutter("grabcut")
    cutter._remover = lambda image: image.getchannel("R")
    return cutter


def red(box: tuple[int, int, int, int] | None, side: int = 160) -> Image.Image:
    image = Image.new("RGB", (side, side), (0, 0, 90))
    if box is not None:
        image.paste((255, 0, 90), box)
    return image


@pytest.mark.parametrize("box", [None, (5, 5, 9, 8), (80, 80, 89, 89)])
def test_nothing_and_specks_are_taken_whole(
    cutter: Cutter, box: tuple[int, int, int, int] | None
) -> None:
    assert cutter(red(box)).getextrema() == (255, 255)
    assert cutter.num_whole == 1


def test_a_subject_is_what_the_remover_says(cutter: Cutter) -> None:
    assert cutter(red((20, 30, 70, 40))).getbbox() == (20, 30, 70, 40)
    assert cutter.num_whole == 0


def test_masks_are_made_once_and_whole_ones_counted_again(cutter: Cutter, tmp_path: Path) -> None:
    files = [tmp_path / "some.png", tmp_path / "none.png"]
    for file, box in zip(files, ((20, 30, 70, 90), None), strict=True):
        red(box).save(file)
    for remake in (True, False):
        masks = KeptMasks(cutter, tmp_path / "masks")
        white = [masks.on_white(file, load_image(file)) for file in files]
        assert white[0].getpixel((0, 0)) == (255, 255, 255)
        assert white[0].getpixel((40, 50)) == (255, 0, 90)
        assert white[1].getpixel((0, 0)) == (0, 0, 90)
        assert masks.num_whole == 1
        assert len(list((tmp_path / "masks").iterdir())) == 2
        if remake:
            cutter._remover = lambda _: pytest.fail("made again")


def test_a_damaged_mask_is_made_again(cutter: Cutter, tmp_path: Path) -> None:
    file = tmp_path / "some.png"
    red((20, 30, 70, 90)).save(file)
    masks = KeptMasks(cutter, tmp_path / "masks")
    before = masks(file, red((20, 30, 70, 90)))
    [kept] = (tmp_path / "masks").iterdir()
    kept.write_bytes(kept.read_bytes()[:40])
    again = masks(file, red((20, 30, 70, 90)))
    assert again.tobytes() == before.tobytes()
