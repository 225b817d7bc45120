from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFont

from bootpig_rt.errors import ParameterError
from bootpig_rt.images.picture import SheetRow, grid, label_sheet
from bootpig_rt.images.sheet import _wrap

COLOURS = ["red", "green", "blue", "black", "orange"]


def plain(colour: str, side: int = 64) -> Image.Image:
    return Image.new("RGB", (side, side), colour)


@pytest.mark.parametrize(
    ("count", "columns", "expected"),
    [(1, None, (1, 1)), (2, None, (2, 1)), (4, None, (2, 2)), (5, None, (3, 2)), (3, 5, (3, 1))],
)
def test_grid_shows_every_picture_once_at_its_own_size(
    count: int, columns: int | None, expected: tuple[int, int]
) -> None:
    sheet = grid([plain(colour) for colour in COLOURS[:count]], columns, gap_px=4)
    assert sheet.mode == "RGB"
    assert sheet.size == (expected[0] * 68 - 4, expected[1] * 68 - 4)
    for index, colour in enumerate(COLOURS[:count]):
        row, column = divmod(index, expected[0])
        tile = sheet.crop((column * 68, row * 68, column * 68 + 64, row * 68 + 64))
        assert tile.tobytes() == plain(colour).tobytes()
    assert count == expected[0] * expected[1] or sheet.getpixel((sheet.width - 1, 99)) == (255,) * 3


@pytest.mark.parametrize(
    ("images", "columns", "expected"),
    [
        ([], None, "no pictures"),
        ([plain("red"), plain("red", 32)], None, "expected one size"),
        ([plain("red")], 0, "columns is 0"),
    ],
)
def test_impossible_grid_is_refused(
    images: list[Image.Image], columns: int | None, expected: str
) -> None:
    with pytest.raises(ParameterError, match=expected):
        grid(images, columns)


def rows(count: int = 2, references: int = 1) -> list[SheetRow]:
    return [
        SheetRow(
            references=[plain("orange")] * references,
            pictures=[plain("red"), plain("green"), plain("blue")],
            caption=f"subject {index}",
        )
        for index in range(count)
    ]


PROMPTS = ["a photo of a dog, on a beach", "a dog in the snow", "x"]


def colour_boxes(sheet: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    ys, xs = np.nonzero((np.asarray(sheet) == colour).all(axis=2))
    return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1


def test_references_come_first_and_pictures_stand_in_order_of_the_prompts() -> None:
    sheet = label_sheet(rows(1), PROMPTS)
    assert sheet.mode == "RGB"
    boxes = [
        colour_boxes(sheet, colour)
        for colour in [(255, 165, 0), (255, 0, 0), (0, 128, 0), (0, 0, 255)]
    ]
    assert [box[0] for box in boxes] == sorted(box[0] for box in boxes)
    for left, top, right, bottom in boxes[1:]:
        assert (right - left, bottom - top) == (
            192,
            192,
        )  # 64 px enlarged to a multiple of at least 160
    assert {box[1] for box in boxes[1:]} == {boxes[1][1]}


def test_text_stands_over_every_column_and_under_the_references() -> None:
    sheet = np.asarray(label_sheet(rows(1), PROMPTS).convert("L"))
    top = colour_boxes(label_sheet(rows(1), PROMPTS), (255, 0, 0))[1]
    for colour in [(255, 165, 0), (255, 0, 0), (0, 128, 0), (0, 0, 255)]:
        left, _, right, bottom = colour_boxes(label_sheet(rows(1), PROMPTS), colour)
        header = sheet[: top - 2, left:right]
        assert header.min() < 130
        assert np.all(header[:2] > 130)
        caption = sheet[bottom + 2 :, left:right]
        assert (caption.min() < 200) == (colour == (255, 165, 0))


def test_more_references_share_one_tile() -> None:
    one, four = (label_sheet(rows(1, count), PROMPTS) for count in (1, 4))
    assert one.size == four.size
    assert colour_boxes(one, (255, 0, 0)) == colour_boxes(four, (255, 0, 0))


def test_sheet_grows_by_rows_and_columns() -> None:
    two, three = label_sheet(rows(2), PROMPTS), label_sheet(rows(3), PROMPTS)
    assert two.width == three.width
    assert three.height - two.height >= 192


def test_transparent_reference_is_shown_on_white() -> None:
    row = SheetRow([Image.new("RGBA", (64, 64), (0, 0, 0, 0))], [plain("red")])
    sheet = np.asarray(label_sheet([row], [""]))
    box = colour_boxes(label_sheet([row], [""]), (255, 0, 0))
    assert sheet[box[1] + 90, 12 + 90].tolist() == [255, 255, 255]


def test_nearest_shows_pixels_and_lanczos_smooths_them() -> None:
    checkers = Image.fromarray(np.indices((64, 64)).sum(axis=0).astype(np.uint8) % 2 * 255)
    row = SheetRow([plain("red")], [checkers])
    nearest = np.asarray(label_sheet([row], [""], resample="nearest"))[-150:, -150:]
    smooth = np.asarray(label_sheet([row], [""]))[-150:, -150:]
    assert set(np.unique(nearest)) == {0, 255}
    assert len(np.unique(smooth)) > 2


@pytest.mark.parametrize(
    ("bad", "tile_px", "expected"),
    [
        ([], None, "no rows"),
        ([SheetRow([], [plain("red")] * 3)], None, "row 0 of the sheet has no reference"),
        ([SheetRow([plain("red")], [])], None, "has 0 pictures, expected 3"),
        (rows(1), 100, "tile_px is 100, expected at least 160"),
    ],
)
def test_impossible_sheet_is_refused(
    bad: list[SheetRow], tile_px: int | None, expected: str
) -> None:
    with pytest.raises(ParameterError, match=expected):
        label_sheet(bad, PROMPTS, tile_px=tile_px)


@pytest.mark.parametrize(
    "text", ["", "short", "many words of a long prompt " * 9, "x" * 300, "a " + "y" * 90, "日本 語"]
)
def test_wrapped_lines_fit_and_lose_nothing_but_what_the_dots_say(text: str) -> None:
    font = ImageFont.load_default(14)
    lines = _wrap(text, font, 160, 5)
    assert 1 <= len(lines) <= 5
    assert all(font.getlength(line) <= 160 for line in lines)
    shown = "".join(lines).replace(" ", "")
    whole = text.replace(" ", "")
    if lines[-1].endswith("..."):
        assert whole.startswith(shown[:-3])
        assert len(shown) < len(whole) + 3
    else:
        assert shown == whole
