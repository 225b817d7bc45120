"""Brings the pictures of several machines together in one folder, to be scored there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bootpig_rt.errors import ConfigError, StorageError, describe_os_error
from bootpig_rt.files.atomic import atomic_write_bytes
from bootpig_rt.training.evaluation.dreambench.drawing import REFERENCE_FOLDER, RUNS_FOLDER
from bootpig_rt.training.evaluation.dreambench.settings import keep_settings, read_settings
from bootpig_rt.training.evaluation.dreambench.shots import PICTURES

_PATTERNS = (f"{PICTURES}/*/*.png", f"{REFERENCE_FOLDER}/*/*.png", f"{RUNS_FOLDER}/*.json")


def collect(folder: Path, others: Sequence[Path]) -> int:
    """Copy what is not in a folder yet from the folders of other machines.

    Returns:
        How many pictures were copied.

    Raises:
        ConfigError: A folder has no pictures, or its pictures were drawn with other settings.
        StorageError: A file cannot be read or written.
    """
    copied = 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for other in others:
            settings = read_settings(other)
            if settings is None:
                raise ConfigError(
                    f"{other} has no settings.json, expected the folder of a run with --part; "
                    "check the path"
                )
            keep_settings(folder, settings)
            for path in sorted(path for each in _PATTERNS for path in other.glob(each)):
                target = folder / path.relative_to(other)
                if target.exists():
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                atomic_write_bytes(target, path.read_bytes())
                copied += target.is_relative_to(folder / PICTURES)
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"cannot copy into {folder}: {describe_os_error(error)}") from error
    return copied
