"""What a bundle will take: bytes on disk and on the device, from configurations and file headers.

Needs no torch and reads no weights, so `build-engine --dry-run` answers at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from safetensors import SafetensorError, safe_open

from bootpig_rt.backends.bundle_spec import self_attention_shapes
from bootpig_rt.backends.host_table import TABLE_DTYPES, TableDtype, table_bytes
from bootpig_rt.backends.tiles import MOST_LATENTS
from bootpig_rt.bundle.control import CONTROL_PREFIX, ControlFolder
from bootpig_rt.bundle.pair_config import TINY_VAE, PairConfig, read_json
from bootpig_rt.bundle.text_parts import has_two_texts, text_encoders
from bootpig_rt.checks import check_name
from bootpig_rt.errors import CheckpointError
from bootpig_rt.export.build_options import BuildOptions
from bootpig_rt.export.tensorrt_profiles import GUIDANCE_ROWS, pair_shape
from bootpig_rt.reference.schedule import ReferenceSchedule

FORMULA = (
    "device memory = weights + table + text + attention + pictures; "
    "table = entries x references x sum over layers of 2 x (tokens x channels x bytes "
    "+ 4 x heads, the scales, in float8 and int8)"
)

NUM_FIXED_GRAPHS = 5
"""Graphs that a bundle has one of; it has a `denoise_step` and a `shallow_step` for one reference
and for each merge."""

_BYTES_OF = {"float32": 4, "float16": 2}
_BYTES_OF_STORED = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_GRAPH_BYTES = 400_000

# Bytes of activations that a decoder keeps at once, in pictures of its first width.
_DECODER_PICTURES = 3


_NARROWER: tuple[TableDtype, ...] = ("float16", "float8")
"""How tables are kept where memory is short: half of each other in this order."""

_INT8_BYTES = 1.3
"""A number of a step graph in int8: with a fifteenth of them in float32, and scales."""


@dataclass(frozen=True)
class Memory:
    """What lies on the device while one batch is drawn, in bytes.

    Attributes:
        weights_bytes: Of all graphs.
        table_bytes: Reference table of one subject with all its entries.
        text_bytes: Keys and values of the text for the rows of a batch.
        attention_bytes: Scores of the largest self-attention, if a runtime writes them to memory.
        picture_bytes: What the decoder keeps at once.
    """

    weights_bytes: int
    table_bytes: int
    text_bytes: int
    attention_bytes: int
    picture_bytes: int

    @property
    def total_bytes(self) -> int:
        """Sum of all."""
        kept = self.weights_bytes + self.table_bytes + self.text_bytes
        return kept + self.attention_bytes + self.picture_bytes


@dataclass(frozen=True)
class TableSize:
    """A reference table of one reference of the usual size, by how its numbers are kept.

    Attributes:
        dtype: How they are kept.
        whole_bytes: All entries: on the device, on the host, or in a folder on the disk.
        step_bytes: On the device at a step, where the whole stays on the host: the entry that is
            read and the next one.
    """

    dtype: TableDtype
    whole_bytes: int
    step_bytes: int


@dataclass(frozen=True)
class Estimate:
    """Expected sizes, in bytes.

    Attributes:
        parameters: Of the pair, numbers not bytes.
        disk_bytes: Of the finished bundle.
        free_bytes: What a build needs on the disk while it runs.
        table_entries: E of a reference table, with the pair's default steps.
        table_dtype: What the numbers of the table lie on the device in.
        reference_schedule: Of the table.
        tables: What it takes in this type and in narrower ones.
        usual: Memory for one picture of the usual size with one reference.
        largest: Memory for a full batch of the largest pictures with the most references.
    """

    parameters: int
    disk_bytes: int
    free_bytes: int
    table_entries: int
    table_dtype: TableDtype
    reference_schedule: str
    tables: tuple[TableSize, ...]
    usual: Memory
    largest: Memory

    def to_dict(self) -> dict[str, Any]:
        """For json."""
        values = asdict(self)
        for name, memory in (("usual", self.usual), ("largest", self.largest)):
            values[name]["total_bytes"] = memory.total_bytes
        return values


def estimate(
    folder: Path,
    rest: Path,
    config: PairConfig,
    options: BuildOptions,
    *,
    num_graphs: int,
    is_written_anew: bool = False,
    controls: Sequence[ControlFolder] = (),
    reference_schedule: str | None = None,
    table_dtype: str | None = None,
) -> Estimate:
    """Expected sizes of a bundle.

    Args:
        folder: Holds the U-Nets.
        rest: Holds `vae`, text encoders, tokenizers and `scheduler`.
        config: Of the pair.
        options: What is asked for.
        num_graphs: Files of graphs or engines.
        is_written_anew: The weights change, as by LoRAs, so none can be linked.
        controls: All that the bundle will hold.
        reference_schedule: Of the reference table; the pair's own by default.
        table_dtype: How the table keeps its numbers; by default, and always where engines read it,
            as the graphs compute.

    Raises:
        CheckpointError: A configuration or a header cannot be read.
        ParameterError: Another schedule or type than there are.
    """
    stored, parameters = {}, {}
    names = ["base_unet"] if config.shared_unet else ["base_unet", "ref_unet"]
    names += [TINY_VAE] if options.tiny_decoder else []
    unet = read_json(folder / "base_unet" / "config.json")
    for name in (*names, "vae", *text_encoders(unet)):
        part = (folder if name.endswith("unet") else rest) / name
        parameters[name], stored[name] = _count(part)
    for control in controls:
        name = f"{CONTROL_PREFIX}{control.kind}"
        parameters[name], stored[name] = _count(control.path)
    # Weights become second names of the pair's files where graphs can point into those.
    is_single = (folder / "pair.json").is_file() and not any(folder.glob("*/*.index.json"))
    total = sum(parameters.values())
    width = _BYTES_OF[options.precision]
    vae = read_json(rest / "vae" / "config.json")
    # An autoencoder of Stable Diffusion XL computes in float32 unless it was mended for float16.
    wide = 0
    if width == 2 and has_two_texts(unet) and vae.get("force_upcast", True):
        wide = 2 * parameters["vae"]
    on_disk = sum(stored.values())
    stored_as = options.stored_as
    is_other = stored_as is not None and on_disk != _BYTES_OF[stored_as] * total
    is_linked = folder == rest and is_single and not is_other and not is_written_anew
    if not is_linked and options.weights != "as-is":
        on_disk = 4 * total if stored_as == "float32" else min(on_disk, 2 * total)
    engines = 0
    # Those without deep blocks have few weights.
    of_controls = 2 * len(options.controls)
    kinds = 3 if options.controls else 2
    steps = (num_graphs - NUM_FIXED_GRAPHS - options.tiny_decoder - of_controls) // kinds
    if options.is_engine:  # each engine holds the weights of its graph
        engines = wide + width * (total + (steps - 1) * parameters["base_unet"])
        engines += width * parameters["base_unet"] if config.shared_unet else 0
    graphs = num_graphs * _GRAPH_BYTES
    if (
        options.int8
    ):  # each int8 step graph holds its weights, a byte a number and some that are wide
        graphs += steps * (_GRAPH_BYTES + round(_INT8_BYTES * parameters["base_unet"]))
    disk = engines + graphs if options.is_engine else on_disk + graphs
    schedule, entries = _schedule(config, options, reference_schedule)
    dtype: TableDtype = options.precision
    if table_dtype is not None:
        check_name("table_dtype", table_dtype, TABLE_DTYPES)
        dtype = dtype if options.is_engine else cast("TableDtype", table_dtype)
    decoder_width = vae["block_out_channels"][0]
    shape = pair_shape(folder, rest)
    profile = options.profile
    held = engines if options.is_engine else width * total + wide
    usual_side = profile.resolution_px[1] // shape.pixels_per_latent
    usual_layers = self_attention_shapes(unet, usual_side, usual_side)

    def table_size(kept: TableDtype) -> TableSize:
        one = table_bytes(usual_layers, num_entries=1, num_references=1, dtype=kept)
        return TableSize(kept, entries * one, min(2, entries) * one)

    def memory(side_px: int, batch: int, references: int) -> Memory:
        side = side_px // shape.pixels_per_latent
        shapes = self_attention_shapes(unet, side, side)
        table = table_bytes(shapes, num_entries=entries, num_references=references, dtype=dtype)
        # In float32, over own tokens and as many of a reference.
        scores = max(heads * 2 * tokens**2 * 4 for heads, tokens, _ in shapes)
        attention = GUIDANCE_ROWS * batch * scores
        decoded_px = min(batch * side_px**2, MOST_LATENTS * shape.pixels_per_latent**2)
        pictures = _DECODER_PICTURES * decoded_px * decoder_width * 4
        channels = sum(heads * dim for heads, _, dim in shapes)  # as of the cross-attentions
        text = 2 * GUIDANCE_ROWS * batch * shape.text_length * channels * width
        return Memory(held, table, text, attention, pictures)

    return Estimate(
        parameters=total,
        disk_bytes=disk,
        free_bytes=graphs + engines + (0 if is_linked else on_disk),
        table_entries=entries,
        table_dtype=dtype,
        reference_schedule=str(schedule),
        tables=tuple(table_size(kept) for kept in dict.fromkeys([dtype, *_NARROWER])),
        usual=memory(profile.resolution_px[1], 1, 1),
        largest=memory(profile.resolution_px[2], profile.max_batch, profile.max_references),
    )


def _schedule(
    config: PairConfig, options: BuildOptions, text: str | None
) -> tuple[ReferenceSchedule, int]:
    """A reference schedule, the pair's own by default, and E for the pair's default steps."""
    schedule = ReferenceSchedule.default_for(config.reference_timestep)
    if text is not None:
        schedule = ReferenceSchedule.parse(text, schedule.mode)
    steps = min(config.default_steps, options.profile.max_steps)
    return schedule, len(schedule.timesteps(np.zeros(steps, np.int64)))


def _count(folder: Path) -> tuple[int, int]:
    """Numbers and bytes of the weights of one module, from the headers of its files."""
    paths = sorted(folder.glob("*.safetensors"))
    plain = [path for path in paths if ".fp16." not in path.name]
    numbers = size = 0
    for path in plain or paths:
        try:
            with safe_open(path, framework="numpy") as stream:
                for name in stream.keys():
                    tensor = stream.get_slice(name)
                    count = math.prod(tensor.get_shape())
                    numbers += count
                    size += count * _BYTES_OF_STORED.get(tensor.get_dtype(), 4)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{path} is truncated or damaged ({type(error).__name__}); "
                "download or copy it again",
                path,
            ) from error
    if not numbers:
        raise CheckpointError(
            f"{folder} holds no safetensors weights; copy the model folder again", folder
        )
    return numbers, size
