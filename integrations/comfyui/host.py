"""What is asked of ComfyUI itself, in one place: folders, progress, interrupts, metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
from comfy.cli_args import args
from PIL import Image

CATEGORY = "BootPIG"
"""Where the nodes stand in ComfyUI's menu."""

Inputs = dict[str, dict[str, Any]]
"""What a node declares that it takes."""

FOLDER = "bootpig"
"""Pairs and bundles lie in `models/bootpig/NAME/`."""

_PREVIEW_PX = 512

folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER))


def pair_folders() -> dict[str, Path]:
    """Pairs and bundles in the folders of models, by name."""
    return {
        path.name: path
        for base in folder_paths.get_folder_paths(FOLDER)
        if Path(base).is_dir()
        for path in sorted(Path(base).iterdir())
        if (path / "pair.json").is_file()
    }


class Progress:
    """The bar of the node that runs.

    Args:
        total: Steps of all pictures.
    """

    def __init__(self, total: int) -> None:
        """Nothing is done yet."""
        self._bar = comfy.utils.ProgressBar(total)

    def show(self, done: int, preview: Image.Image | None = None) -> None:
        """Move the bar, show a preview under the node, and stop where somebody pressed Cancel.

        Raises:
            InterruptProcessingException: ComfyUI's own; it ends the run and is no error.
        """
        shown = None if preview is None else ("JPEG", preview, _PREVIEW_PX)
        self._bar.update_absolute(done, preview=shown)
        comfy.model_management.throw_exception_if_processing_interrupted()


def output_file(prefix: str, image: Image.Image, number: int) -> tuple[Path, dict[str, str]]:
    """Where a picture goes in ComfyUI's output folder, and what the page is told of it.

    Args:
        prefix: What the user wrote: names, folders and `%...%` marks as in ComfyUI's own node.
        image: For the marks of its size.
        number: Of the picture in its batch, counted from 0.
    """
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
        prefix, folder_paths.get_output_directory(), image.width, image.height
    )
    file = f"{name.replace('%batch_num%', str(number))}_{counter:05}_.png"
    return Path(folder) / file, {"filename": file, "subfolder": subfolder, "type": "output"}


def workflow_texts(prompt: Any, extra: Mapping[str, Any] | None) -> dict[str, str]:
    """Text chunks from which ComfyUI restores a workflow when a picture is dropped on its page.

    Empty where it was started with `--disable-metadata`.
    """
    if args.disable_metadata:
        return {}
    values = {**({} if prompt is None else {"prompt": prompt}), **(extra or {})}
    return {name: json.dumps(value) for name, value in values.items()}
