"""Pipelines that differ in what they keep and not in what they compute with: one loaded backend."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

from bootpig_rt import pipeline as pipeline_module
from bootpig_rt.pipeline import Pipeline


def pipeline_over(loaded: Pipeline, folder: Path, **options: Any) -> Pipeline:
    """A new pipeline of the pair in a folder, over the backend that another one has loaded of it.

    Args:
        loaded: The other pipeline.
        folder: Of its pair.
        options: Of the pipeline; such as concern the backend are not heeded.
    """
    with mock.patch.object(pipeline_module, "create_backend", return_value=loaded._backend):
        return Pipeline(folder, **options)
