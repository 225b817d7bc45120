"""Personalised pictures from reference images, without fine-tuning: a runtime for BootPIG pairs.

Public names are loaded on first use, so `import bootpig_rt` stays quick and needs neither torch
nor any other optional package.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bootpig_rt.engine.sampler import StepEvent
    from bootpig_rt.engine.scheduler import Scheduler
    from bootpig_rt.errors import (
        BackendUnavailable,
        BootPIGError,
        BundleError,
        Cancelled,
        CheckpointError,
        ConfigError,
        EngineError,
        ImageError,
        InputError,
        NumericalError,
        OutOfDeviceMemory,
        ParameterError,
        ParityError,
        PromptError,
        StorageError,
        SubjectMismatch,
    )
    from bootpig_rt.pipeline import Pipeline
    from bootpig_rt.reference.schedule import ReferenceSchedule
    from bootpig_rt.reference.subject import Subject
    from bootpig_rt.request import GenerationResult, Request
    from bootpig_rt.storage.store import SubjectStore

__version__ = "0.1.0"

_MODULE_OF_NAME = {
    "BackendUnavailable": "bootpig_rt.errors",
    "BootPIGError": "bootpig_rt.errors",
    "BundleError": "bootpig_rt.errors",
    "Cancelled": "bootpig_rt.errors",
    "CheckpointError": "bootpig_rt.errors",
    "ConfigError": "bootpig_rt.errors",
    "EngineError": "bootpig_rt.errors",
    "GenerationResult": "bootpig_rt.request",
    "ImageError": "bootpig_rt.errors",
    "InputError": "bootpig_rt.errors",
    "NumericalError": "bootpig_rt.errors",
    "ParameterError": "bootpig_rt.errors",
    "ParityError": "bootpig_rt.errors",
    "Pipeline": "bootpig_rt.pipeline",
    "PromptError": "bootpig_rt.errors",
    "ReferenceSchedule": "bootpig_rt.reference.schedule",
    "Request": "bootpig_rt.request",
    "Scheduler": "bootpig_rt.engine.scheduler",
    "StepEvent": "bootpig_rt.engine.sampler",
    "OutOfDeviceMemory": "bootpig_rt.errors",
    "StorageError": "bootpig_rt.errors",
    "Subject": "bootpig_rt.reference.subject",
    "SubjectMismatch": "bootpig_rt.errors",
    "SubjectStore": "bootpig_rt.storage.store",
}

__all__ = [  # noqa: RUF022  the main path first, then the errors
    "Pipeline",
    "Subject",
    "Request",
    "GenerationResult",
    "StepEvent",
    "ReferenceSchedule",
    "SubjectStore",
    "Scheduler",
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
    "OutOfDeviceMemory",
    "StorageError",
    "NumericalError",
    "EngineError",
    "ParityError",
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
