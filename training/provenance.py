"""Where a trained model comes from: settings, seeds, data and what it started from, all the way.

`provenance.json` stands beside the result of every stage and holds that of the stage before, so
that a pair says how it could be made again. It changes no fingerprint.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any

from bootpig_rt.training.config import TrainConfig
from bootpig_rt.training.shards import read_manifest

FILE = "provenance.json"
FORMAT = 1
_PACKAGES = ("bootpig-rt", "torch", "diffusers", "transformers", "numpy", "pillow")


def provenance(config: TrainConfig, fingerprint: str, processes: int) -> dict[str, Any]:
    """What a run's result comes from; `fingerprint` is that of `start_from`, "" for none.

    Returns:
        `format`, `config` (seed and tables included), `processes`, `data` and `validation_data`
        (number of samples, settings, sources where the manifest names them, and sha256 of the
        manifest, which names every shard's), `start`
        (folder, fingerprint and its own provenance, None where there is none), `grown_from` where
        the run began with the weights of a smaller pair, `packages`.
    """
    start = None
    if config.start_from:
        start = {**_before(config.start_from), "fingerprint": fingerprint}
    grown = config.unet.grow_from if config.stage == "base" else ""
    return {
        "format": FORMAT,
        "config": config.to_dict(),
        "processes": processes,
        "data": _data(config.data),
        "validation_data": _data(config.validation_data) if config.validation_data else None,
        "start": start,
        **({"grown_from": _before(grown)} if grown else {}),
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def _before(folder: str) -> dict[str, Any]:
    path = Path(folder) / FILE
    before = json.loads(path.read_text()) if path.is_file() else None
    return {"folder": folder, "provenance": before}


def _data(folder: str) -> dict[str, Any]:
    manifest = read_manifest(Path(folder))
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    about = {"folder": folder, "samples": manifest["samples"], "settings": manifest["settings"]}
    names = [name for name in ("source", "sources") if name in manifest]
    told: dict[str, Any] = {name: manifest[name] for name in names}
    return {**about, **told, "manifest_sha256": digest}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
