"""The pairs inside the package; of all but the first only what differs from it is kept.

Distilling trains the Base U-Net alone, and a control begins as a part of it. The graphs, the
Reference U-Net and all else are the shipped pair's to the last bit, so the package holds them once;
and of a student or a control what was added to the Base U-Net, in eight bits.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from bootpig_rt.bundle.control import ControlsArgument
from bootpig_rt.bundle.difference import SUFFIX, apply_difference, whole_name
from bootpig_rt.bundle.files import MANIFEST
from bootpig_rt.checks import check_name
from bootpig_rt.errors import CheckpointError, ParameterError, StorageError, describe_os_error

Variant: TypeAlias = Literal["full", "fast"]
"""Of the pair inside the package: itself, or its student."""
VARIANTS: tuple[str, ...] = get_args(Variant)

CONTROLS = ("depth",)
"""Kinds of controls inside the package."""

GRAPHS = "graphs.zip"
"""Graphs that a part adds to the pair's; packed, for they are text mostly."""
BASE_WEIGHTS = "base_unet/diffusion_pytorch_model.safetensors"

_ASSETS = Path(__file__).parents[1] / "assets"
_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []  # each is removed when the process ends


def default_model() -> Path:
    """Folder of the pair inside the package.

    Raises:
        CheckpointError: This installation has none.
    """
    folder = _ASSETS / "pair"
    if not (folder / "pair.json").is_file():
        raise CheckpointError(
            f"no pair inside the package ({folder}); name one with model=FOLDER or --model FOLDER, "
            "or install the package again",
            folder,
        )
    return folder


def few_step_model() -> Path | None:
    """Folder of the few-step pair, put together once in a process; None if there is none.

    It is a bundle: whoever loads it compares every file with its manifest.

    Raises:
        CheckpointError: A file of the package is damaged.
        StorageError: There is no room for temporary files.
    """
    return _put_together("student")


def packaged_model(variant: Variant, controls: Collection[str] = ()) -> Path:
    """Folder of the pair inside the package, of its student, or of the pair with a control.

    Args:
        variant: Which of them.
        controls: Kinds of the package's controls, see `take_packaged`.

    Raises:
        CheckpointError: This installation has none.
        ParameterError: Another variant, or a control with the student.
        StorageError: There is no room for temporary files.
    """
    check_name("variant", variant, VARIANTS)
    if controls and variant != "full":
        raise ParameterError(
            f"got variant {variant!r} and control {' '.join(controls)}, expected one of them: the "
            "controls of the package are of the pair itself, not of its student"
        )
    if variant == "full" and not controls:
        return default_model()
    part = "student" if variant != "full" else f"control_{next(iter(controls))}"
    found = _put_together(part)
    if found is None:
        what = part.replace("_", " of kind ")
        raise CheckpointError(
            f"no {what} inside the package ({_ASSETS / part}); draw with the pair itself, or "
            "install the package again",
            _ASSETS / part,
        )
    return found


def take_packaged(controls: ControlsArgument) -> tuple[tuple[str, ...], ControlsArgument]:
    """Kinds that name controls of the package, such as `depth`, and the controls that are left."""
    if controls is None or isinstance(controls, Mapping):
        return (), controls
    texts = [controls] if isinstance(controls, str | os.PathLike) else list(controls)
    kinds = tuple(dict.fromkeys(kind for kind in CONTROLS if kind in texts))
    return kinds, [text for text in texts if text not in kinds]


@cache
def _put_together(part: str) -> Path | None:
    """The pair with what a part of the package changes or adds."""
    teacher, own = _ASSETS / "pair", _ASSETS / part
    if not (own / MANIFEST).is_file() or not (teacher / MANIFEST).is_file():
        return None
    try:
        with ExitStack() as failing:
            folder = tempfile.TemporaryDirectory(prefix=f"bootpig-rt-{part}-")
            whole = Path(failing.enter_context(folder))
            _fill(whole, teacher, own)
            failing.pop_all()  # it is whole, and stays
    except OSError as error:
        raise StorageError(
            f"cannot put {part} of the package together: {describe_os_error(error)}"
        ) from error
    _FOLDERS.append(folder)
    return whole


def _fill(whole: Path, teacher: Path, own: Path) -> None:
    no_caches = shutil.ignore_patterns(".*")
    for source in (teacher, own):
        shutil.copytree(source, whole, dirs_exist_ok=True, ignore=no_caches)
    graphs = whole / GRAPHS
    if graphs.is_file():
        _unpack(graphs, whole)
    for difference in whole.rglob(f"*{SUFFIX}"):
        apply_difference(teacher / BASE_WEIGHTS, difference, whole_name(difference))
        difference.unlink()


def _unpack(graphs: Path, whole: Path) -> None:
    try:
        with zipfile.ZipFile(graphs) as archive:
            archive.extractall(whole)
    except (zipfile.BadZipFile, zlib.error) as error:
        raise CheckpointError(
            f"{graphs.name} of the package is damaged ({error}); install the package again", graphs
        ) from error
    graphs.unlink()


def is_put_together(folder: Path) -> bool:
    """Whether a folder was put together here, and goes when the process ends."""
    return any(Path(one.name) == folder for one in _FOLDERS)
