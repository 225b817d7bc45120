"""Models in this process: each a pipeline, checked and warm before anybody asks for a picture."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from bootpig_rt.backends import PairOptions, backend_settings
from bootpig_rt.bundle.shipped import few_step_model, packaged_model, take_packaged
from bootpig_rt.engine.events import OnLaunch
from bootpig_rt.engine.options import EngineOptions, Limits
from bootpig_rt.errors import CheckpointError, ParameterError
from bootpig_rt.images.background import load_remover
from bootpig_rt.pipeline import Pipeline
from bootpig_rt.reference.table_options import TableOptions
from bootpig_rt.server.local_engine import LocalEngine
from bootpig_rt.server.metrics import Metrics
from bootpig_rt.server.options import DEFAULT_MODEL, FEW_STEP_MODEL, ServerOptions
from bootpig_rt.server.service import ClientLoader

logger = logging.getLogger(__name__)


def model_folders(options: ServerOptions) -> dict[str, Path]:
    """Folders of the models by the names that requests use, the default one first.

    Raises:
        CheckpointError: A folder is not there.
        ParameterError: A name is there twice.
        StorageError: There is no room for what the package has to put together.
    """
    if options.model is None:
        folders = {DEFAULT_MODEL: packaged_model("full", take_packaged(options.control)[0])}
        student = few_step_model()
        if student is not None:
            folders[FEW_STEP_MODEL] = student
    else:
        folders = {Path(options.model).resolve().name or DEFAULT_MODEL: Path(options.model)}
    for name, path in options.models.items():
        if name in folders:
            raise ParameterError(f"the model {name!r} is there twice; give it another name")
        folders[name] = Path(path)
    for name, folder in folders.items():
        if not folder.is_dir():
            raise CheckpointError(
                f"no folder {str(folder)!r} for the model {name!r}; check the path", folder
            )
    return folders


def local_loaders(options: ServerOptions, metrics: Metrics) -> Mapping[str, ClientLoader]:
    """What loads each model of a service into this process.

    Raises:
        CheckpointError: A folder is not there.
        ParameterError: A name is there twice, or a setting of another backend.
    """
    backend_settings(options.backend, threads=options.threads, precision=options.precision)
    return {
        name: partial(load_local, name, folder, options, metrics.launches_of(name))
        for name, folder in model_folders(options).items()
    }


def engine_limits(options: ServerOptions) -> Limits:
    """What one request of a service may ask an engine for."""
    return Limits(
        num_inference_steps=options.max_steps,
        side_px=options.max_side_px,
        num_references=options.max_references,
        num_images=options.max_images,
        table_bytes=options.max_table_bytes,
    )


def load_local(
    name: str, folder: Path, options: ServerOptions, on_launch: OnLaunch | None = None
) -> LocalEngine:
    """Load a model, draw with it once for each batch size, and start its engine.

    Args:
        name: By which requests ask for it.
        folder: Of the pair or bundle.
        options: Of the service.
        on_launch: Hears of every step.

    Raises:
        BootPIGError: It cannot be used.
    """
    start = time.perf_counter()
    remover = None if options.remove_background is None else load_remover(options.remove_background)
    is_default = name == next(iter(model_folders(options)))
    controls = options.control if options.model else take_packaged(options.control)[1]
    pipeline = Pipeline(
        folder,
        backend=backend_settings(
            options.backend, threads=options.threads, precision=options.precision
        ),
        device=options.device,
        background_remover=remover,
        max_batch=options.max_batch,
        tables=TableOptions(folder=options.store, device_bytes=options.device_table_bytes),
        pair=PairOptions(
            lora=options.lora if is_default else None,
            controls=controls if is_default else None,
            decoder=options.decoder,
            base_model=options.base_model,
            trust=options.trust,
        ),
    )
    try:
        sizes = sorted({min(size, pipeline.max_batch) for size in options.warmup_batches})
        pipeline.warmup(sizes)
        engine_options = EngineOptions(
            max_waiting=options.max_waiting,
            limits=engine_limits(options),
            on_launch=on_launch,
        )
        client = LocalEngine(
            name,
            pipeline,
            engine_options,
            max_image_pixels=options.max_image_pixels,
            hang_s=options.hang_s,
        )
    except BaseException:
        pipeline.close()
        raise
    logger.info("%s is loaded and warm after %.1f s", name, time.perf_counter() - start)
    return client
