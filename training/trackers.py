"""Where the figures of a run go: `log.jsonl`, and the trackers that accelerate knows."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, MLflowTracker, TensorBoardTracker, WandBTracker

from bootpig_rt.errors import BackendUnavailable
from bootpig_rt.files.atomic import atomic_write_text
from bootpig_rt.training.config import TrackerName, TrainConfig
from bootpig_rt.training.resume import flatten

_PACKAGES: dict[TrackerName, tuple[str, str]] = {
    "tensorboard": ("tensorboard", "train"),
    "wandb": ("wandb", "trackers"),
    "mlflow": ("mlflow", "trackers"),
}


class Log:
    """Figures of one process: a line each in `log.jsonl`, and whatever the trackers make of them.

    W&B is offline unless `WANDB_MODE` says otherwise; MLflow writes into the folder unless
    `MLFLOW_TRACKING_URI` does.

    Raises:
        BackendUnavailable: The package of a tracker is not installed.
    """

    def __init__(self, config: TrainConfig, *, step: int) -> None:
        """Go on after a step: later lines, which a run that was killed had written, are dropped."""
        self.folder = Path(config.output)
        self._cut(step)
        self._trackers = [_tracker(name, self.folder, step) for name in config.trackers]
        settings = {
            name: value if isinstance(value, (int, float, str)) else json.dumps(value)
            for name, value in flatten(config.to_dict()).items()
        }
        for tracker in self._trackers:
            tracker.start()
            if tracker.name != "tensorboard":  # which would make a run of its own of them
                tracker.store_init_configuration(settings)

    def write(self, figures: dict[str, float], step: int) -> None:
        """Add the figures of a step."""
        with (self.folder / "log.jsonl").open("a") as file:
            rounded = {name: float(f"{value:.6g}") for name, value in figures.items()}
            file.write(json.dumps({"step": step, **rounded}) + "\n")
        for tracker in self._trackers:
            tracker.log(figures, step=step)

    def close(self) -> None:
        """End the trackers' runs."""
        for tracker in self._trackers:
            tracker.finish()

    def _cut(self, step: int) -> None:
        path = self.folder / "log.jsonl"
        if not path.exists():
            return
        # A process that was killed while it wrote leaves a line without its end.
        whole = [line for line in path.read_text().splitlines(keepends=True) if line[-1] == "\n"]
        kept = [line for line in whole if json.loads(line)["step"] <= step]
        atomic_write_text(path, "".join(kept))


def _tracker(name: TrackerName, folder: Path, step: int) -> GeneralTracker:
    package, extra = _PACKAGES[name]
    if importlib.util.find_spec(package) is None:
        raise BackendUnavailable(
            f"trackers has {name}, which is not installed: "
            f'pip install "bootpig-rt[{extra}]", or take it out'
        )
    if name == "tensorboard":
        # Steps after the checkpoint are written again.
        return TensorBoardTracker("tensorboard", str(folder), purge_step=step + 1)
    if name == "wandb":
        settings: dict[str, Any] = {"name": folder.name, "dir": str(folder)}
        return WandBTracker("bootpig-rt", mode=os.environ.get("WANDB_MODE", "offline"), **settings)
    if "MLFLOW_TRACKING_URI" not in os.environ:
        import mlflow

        mlflow.set_tracking_uri(f"sqlite:///{(folder / 'mlflow.db').resolve()}")
    return MLflowTracker("bootpig-rt", logging_dir=str(folder / "mlflow"), run_name=folder.name)
