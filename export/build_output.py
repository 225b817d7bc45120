"""Where a bundle goes: what may be written, whether there is room, and how it takes its place."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bootpig_rt.bundle.bundle import Bundle, is_bundle
from bootpig_rt.bundle.control import ControlFolder, all_controls
from bootpig_rt.bundle.files import CACHE, MANIFEST, SIGNATURE
from bootpig_rt.bundle.lora import Lora
from bootpig_rt.errors import (
    ParameterError,
    StorageError,
)
from bootpig_rt.export.build_options import BuildOptions
from bootpig_rt.export.estimate import estimate
from bootpig_rt.export.work_folder import WorkFolder, remove

if TYPE_CHECKING:
    from bootpig_rt.bundle.pair_config import PairConfig
from bootpig_rt.bundle.bundle import read_manifest
from bootpig_rt.export.build_options import graph_names, is_in_place


@dataclass(frozen=True)
class Order:
    """What `build_engine` was asked for."""

    pair_folder: Path
    output: Path
    base_model: Path | None
    options: BuildOptions
    key: Path | None
    overwrite: bool
    loras: tuple[Lora, ...]
    controls: tuple[ControlFolder, ...]

    @property
    def is_in_place(self) -> bool:
        """The bundle is the pair's own folder."""
        return is_in_place(self.pair_folder, self.output)


def check_output(
    pair_folder: Path, output: Path, options: BuildOptions, *, overwrite: bool
) -> None:
    """Refuse an output that cannot be made, or in whose place something would be lost.

    Raises:
        ParameterError: It exists and may not be replaced, or is the pair and cannot hold engines.
        StorageError: Its folder does not exist.
    """
    parent = output.parent
    in_place = is_in_place(pair_folder, output)
    if not parent.is_dir():
        raise StorageError(f"cannot build {str(output)!r}: no folder {str(parent)!r}; make it")
    if in_place and options.is_engine:
        raise ParameterError(
            f"{output} holds the weights of the pair, and engines hold them once more; "
            "choose another -o for this target"
        )
    if in_place or not os.path.lexists(output):
        return
    if output.is_symlink() or not output.is_dir():
        raise ParameterError(f"{output} is no folder; choose another -o")
    if not any(output.iterdir()):
        return
    if not is_bundle(output):
        raise ParameterError(f"{output} exists and is no bundle; choose another -o")
    if not overwrite:
        raise ParameterError(f"{output} exists already; choose another -o or pass --overwrite")


def check_free_space(order: Order, config: PairConfig) -> None:
    """Refuse a build that would fill the disk, before it begins.

    Raises:
        StorageError: Says how much it needs and how much there is.
    """
    rest = order.base_model or order.pair_folder
    count = len(graph_names(order.options))
    needed = estimate(
        order.pair_folder,
        rest,
        config,
        order.options,
        num_graphs=count,
        is_written_anew=bool(order.loras),
        controls=all_controls(order.pair_folder, order.controls),
    ).free_bytes
    free = shutil.disk_usage(order.output.parent).free
    if free < needed:
        raise StorageError(
            f"cannot build {str(order.output)!r}: it needs about {needed / 1e9:.2f} GB, and "
            f"{free / 1e9:.2f} GB are free; free some space or write to another disk"
        )


def publish(order: Order, finished: Path, work: WorkFolder) -> Bundle:
    """Give the finished bundle its place."""
    output = order.output
    # Hours may have passed, and the lock is for builds alone.
    check_output(order.pair_folder, output, order.options, overwrite=order.overwrite)
    if not order.is_in_place:
        if output.exists():
            old = work.path / "old"
            os.replace(output, old)
        os.replace(finished, output)
        return Bundle(output, read_manifest(output))
    # The pair stays where it is and stays usable; it is no bundle until its manifest is there.
    (output / MANIFEST).unlink(missing_ok=True)
    (output / SIGNATURE).unlink(missing_ok=True)
    remove(output / CACHE)  # of the graphs that were there
    for path in output.iterdir():
        is_graph = path.suffix in (".onnx", ".engine") or ".int8." in path.name
        if is_graph or path.name.endswith(".layers.json"):
            remove(path)
    for path in finished.iterdir():
        if path.is_file() and path.name not in (MANIFEST, SIGNATURE, "pair.json"):
            os.replace(path, output / path.name)
    for name in (SIGNATURE, MANIFEST):
        if (finished / name).exists():
            os.replace(finished / name, output / name)
    return Bundle(output, read_manifest(output))
