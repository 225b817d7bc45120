"""The tensors of a model in NVIDIA Triton: what a request may hold, and what is answered.

One table, from which the repository's configuration is written and requests are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from bootpig_rt.errors import ParameterError
from bootpig_rt.images.canvas import Canvas
from bootpig_rt.images.control import Control
from bootpig_rt.reference.subject import Subject
from bootpig_rt.request import Request

Kind: TypeAlias = Literal["TYPE_STRING", "TYPE_INT32", "TYPE_INT64", "TYPE_FP32", "TYPE_UINT8"]

MAX_TEXT_BYTES = 40_000
"""Of one text; 10,000 characters at most are a prompt."""


@dataclass(frozen=True)
class TritonTensor:
    """One tensor by its name.

    Attributes:
        name: In Triton.
        kind: Its type there.
        dims: Its shape there, -1 for any.
        field: Of `Request`, where it is one.
        is_optional: It may be left out.
    """

    name: str
    kind: Kind
    dims: tuple[int, ...] = (1,)
    field: str = ""
    is_optional: bool = True


INPUTS = (
    TritonTensor("PROMPT", "TYPE_STRING", field="prompt", is_optional=False),
    TritonTensor("NEGATIVE_PROMPT", "TYPE_STRING", field="negative_prompt"),
    TritonTensor("REFERENCE_IMAGES", "TYPE_STRING", (-1,)),
    TritonTensor("REFERENCE_PROMPT", "TYPE_STRING"),
    TritonTensor("SUBJECT", "TYPE_STRING"),
    TritonTensor("IMAGE", "TYPE_STRING"),
    TritonTensor("MASK_IMAGE", "TYPE_STRING"),
    TritonTensor("STRENGTH", "TYPE_FP32", field="strength"),
    TritonTensor("MASK_EDGE_PX", "TYPE_INT32", field="mask_edge_px"),
    TritonTensor("CONTROL_KINDS", "TYPE_STRING", (-1,)),
    TritonTensor("CONTROL_IMAGES", "TYPE_STRING", (-1,)),
    TritonTensor("CONTROL_SCALES", "TYPE_FP32", (-1,)),
    TritonTensor("CONTROL_INTERVALS", "TYPE_FP32", (-1, 2)),
    TritonTensor("NUM_IMAGES", "TYPE_INT32", field="num_images_per_prompt"),
    TritonTensor("NUM_INFERENCE_STEPS", "TYPE_INT32", field="num_inference_steps"),
    TritonTensor("IMAGE_GUIDANCE_SCALE", "TYPE_FP32", field="image_guidance_scale"),
    TritonTensor("TEXT_GUIDANCE_SCALE", "TYPE_FP32", field="text_guidance_scale"),
    TritonTensor("SEED", "TYPE_INT64", field="seed"),
    TritonTensor("SOLVER", "TYPE_STRING", field="solver"),
    TritonTensor("MERGE", "TYPE_STRING", field="merge"),
    TritonTensor("REFERENCE_SCHEDULE", "TYPE_STRING", field="reference_schedule"),
    TritonTensor("APPROXIMATION", "TYPE_STRING", field="approximation"),
    TritonTensor("WIDTH", "TYPE_INT32", field="width"),
    TritonTensor("HEIGHT", "TYPE_INT32", field="height"),
    TritonTensor("SIZES", "TYPE_INT32", (6,), field="sizes"),
    TritonTensor("TENANT", "TYPE_STRING", field="tenant"),
    TritonTensor("PREVIEW_EVERY", "TYPE_INT32"),
)

OUTPUTS = (
    TritonTensor("IMAGES", "TYPE_UINT8", (-1, -1, -1, 3)),
    TritonTensor("PNG", "TYPE_STRING", (-1,)),
    TritonTensor("PARAMETERS", "TYPE_STRING", (-1,)),
    TritonTensor("REFERENCE_PASSES", "TYPE_INT32"),
    TritonTensor("PROGRESS", "TYPE_INT32", (2,)),
)


@dataclass(frozen=True)
class TritonMap:
    """A map that the pictures of a request follow.

    Attributes:
        kind: Of the control that reads it.
        file: Of the map.
        scale: How closely it is followed.
        interval: Share of the steps in which it is.
    """

    kind: str
    file: bytes
    scale: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class TritonCall:
    """What one request of Triton asks for.

    Attributes:
        fields: Of `Request`, but for its subject.
        images: Files of reference images.
        reference_prompt: What they show.
        subject_file: Contents of a subject's file, in place of images.
        preview_every: Steps between previews.
        canvas_files: Files of a picture to draw into and of its mask, as far as they are there.
        maps: That the pictures follow.
    """

    fields: dict[str, Any]
    images: tuple[bytes, ...]
    reference_prompt: str
    subject_file: bytes
    preview_every: int | None
    canvas_files: tuple[bytes, ...] = ()
    maps: tuple[TritonMap, ...] = ()

    def request(self, subject: Subject | None) -> Request:
        """The request, with its subject, what it is drawn into and what it follows.

        Raises:
            InputError: A value is of the wrong type or out of range, or a file cannot be used.
        """
        canvas = Canvas.load(*self.canvas_files) if self.canvas_files else None
        controls = tuple(
            Control.load(one.kind, one.file, scale=one.scale, interval=one.interval)
            for one in self.maps
        )
        return Request(subject=subject, canvas=canvas, controls=controls, **self.fields)


def read_call(tensors: Mapping[str, npt.NDArray[Any]]) -> TritonCall:
    """Read the tensors of a request, those that were sent.

    Raises:
        ParameterError: A tensor has another shape, or holds what is no text.
    """
    fields: dict[str, Any] = {}
    for one in INPUTS:
        if one.field and one.name in tensors:
            if one.dims != (1,):
                fields[one.field] = tuple(tensors[one.name].ravel().tolist())
                continue
            value = _one(one.name, tensors[one.name])
            fields[one.field] = _text(one.name, value) if one.kind == "TYPE_STRING" else value
    if "strength" in fields:
        fields["strength"] = round(fields["strength"], 6)  # 0.7 is a little less in FP32
    drawn_into = [name for name in ("IMAGE", "MASK_IMAGE") if name in tensors]
    if drawn_into == ["MASK_IMAGE"]:
        raise ParameterError("MASK_IMAGE is given without IMAGE; send both, or neither")
    preview = tensors.get("PREVIEW_EVERY")
    every = None if preview is None else int(_one("PREVIEW_EVERY", preview))
    if every is not None and every < 1:
        raise ParameterError(f"PREVIEW_EVERY is {every}, expected at least 1")
    images = tensors.get("REFERENCE_IMAGES", np.empty(0, dtype=np.object_))
    call = TritonCall(
        fields=fields,
        images=tuple(_bytes("REFERENCE_IMAGES", image) for image in images.ravel().tolist()),
        reference_prompt=_text_of(tensors, "REFERENCE_PROMPT"),
        subject_file=b""
        if "SUBJECT" not in tensors
        else _bytes("SUBJECT", _one("SUBJECT", tensors["SUBJECT"])),
        preview_every=every,
        canvas_files=tuple(_bytes(name, _one(name, tensors[name])) for name in drawn_into),
        maps=_maps(tensors),
    )
    if call.subject_file and (call.images or call.reference_prompt):
        raise ParameterError(
            "got SUBJECT together with REFERENCE_IMAGES or REFERENCE_PROMPT, expected one or the "
            "other; a subject holds both"
        )
    if bool(call.images) != bool(call.reference_prompt):
        raise ParameterError(
            "REFERENCE_IMAGES and REFERENCE_PROMPT go together; the prompt says what the images "
            'show, "a photo of a dog"'
        )
    return call


def _maps(tensors: Mapping[str, npt.NDArray[Any]]) -> tuple[TritonMap, ...]:
    """The maps of a request: scales and intervals are for all of them, or one for each.

    Raises:
        ParameterError: There are more or fewer of one thing than of another.
    """
    images = tensors.get("CONTROL_IMAGES")
    if images is None:
        for name in ("CONTROL_KINDS", "CONTROL_SCALES", "CONTROL_INTERVALS"):
            if name in tensors:
                raise ParameterError(f"{name} is given without CONTROL_IMAGES; send both, or none")
        return ()
    files = [_bytes("CONTROL_IMAGES", one) for one in images.ravel().tolist()]
    named = tensors.get("CONTROL_KINDS", np.empty(0, dtype=np.object_)).ravel().tolist()
    kinds = [_text("CONTROL_KINDS", one) for one in named]
    if len(kinds) != len(files):
        raise ParameterError(
            f"CONTROL_KINDS has {len(kinds)} names for {len(files)} CONTROL_IMAGES, expected one "
            "for each, such as depth"
        )
    scales = _for_each("CONTROL_SCALES", tensors, len(files), [1.0])
    shares = _for_each("CONTROL_INTERVALS", tensors, len(files), [0.0, 1.0])
    return tuple(
        TritonMap(kind, file, scale[0], (share[0], share[1]))
        for kind, file, scale, share in zip(kinds, files, scales, shares, strict=True)
    )


def _for_each(
    name: str, tensors: Mapping[str, npt.NDArray[Any]], count: int, usual: list[float]
) -> list[list[float]]:
    """The numbers of each of `count` maps; 0.7, which is a little less in FP32, is 0.7 again."""
    if name not in tensors:
        return [usual] * count
    tensor, width = tensors[name], len(usual)
    if tensor.size not in (width, width * count):
        sizes = [[count], [1]] if width == 1 else [[count, width], [1, width]]
        raise ParameterError(
            f"{name} has shape {list(tensor.shape)}, expected {sizes[0]} or {sizes[1]}: one for "
            "each map, or one for all"
        )
    rows = [[round(one, 6) for one in row] for row in tensor.reshape(-1, width).tolist()]
    return rows * count if len(rows) < count else rows


def text_tensor(texts: list[bytes]) -> npt.NDArray[np.object_]:
    """Bytes as Triton takes them, [N]."""
    array = np.empty(len(texts), dtype=np.object_)
    array[:] = texts
    return array


def _one(name: str, tensor: npt.NDArray[Any]) -> Any:
    if tensor.size != 1:
        raise ParameterError(f"{name} has shape {list(tensor.shape)}, expected [1]")
    return tensor.ravel().tolist()[0]


def _bytes(name: str, value: object) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if not isinstance(value, bytes):
        raise ParameterError(f"{name} is of type {type(value).__name__}, expected bytes")
    return value


def _text(name: str, value: object) -> str:
    data = _bytes(name, value)
    if len(data) > MAX_TEXT_BYTES:
        raise ParameterError(f"{name} has {len(data)} bytes, expected at most {MAX_TEXT_BYTES}")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ParameterError(f"{name} is no text in UTF-8") from None


def _text_of(tensors: Mapping[str, npt.NDArray[Any]], name: str) -> str:
    return _text(name, _one(name, tensors[name])) if name in tensors else ""
