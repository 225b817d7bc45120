"""What samples come from: folders and files by their content, not by their name."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from bootpig_rt.bundle.files import measure
from bootpig_rt.training.bootstrap.config import ENCODERS, SOURCES, BootstrapConfig
from bootpig_rt.training.bootstrap.folders import check_folder, choose_device
from bootpig_rt.training.shards import write_json

_SUFFIXES = (".json", ".safetensors", ".txt", ".model", ".jinja", ".onnx")


class Sources:
    """Fingerprints of folders and files, measured once while size and time of their files stay.

    Args:
        notes: A JSON file that keeps what was measured.
        keep: Whether more is written into it.
    """

    def __init__(self, notes: Path, *, keep: bool = True) -> None:
        self._notes, self._keep = notes, keep
        self._known: dict[str, str] = {}
        if notes.is_file():
            self._known = json.loads(notes.read_text())

    def identify(self, name: str) -> str:
        """The sha256 of a folder's or file's content; whatever is neither stays as it is."""
        path = Path(name)
        if not name or not path.exists():
            return name
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        digest = hashlib.sha256()
        for file in files:
            if path.is_dir() and file.suffix not in _SUFFIXES:
                continue
            place = "" if file == path else file.relative_to(path).as_posix()
            digest.update(f"{place} {self._measure(file)}\n".encode())
        return f"sha256:{digest.hexdigest()}"

    def _measure(self, file: Path) -> str:
        stat = file.stat()
        key = f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}"
        if key not in self._known:
            self._known[key] = measure(file)[1]
            if self._keep:
                self._notes.parent.mkdir(parents=True, exist_ok=True)
                write_json(self._notes, self._known)
        return self._known[key]


def check_sources(config: BootstrapConfig) -> None:
    """Look at the device and at every model's folder, before hours are spent on captions.

    Raises:
        ConfigError: No such kind of device.
        BackendUnavailable: This machine does not have it.
        CheckpointError: A folder is missing, or lacks configuration or safetensors.
    """
    choose_device(config.device)
    if config.captions.source == "llm":
        check_folder(config.captions.model, "language model")
    if config.pictures.source == "diffusers":
        check_folder(config.pictures.model, "text-to-image model", config="model_index.json")
    if config.masks.source == "sam":
        check_folder(config.masks.model, "segmenter")
        if config.masks.finder != "centre":
            check_folder(config.masks.finder_model, "finder")
    if config.filters.clip:
        check_folder(config.filters.clip, "CLIP model")
    if config.filters.duplicates not in ("none", *ENCODERS):
        check_folder(config.filters.duplicates, "encoder")
    if config.pairs.share and config.pairs.encoder not in ENCODERS:
        check_folder(config.pairs.encoder, "encoder")


def describe_sources(config: BootstrapConfig, sources: Sources) -> dict[str, Any]:
    """What the manifest says of the models and files: name and fingerprint of each, by setting."""
    plain = config.to_dict()
    told = {}
    for table, names in SOURCES.items():
        for setting in names:
            if name := plain[table][setting]:
                told[f"{table}.{setting}"] = {"name": name, "is": sources.identify(name)}
    return told
