"""Folders that diffusers saved, made pairs; and folders of pairs, copied whole."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

from bootpig_rt.bundle.model_index import FILE as INDEX_FILE
from bootpig_rt.bundle.pair_config import PairConfig, read_json
from bootpig_rt.errors import ParameterError, StorageError, describe_os_error
from bootpig_rt.files.atomic import atomic_write_text

CARD = "README.md"


def finish_folder(folder: Path, config: PairConfig, *, source: Path | None) -> None:
    """Make a pair of a folder that diffusers saved, with no path of this machine in it.

    Args:
        folder: The folder.
        config: For its `pair.json`.
        source: Folder that the components came from, whose card goes along.
    """
    for path in [*folder.glob("*/config.json"), folder / INDEX_FILE]:
        values = read_json(path)
        values.pop("_name_or_path", None)
        for name in ("pair", "control_kinds"):  # of the index; their files and folders say it
            values.pop(name, None)
        atomic_write_text(path, json.dumps(values, indent=2, sort_keys=True) + "\n")
    atomic_write_text(folder / "pair.json", config.to_json())
    card = None if source is None else source / CARD
    if card is not None and card.is_file() and not (folder / CARD).exists():
        atomic_write_text(folder / CARD, card.read_text(encoding="utf-8"))


def copy_pair(source: Path, target: Path, more: Mapping[str, Path]) -> None:
    """Copy a pair's folder, all of it or nothing; what is hidden in it stays behind.

    Args:
        source: The pair.
        target: The copy.
        more: Folders that go into the copy, by their names there.

    Raises:
        ParameterError: The target exists.
        StorageError: The disk is full, read-only or otherwise refuses.
    """
    if target.exists():
        raise ParameterError(f"{target} exists already; choose another folder")
    hidden = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    try:
        try:
            shutil.copytree(source, hidden, ignore=shutil.ignore_patterns(".*"))
            for name, folder in more.items():
                shutil.copytree(folder, hidden / name, ignore=shutil.ignore_patterns(".*"))
            hidden.rename(target)
        except BaseException:
            shutil.rmtree(hidden, ignore_errors=True)
            raise
    except OSError as error:
        raise StorageError(f"cannot save to {target}: {describe_os_error(error)}") from error
