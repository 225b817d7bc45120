"""What may change between two runs in one folder, by name, and the check of it.

A run goes on bit for bit where it was as long as nothing changes. What is named here may change: it
decides how steps are computed or looked at, or is meant to be corrected while a run goes on.
Everything else would make two trainings of one, and is refused.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from bootpig_rt.errors import CheckpointError
from bootpig_rt.files.atomic import atomic_write_text
from bootpig_rt.training.config import TrainConfig

logger = logging.getLogger(__name__)

MAY_CHANGE: dict[str, str] = {
    "output": "the folder may be moved",
    "steps": "more or fewer; the rate follows the new length from here on",
    "batch_size": "if the samples of a step stay as many",
    "accumulate": "likewise",
    "samples_per_step": "likewise",
    "checkpointing": "gradients stay the same",
    "compile": "equal within rounding",
    "channels_last": "equal within rounding",
    "tf32": "equal within its precision",
    "optimizer.learning_rate": "from here on",
    "optimizer.rsa_learning_rate": "from here on",
    "optimizer.final_learning_rate": "from here on",
    "optimizer.clip_norm": "from here on",
    "optimizer.ema_device": "the average stays the same",
    "on_nan": "from here on",
    "max_skips": "from here on",
    "timeout_minutes": "from here on",
    "validation_data": "only what is drawn to look at",
    "samples.readers": "only how far ahead is read",
    "samples.text_states": "equal within rounding",
    "log_every": "only what is written",
    "validate_every": "only what is drawn to look at",
    "checkpoint_every": "only what is written",
    "keep_checkpoints": "only what is kept",
    "trackers": "only what is written",
    "export_every": "only what is written",
    "samples.resident": "other noise of the same kind from here on",
}
"""Settings that may change, and what that means; the number of processes may, like `batch_size`."""


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by their dotted names: `optimizer.beta1`."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def check_config(config: TrainConfig, folder: Path) -> None:
    """Compare the configuration with the one of the run that the folder holds; log what changed.

    Raises:
        CheckpointError: Something else has changed, or `config.json` cannot be read.
    """
    path = folder / "config.json"
    # A run that began before an option existed has its default.
    least = TrainConfig(config.stage, config.output, start_from=config.start_from)
    try:
        stored = json.loads(path.read_text())
        before = flatten(least.to_dict()) | flatten(stored)
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{folder} has checkpoints but no readable config.json ({error}); "
            "use another output folder to start anew",
            path,
        ) from error
    now = flatten(config.to_dict())
    changed = sorted(name for name in now if now[name] != before.get(name))
    refused = [name for name in changed if name not in MAY_CHANGE]
    if refused:
        raise CheckpointError(
            f"{folder} holds a run with other {', '.join(refused)}; "
            "use its settings to go on, or another output folder to start anew",
            path,
        )
    for name in changed:
        logger.warning("going on with %s %s, it was %s", name, now[name], before.get(name))


def write_config(config: TrainConfig, folder: Path) -> None:
    """Keep the configuration with the run."""
    atomic_write_text(folder / "config.json", json.dumps(config.to_dict(), indent=1) + "\n")
