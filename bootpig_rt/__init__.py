"""Personalised pictures from reference images, without fine-tuning: a runtime for BootPIG pairs.

Public names are loaded on first use, so `import bootpig_rt` stays quick and needs neither torch
nor any other optional package.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bootpig_rt.approximation import Approximation
    from bootpig_rt.backends.base import PairSpec
    from bootpig_rt.backends.options import (
        OnnxRuntimeOptions,
        OpenVINOOptions,
        TensorRTOptions,
        TorchOptions,
    )
    from bootpig_rt.backends.pair_options import PairOptions
    from bootpig_rt.bundle.lora import Lora
    from bootpig_rt.engine.engine import Engine
    from bootpig_rt.engine.events import DoneEvent, Event, Launch, ReferenceEvent, StepEvent
    from bootpig_rt.engine.job import Job
    from bootpig_rt.engine.options import EngineOptions, Limits
    from bootpig_rt.engine.plan import Plan
    from bootpig_rt.errors import (
        BackendUnavailable,
        BootPIGError,
        BundleError,
        Cancelled,
        CheckpointError,
        ConfigError,
        CredentialsError,
        DeadlineExceeded,
        EndpointError,
        EngineError,
        EngineFull,
        EngineLost,
        ImageError,
        InputError,
        NumericalError,
        OutOfDeviceMemory,
        ParameterError,
        ParityError,
        ProcessLost,
        PromptError,
        StorageError,
        SubjectMismatch,
    )
    from bootpig_rt.images.background import BackgroundRemover
    from bootpig_rt.images.canny import canny_map
    from bootpig_rt.images.canvas import Canvas
    from bootpig_rt.images.control import Control
    from bootpig_rt.pipeline import Pipeline
    from bootpig_rt.reference.schedule import ReferenceSchedule
    from bootpig_rt.reference.subject import Subject
    from bootpig_rt.reference.table_options import TableOptions
    from bootpig_rt.request import (
        ControlParameters,
        GenerationResult,
        PictureParameters,
        PictureSettings,
        Request,
        Timings,
    )
    from bootpig_rt.storage.stats import StoreStats
    from bootpig_rt.storage.store import SubjectStore
    from bootpig_rt.tuning import TunedSettings

__version__ = "0.1.0"

# Both report what they are used for to their makers unless told not to before they are imported,
# ONNX Runtime from 1.29 on. Whoever wants that sets the variables otherwise.
for _variable, _value in (("ORT_DISABLE_TELEMETRY", "1"), ("RAY_USAGE_STATS_ENABLED", "0")):
    os.environ.setdefault(_variable, _value)

_MODULE_OF_NAME = {
    "Approximation": "bootpig_rt.approximation",
    "BackendUnavailable": "bootpig_rt.errors",
    "BackgroundRemover": "bootpig_rt.images.background",
    "BootPIGError": "bootpig_rt.errors",
    "BundleError": "bootpig_rt.errors",
    "Cancelled": "bootpig_rt.errors",
    "Canvas": "bootpig_rt.images.canvas",
    "CheckpointError": "bootpig_rt.errors",
    "ConfigError": "bootpig_rt.errors",
    "Control": "bootpig_rt.images.control",
    "ControlParameters": "bootpig_rt.request",
    "CredentialsError": "bootpig_rt.errors",
    "DeadlineExceeded": "bootpig_rt.errors",
    "DoneEvent": "bootpig_rt.engine.events",
    "Engine": "bootpig_rt.engine.engine",
    "EndpointError": "bootpig_rt.errors",
    "EngineError": "bootpig_rt.errors",
    "EngineFull": "bootpig_rt.errors",
    "EngineLost": "bootpig_rt.errors",
    "EngineOptions": "bootpig_rt.engine.options",
    "Event": "bootpig_rt.engine.events",
    "GenerationResult": "bootpig_rt.request",
    "ImageError": "bootpig_rt.errors",
    "InputError": "bootpig_rt.errors",
    "Job": "bootpig_rt.engine.job",
    "Launch": "bootpig_rt.engine.events",
    "Limits": "bootpig_rt.engine.options",
    "Lora": "bootpig_rt.bundle.lora",
    "NumericalError": "bootpig_rt.errors",
    "OnnxRuntimeOptions": "bootpig_rt.backends.options",
    "OpenVINOOptions": "bootpig_rt.backends.options",
    "OutOfDeviceMemory": "bootpig_rt.errors",
    "PairOptions": "bootpig_rt.backends.pair_options",
    "PairSpec": "bootpig_rt.backends.base",
    "ParameterError": "bootpig_rt.errors",
    "ParityError": "bootpig_rt.errors",
    "ProcessLost": "bootpig_rt.errors",
    "PictureParameters": "bootpig_rt.request",
    "PictureSettings": "bootpig_rt.request",
    "Pipeline": "bootpig_rt.pipeline",
    "Plan": "bootpig_rt.engine.plan",
    "PromptError": "bootpig_rt.errors",
    "ReferenceEvent": "bootpig_rt.engine.events",
    "ReferenceSchedule": "bootpig_rt.reference.schedule",
    "Request": "bootpig_rt.request",
    "StepEvent": "bootpig_rt.engine.events",
    "StorageError": "bootpig_rt.errors",
    "StoreStats": "bootpig_rt.storage.stats",
    "Subject": "bootpig_rt.reference.subject",
    "SubjectMismatch": "bootpig_rt.errors",
    "SubjectStore": "bootpig_rt.storage.store",
    "TableOptions": "bootpig_rt.reference.table_options",
    "TensorRTOptions": "bootpig_rt.backends.options",
    "Timings": "bootpig_rt.request",
    "TorchOptions": "bootpig_rt.backends.options",
    "TunedSettings": "bootpig_rt.tuning",
    "canny_map": "bootpig_rt.images.canny",
}

__all__ = [  # noqa: RUF022  the main path first, then the errors
    "Pipeline",
    "Request",
    "GenerationResult",
    "PictureParameters",
    "Timings",
    "Subject",
    "Canvas",
    "Control",
    "ControlParameters",
    "canny_map",
    "ReferenceSchedule",
    "Approximation",
    "PictureSettings",
    "TunedSettings",
    "Lora",
    "TableOptions",
    "SubjectStore",
    "StoreStats",
    "Engine",
    "EngineOptions",
    "Limits",
    "Job",
    "Plan",
    "Event",
    "ReferenceEvent",
    "StepEvent",
    "DoneEvent",
    "Launch",
    "TorchOptions",
    "OnnxRuntimeOptions",
    "OpenVINOOptions",
    "TensorRTOptions",
    "PairOptions",
    "PairSpec",
    "BackgroundRemover",
    "BootPIGError",
    "InputError",
    "PromptError",
    "ImageError",
    "ParameterError",
    "ConfigError",
    "CheckpointError",
    "BundleError",
    "BackendUnavailable",
    "SubjectMismatch",
    "EndpointError",
    "EngineError",
    "EngineFull",
    "EngineLost",
    "DeadlineExceeded",
    "OutOfDeviceMemory",
    "StorageError",
    "CredentialsError",
    "NumericalError",
    "ParityError",
    "ProcessLost",
    "Cancelled",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    module = _MODULE_OF_NAME.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
