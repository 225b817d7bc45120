"""Where the weights of a pair lie on disk, so that graphs can point to them.

ONNX keeps large tensors outside the graph as (file, offset, length), and a safetensors file is
tensors one after the other behind a header. A graph in the folder of a pair can therefore read the
pair's own files, and no weight is stored twice. Reads headers only, never tensors.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bootpig_rt.bundle.pair_config import read_json
from bootpig_rt.errors import CheckpointError, describe_os_error
from bootpig_rt.models.module_folder import TEXT_STEM, UNET_STEM, renamed

_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}

_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file.

    Attributes:
        location: The file within the pair's folder, with forward slashes.
        offset: First byte of the tensor in the file.
        length: Its bytes.
        dtype: Its type there.
        shape: Its shape there.
    """

    location: str
    offset: int
    length: int
    dtype: torch.dtype
    shape: tuple[int, ...]


def find_weights(folder: Path, part: str, module: nn.Module) -> dict[str, StoredTensor]:
    """Find each parameter of a module in the files of its folder, `base_unet` or another part.

    Its parameters have the names of the installed libraries; files may have older ones.

    Returns:
        Stored tensors by parameter name. A shape may differ from the parameter's in trailing ones.

    Raises:
        CheckpointError: A file is missing or damaged, or a parameter is in none.
    """
    expected = module.state_dict()
    found: dict[str, StoredTensor] = {}
    stem = TEXT_STEM if part.startswith("text_encoder") else UNET_STEM
    for path in _weight_files(folder / part, stem):
        for name, stored in _read_header(path, path.relative_to(folder).as_posix()):
            like: dict[str, Tensor] = {
                name: torch.empty(stored.shape, dtype=stored.dtype, device="meta")
            }
            for new in renamed(like, expected):
                found[new] = stored
    lost = [name for name in dict(module.named_parameters()) if name not in found]
    if lost:
        raise CheckpointError(
            f"{folder / part} holds no tensor {lost[0]!r}, which the loaded {part} has; "
            "the graphs must be written into the folder of the pair that was loaded",
            folder / part,
        )
    return found


def _weight_files(folder: Path, stem: str) -> Iterator[Path]:
    """The files that `models.weights.read_weights` reads, in its order of preference."""
    single = folder / f"{stem}.safetensors"
    index = folder / f"{stem}.safetensors.index.json"
    half = folder / f"{stem}.fp16.safetensors"
    if single.is_file():
        yield single
    elif index.is_file():
        shards: Mapping[str, Any] = read_json(index).get("weight_map") or {}
        yield from (folder / str(name) for name in sorted(set(shards.values())))
    elif half.is_file():
        yield half
    else:
        raise CheckpointError(f"{single} is missing; copy the model folder again", single)


def _read_header(path: Path, location: str) -> Iterator[tuple[str, StoredTensor]]:
    """Names and places of a safetensors file: 8 bytes of length, a json header, the tensors."""
    try:
        with path.open("rb") as stream:
            size = struct.unpack("<Q", stream.read(8))[0]
            if size > _MAX_HEADER_BYTES:
                raise ValueError(f"header of {size} bytes")
            header: dict[str, Any] = json.loads(stream.read(size))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {describe_os_error(error)}", path) from error
    except (ValueError, struct.error) as error:
        raise CheckpointError(f"{path} is damaged: {error}; copy it again", path) from error
    for name, entry in header.items():
        if name == "__metadata__" or entry["dtype"] not in _TYPES:
            continue  # integer buffers of old files
        start, stop = entry["data_offsets"]
        shape = tuple(entry["shape"])
        dtype = _TYPES[entry["dtype"]]
        yield name, StoredTensor(location, 8 + size + start, stop - start, dtype, shape)
