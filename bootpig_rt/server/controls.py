"""Maps of a request, from its fields to what the engine is given."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from bootpig_rt.images.canny import canny_map
from bootpig_rt.images.control import Control
from bootpig_rt.server.calls import check_formats
from bootpig_rt.server.errors import ApiError
from bootpig_rt.server.parse import map_bytes
from bootpig_rt.server.schema import ImageFields


@dataclass(frozen=True)
class MapFile:
    """Contents of the file of a map, or of a photo that one is made of, and how it is followed."""

    kind: str
    data: bytes
    is_photo: bool
    scale: float
    interval: tuple[float, float]


def map_files(fields: ImageFields) -> list[MapFile]:
    """The files of the maps that a request has.

    Raises:
        ApiError: Bad base64; or a photo of whose map nothing here can make.
        ImageError: A file of another format than strangers may send.
    """
    controls = fields.controls or []
    made = []
    for at, (one, data) in enumerate(zip(controls, map_bytes(controls), strict=True)):
        check_formats([data], f"control_image {one.kind}")
        if one.source == "photo" and one.kind != "canny":
            text = f"maps of kind {one.kind} are not made here, those of canny are; send the map"
            raise ApiError(400, "invalid_value", text, param=f"controls.{at}.source")
        first, last = one.interval
        made.append(MapFile(one.kind, data, one.source == "photo", one.scale, (first, last)))
    return made


async def controls_of(files: list[MapFile], *, max_pixels: int) -> tuple[Control, ...]:
    """Maps that were read and checked. The files are emptied: nobody needs them any more.

    Raises:
        ImageError: A map cannot be used.
        ParameterError: An interval is none.
    """
    controls = await asyncio.to_thread(lambda: tuple(_read(one, max_pixels) for one in files))
    files.clear()
    return controls


def _read(file: MapFile, max_pixels: int) -> Control:
    image = canny_map(file.data, max_pixels=max_pixels) if file.is_photo else file.data
    return Control.load(
        file.kind, image, scale=file.scale, interval=file.interval, max_pixels=max_pixels
    )
