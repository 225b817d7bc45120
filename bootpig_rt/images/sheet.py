"""Many pictures on one: a plain grid, and a sheet of references beside what was made of them.

All that is drawn is drawn by Pillow with the font it brings along. That font has Latin letters
only; others show as boxes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageDraw, ImageFont

from bootpig_rt.errors import ParameterError

MIN_TILE_PX = 160
MAX_HEADER_LINES = 5

_INK = (24, 24, 27)
_FAINT_INK = (113, 113, 122)
_PAPER = (255, 255, 255)
_FRAME = (228, 228, 231)

Resample = Literal["lanczos", "nearest"]
_Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


@dataclass(frozen=True)
class SheetRow:
    """One subject of a sheet.

    Attributes:
        references: One or more pictures of the subject; several share the first column's tile.
        pictures: What was made of them, one for each prompt.
        caption: A few words under the references; "" for none.
    """

    references: Sequence[Image.Image]
    pictures: Sequence[Image.Image]
    caption: str = ""


def grid(
    images: Sequence[Image.Image], columns: int | None = None, *, gap_px: int = 4
) -> Image.Image:
    """Put pictures of one size side by side, at that size, row by row.

    Args:
        images: One or more pictures.
        columns: How many in a row; None makes the grid as square as it gets.
        gap_px: White space between them.

    Returns:
        An image of mode RGB.

    Raises:
        ParameterError: No pictures, pictures of different sizes, or columns under 1.
    """
    if not images:
        raise ParameterError("a grid of no pictures was asked for, expected at least one")
    sizes = sorted({image.size for image in images})
    if len(sizes) > 1:
        raise ParameterError(f"the pictures of a grid have sizes {sizes}, expected one size")
    columns = math.ceil(math.sqrt(len(images))) if columns is None else columns
    if columns < 1:
        raise ParameterError(f"columns is {columns}, expected at least 1")
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    width, height = sizes[0]
    sheet = Image.new(
        "RGB",
        (columns * (width + gap_px) - gap_px, rows * (height + gap_px) - gap_px),
        _PAPER,
    )
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        sheet.paste(_opaque(image), (column * (width + gap_px), row * (height + gap_px)))
    return sheet


def label_sheet(
    rows: Sequence[SheetRow],
    prompts: Sequence[str],
    *,
    tile_px: int | None = None,
    reference_header: str = "reference",
    resample: Resample = "lanczos",
) -> Image.Image:
    """Draw a sheet: references in the first column, prompts as the header, pictures beside.

    Small pictures are enlarged so that the sheet can be judged by eye.

    Args:
        rows: One for each subject.
        prompts: Text over each column of pictures, wrapped, cut after five lines.
        tile_px: Side of a tile, at least 160. None takes the pictures' own size, or the first
            multiple of it that reaches 160.
        reference_header: Text over the first column.
        resample: `lanczos` smooths enlarged pictures, `nearest` shows their pixels.

    Returns:
        An image of mode RGB.

    Raises:
        ParameterError: No rows, a row without references or with another number of pictures than
            there are prompts, or a tile under 160 px.
    """
    _check_rows(rows, prompts)
    tile = tile_px if tile_px is not None else _default_tile(rows)
    if tile < MIN_TILE_PX:
        raise ParameterError(f"tile_px is {tile}, expected at least {MIN_TILE_PX}")
    gap = tile // 16
    font_px = max(13, tile // 12)
    font = ImageFont.load_default(font_px)
    caption_font = ImageFont.load_default(max(12, font_px * 15 // 16))
    headers = [_wrap(text, font, tile, MAX_HEADER_LINES) for text in prompts]
    line_px = round(font_px * 1.35)
    header_px = line_px * max([1, *(len(lines) for lines in headers)]) + gap
    has_captions = any(row.caption for row in rows)
    row_px = tile + gap + (line_px if has_captions else 0)
    # The first column stands apart: a wider gap and a line in it.
    first_px = gap + tile + 2 * gap
    sheet = Image.new(
        "RGB",
        (first_px + len(prompts) * (tile + gap), gap + header_px + len(rows) * row_px + gap // 2),
        _PAPER,
    )
    draw = ImageDraw.Draw(sheet)
    draw.line([(first_px - gap, gap), (first_px - gap, sheet.height - gap)], fill=_FRAME, width=2)
    bottom = gap + header_px - gap // 2
    reference_lines = _wrap(reference_header, font, tile, MAX_HEADER_LINES)
    _draw_lines(draw, reference_lines, (gap, bottom), font, line_px, fill=_FAINT_INK)
    for column, lines in enumerate(headers):
        left = first_px + column * (tile + gap)
        _draw_lines(draw, lines, (left, bottom), font, line_px, fill=_INK)
    for index, row in enumerate(rows):
        top = gap + header_px + index * row_px
        sheet.paste(_mosaic(row.references, tile, resample), (gap, top))
        draw.rectangle([gap, top, gap + tile - 1, top + tile - 1], outline=_FRAME)
        if row.caption:
            caption = _wrap(row.caption, caption_font, tile, 1)[0]
            draw.text((gap, top + tile + 2), caption, font=caption_font, fill=_FAINT_INK)
        for column, picture in enumerate(row.pictures):
            left = first_px + column * (tile + gap)
            sheet.paste(_fit(picture, tile, resample), (left, top))
    return sheet


def _check_rows(rows: Sequence[SheetRow], prompts: Sequence[str]) -> None:
    if not rows:
        raise ParameterError("a sheet of no rows was asked for, expected at least one")
    for index, row in enumerate(rows):
        if not row.references:
            raise ParameterError(f"row {index} of the sheet has no reference, expected one or more")
        if len(row.pictures) != len(prompts):
            raise ParameterError(
                f"row {index} of the sheet has {len(row.pictures)} pictures, "
                f"expected {len(prompts)}, one for each prompt"
            )


def _default_tile(rows: Sequence[SheetRow]) -> int:
    """Smallest whole multiple of the pictures' size that can be seen well."""
    pictures = [picture for row in rows for picture in (row.pictures or row.references)]
    side = max(max(picture.size) for picture in pictures)
    return side * max(1, math.ceil(MIN_TILE_PX / side))


def _mosaic(images: Sequence[Image.Image], tile: int, resample: Resample) -> Image.Image:
    """One tile of one picture, or of several at equal size."""
    per_row = math.ceil(math.sqrt(len(images)))
    side = tile // per_row
    top = (tile - math.ceil(len(images) / per_row) * side) // 2
    result = Image.new("RGB", (tile, tile), _PAPER)
    for index, image in enumerate(images):
        row, column = divmod(index, per_row)
        result.paste(_fit(image, side, resample), (column * side, top + row * side))
    return result


def _fit(image: Image.Image, side: int, resample: Resample) -> Image.Image:
    """Resize a picture into a square, its proportions kept, on white."""
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    method = Image.Resampling.NEAREST if resample == "nearest" else Image.Resampling.LANCZOS
    resized = _opaque(image) if size == image.size else _opaque(image).resize(size, method)
    if size == (side, side):
        return resized
    square = Image.new("RGB", (side, side), _PAPER)
    square.paste(resized, ((side - size[0]) // 2, (side - size[1]) // 2))
    return square


def _opaque(image: Image.Image) -> Image.Image:
    """The picture in RGB, on white where it is transparent."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    white = Image.new("RGB", image.size, _PAPER)
    white.paste(rgba, mask=rgba.getchannel("A"))
    return white


def _draw_lines(
    draw: ImageDraw.ImageDraw,
    lines: Sequence[str],
    left_bottom: tuple[int, int],
    font: _Font,
    line_px: int,
    *,
    fill: tuple[int, int, int],
) -> None:
    """Draw lines of text that stand on `left_bottom`."""
    left, bottom = left_bottom
    for index, line in enumerate(lines):
        draw.text((left, bottom - (len(lines) - index) * line_px), line, font=font, fill=fill)


def _wrap(text: str, font: _Font, width_px: int, max_lines: int) -> list[str]:
    """Break text into lines of at most `width_px`; words that are too long are broken as well."""
    lines: list[str] = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".lstrip()
        if font.getlength(joined) <= width_px:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        for char in word:
            if lines[-1] and font.getlength(lines[-1] + char) > width_px:
                lines.append("")
            lines[-1] += char
        if len(lines) > max_lines:
            break
    if len(lines) <= max_lines:
        return lines
    last = lines[max_lines - 1]
    while last and font.getlength(f"{last}...") > width_px:
        last = last[:-1]
    return [*lines[: max_lines - 1], f"{last.rstrip()}..."]
