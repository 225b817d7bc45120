"""OpenVINO as most tests run it: one thread, and compiled models that all tests of a run share."""

from __future__ import annotations

import os
from dataclasses import replace

from bootpig_rt import OpenVINOOptions

FOLDER = "BOOTPIG_RT_TESTS_COMPILED"
"""Names the folder to every process of a run; see `conftest.pytest_configure`."""

OPENVINO = OpenVINOOptions(precision="float32", threads=1, cache_folder=os.environ[FOLDER])

ANY_SHAPE = replace(OPENVINO, buckets=())
"""A model of free shapes for all pictures: each of fixed ones takes a second to compile."""
