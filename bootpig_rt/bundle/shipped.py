"""The pairs inside the package; of the few-step one only what differs from the other is kept.

Distilling trains the Base U-Net alone. The graphs, the Reference U-Net and all else are the shipped
pair's to the last bit, so the package holds them once; and of the Base U-Net what was added to it,
in eight bits.
"""

from __future__ import annotations

import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from bootpig_rt.bundle.difference import SUFFIX, apply_difference, whole_name
from bootpig_rt.checks import check_name
from bootpig_rt.errors import CheckpointError, StorageError, describe_os_error

Variant: TypeAlias = Literal["full", "fast"]
"""Of the pair inside the package: itself, or its student."""
VARIANTS: tuple[str, ...] = get_args(Variant)

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


@cache
def few_step_model() -> Path | None:
    """Folder of the few-step pair, put together once in a process; None if there is none.

    It is a bundle: whoever loads it compares every file with its manifest.

    Raises:
        CheckpointError: A file of the package is damaged.
        StorageError: There is no room for temporary files.
    """
    student, teacher = _ASSETS / "student", _ASSETS / "pair"
    if not (student / "pair.json").is_file() or not (teacher / "pair.json").is_file():
        return None
    try:
        whole = tempfile.TemporaryDirectory(prefix="bootpig-rt-student-")
        no_caches = shutil.ignore_patterns(".*")
        shutil.copytree(teacher, whole.name, dirs_exist_ok=True, ignore=no_caches)
        shutil.copytree(student, whole.name, dirs_exist_ok=True, ignore=no_caches)
        for difference in Path(whole.name).rglob(f"*{SUFFIX}"):
            weights = whole_name(difference)
            apply_difference(weights, difference, weights)
            difference.unlink()
    except OSError as error:
        raise StorageError(
            f"cannot put the few-step pair together: {describe_os_error(error)}"
        ) from error
    _FOLDERS.append(whole)
    return Path(whole.name)


def packaged_model(variant: Variant) -> Path:
    """Folder of the pair inside the package, or of its student.

    Raises:
        CheckpointError: This installation has none.
        ParameterError: Another variant.
        StorageError: There is no room for temporary files.
    """
    check_name("variant", variant, VARIANTS)
    if variant == "full":
        return default_model()
    student = few_step_model()
    if student is None:
        raise CheckpointError(
            f"no student inside the package ({_ASSETS / 'student'}); draw with the pair itself, or "
            "install the package again",
            _ASSETS / "student",
        )
    return student


def is_put_together(folder: Path) -> bool:
    """Whether a folder was put together here, and goes when the process ends."""
    return any(Path(one.name) == folder for one in _FOLDERS)
