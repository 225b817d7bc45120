"""Opens ONNX files that a user has, such as a network that judges or cuts out pictures, on the CPU.

Not for the graphs of a bundle: those are `backends/onnxruntime`'s.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

from bootpig_rt.errors import BackendUnavailable, CheckpointError


def open_onnx(path: str | os.PathLike[str], *, needed_by: str, threads: int | None = None) -> Any:
    """An inference session of ONNX Runtime.

    Args:
        path: The file.
        needed_by: What wants it, for the message about a missing package.
        threads: Of one call; None for one on each core.

    Raises:
        BackendUnavailable: ONNX Runtime is not installed.
        CheckpointError: No such file, or one that cannot be loaded.
    """
    try:
        ort: Any = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise BackendUnavailable(
            f"{needed_by} needs ONNX Runtime, which is not installed; pip install 'bootpig-rt[cpu]'"
        ) from error
    shown = repr(os.fspath(path))
    if not os.path.isfile(path):
        raise CheckpointError(f"there is no file {shown}; check the path", path)
    options = ort.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    state: Any = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    try:
        return ort.InferenceSession(
            os.fspath(path), sess_options=options, providers=["CPUExecutionProvider"]
        )
    except (state.Fail, state.InvalidArgument, state.InvalidGraph, state.InvalidProtobuf,
            state.NoSuchFile, state.NotImplemented) as error:  # fmt: skip
        raise CheckpointError(
            f"{shown} is no ONNX file that can be loaded; copy it again", path
        ) from error
