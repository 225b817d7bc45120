"""Drawings as pixels: centred, checked, compared, kept on disk."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from bootpig_rt.errors import StorageError
from bootpig_rt.training import sprites
from bootpig_rt.training.emoji import Drawing
from bootpig_rt.training.raster import SPRITE_PX, SUBJECT_PX, Pixels, fault_of, fit_sprite

ROOT = Path(__file__).parents[2]


def disc(colour: tuple[int, int, int], *, shift: int = 0, squash: float = 1.0) -> Pixels:
    image = Image.new("RGBA", (SPRITE_PX, SPRITE_PX))
    box = (8 + shift, 48 - 40 * squash, 88 + shift, 48 + 40 * squash)
    ImageDraw.Draw(image).ellipse(box, fill=(*colour, 255))
    return np.array(image)


def drawings_of(concept: str, styles: str) -> list[Drawing]:
    return [Drawing(concept, style, concept, concept, "Food & Drink") for style in styles]


def test_a_sprite_is_centred_and_its_edge_keeps_its_colour() -> None:
    image = Image.new("RGBA", (200, 200))  # transparent black around a red disc
    ImageDraw.Draw(image).ellipse((10, 20, 60, 50), fill=(255, 0, 0, 255))
    rgba = fit_sprite(image)
    seen = np.argwhere(rgba[..., 3] > 0)
    (top, left), (bottom, right) = seen.min(axis=0), seen.max(axis=0)
    assert right - left + 1 == SUBJECT_PX
    assert abs((left + right) - (SPRITE_PX - 1)) <= 1
    assert abs((top + bottom) - (SPRITE_PX - 1)) <= 1
    edge = rgba[(rgba[..., 3] > 40) & (rgba[..., 3] < 255)]
    assert len(edge) > 0
    assert edge[:, 0].min() > 245  # a straight resize would mix in black


def test_an_empty_picture_makes_an_empty_sprite() -> None:
    assert not fit_sprite(Image.new("RGBA", (20, 20))).any()


def rectangle(width: int, height: int) -> Pixels:
    rgba = np.zeros((SPRITE_PX, SPRITE_PX, 4), dtype=np.uint8)
    rgba[4 : 4 + height, 4 : 4 + width] = 255
    return rgba


@pytest.mark.parametrize(
    ("rgba", "fault"),
    [
        (rectangle(0, 0), "empty"),
        (rectangle(88, 8), "thin"),
        (rectangle(30, 25), "tiny"),
        (rectangle(88, 86), "framed"),
        (rectangle(88, 60), None),
        (disc((255, 0, 0)), None),
    ],
)
def test_unusable_sprites_are_told_by_reason(rgba: Pixels, fault: str | None) -> None:
    assert fault_of(rgba) == fault


def test_a_repeated_drawing_is_rejected_and_the_first_style_kept() -> None:
    pictures = [disc((250, 0, 0)), disc((245, 4, 4), shift=1), disc((0, 0, 250))]
    rows, rejects = sprites.choose_rows(
        drawings_of("ball", "abc"), np.stack(pictures), min_styles=1
    )
    assert rows == [0, 2]
    assert rejects == Counter({"same drawing": 1})


def test_the_same_drawing_of_two_concepts_is_kept() -> None:
    drawings = drawings_of("ball", "a") + drawings_of("moon", "a")
    rows, _ = sprites.choose_rows(drawings, np.stack([disc((9, 9, 9))] * 2), min_styles=1)
    assert rows == [0, 1]


def test_concepts_left_with_few_styles_or_mostly_framed_are_rejected() -> None:
    drawings = drawings_of("ball", "ab") + drawings_of("stamp", "abc")
    framed = rectangle(88, 88)
    pictures = [disc((255, 0, 0)), disc((254, 0, 0)), framed, framed, disc((0, 0, 255))]
    rows, rejects = sprites.choose_rows(drawings, np.stack(pictures), min_styles=2)
    assert rows == []
    assert rejects == Counter({"framed concept": 3, "same drawing": 1, "too few styles": 1})


def test_all_are_rendered_in_their_order_and_broken_ones_left_empty(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def draw(svg: str, sprite_px: int) -> Pixels:
        if svg == "broken":
            raise ValueError(svg)
        return np.full((sprite_px, sprite_px, 4), int(svg), dtype=np.uint8)

    monkeypatch.setattr(sprites, "draw_sprite", draw)
    monkeypatch.setattr(sprites, "CHUNK", 2)
    counts: list[int] = []
    whole = sprites.render_all(["1", "2", "3", "broken", "5"], on_progress=counts.append)
    assert whole[:, 0, 0, 0].tolist() == [1, 2, 3, 0, 5]
    assert counts == [2, 2, 1]


@pytest.mark.parametrize("fault", ["missing", "not JSON", "cut", "other count"])
def test_bad_sprite_files_say_to_fetch_again(tmp_path: Path, fault: str) -> None:
    np.savez(tmp_path / "sprites.npz", rgba=np.zeros((2, 96, 96, 4), dtype=np.uint8))
    (tmp_path / "sprites.json").write_text("{" if fault == "not JSON" else "[]")
    if fault == "missing":
        (tmp_path / "sprites.npz").unlink()
    if fault == "cut":
        (tmp_path / "sprites.npz").write_bytes((tmp_path / "sprites.npz").read_bytes()[:500])
    with pytest.raises(StorageError, match="fetch-data"):
        sprites.load_sprites(tmp_path)
