"""What a pair can be shown: as many references as it takes, at a size that its graphs take."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from bootpig_rt.backends.base import check_finite
from bootpig_rt.errors import NumericalError, ParameterError
from bootpig_rt.pipeline import Pipeline
from bootpig_rt.reference.encode import prepare


def test_no_more_references_are_prepared_than_pair_and_graphs_take(
    pipeline: Pipeline, red: Image.Image
) -> None:
    spec = pipeline.spec
    most = spec.config.max_references
    with pytest.raises(ParameterError, match=rf"{most + 1} reference images, expected 1\.\.{most}"):
        prepare([red] * (most + 1), spec, None)
    small = replace(spec, max_references=1)
    with pytest.raises(ParameterError, match=r"2 reference images, expected 1\.\.1"):
        prepare([red, red], small, None)
    assert prepare(red, small, None).shape == (1, 3, 32, 32)


def test_references_are_not_read_at_a_size_that_graphs_were_not_built_for(
    pipeline: Pipeline, red: Image.Image
) -> None:
    large = replace(pipeline.spec, sides_px=(64, 128))
    with pytest.raises(ParameterError, match=r"read at 32 px, .* 64\.\.128; .*--resolution 32:128"):
        prepare(red, large, None)


def test_what_is_not_finite_is_told_by_picture() -> None:
    array = np.zeros((3, 4), np.float32)
    assert check_finite(array, "the image encoder") is array
    array[1, 2] = np.inf
    with pytest.raises(NumericalError, match="in picture 1 of the batch after the image encoder"):
        check_finite(array, "the image encoder")
