"""An OpenGL context without a screen, on Mesa's software renderer where there is no other."""

from __future__ import annotations

import contextlib
import importlib
import os
from functools import cache
from typing import Any

from bootpig_rt.errors import BackendUnavailable

FIX = (
    "install Mesa's EGL (Debian and Ubuntu: `sudo apt-get install libegl-mesa0 libgl1-mesa-dri`) "
    "and the extra (`pip install 'bootpig-rt[render]'`)"
)


@cache
def make_context() -> Any:
    """The context of this process, a `moderngl.Context`; made once.

    Mesa's threads are limited to one: pictures are many, so processes share the cores.

    Raises:
        BackendUnavailable: moderngl or EGL is missing, or OpenGL is older than 3.3.
    """
    # Triton, which torch imports when it compiles or makes an optimiser, and Mesa's renderer have
    # an LLVM each. A process that loads Mesa's first crashes as soon as it loads Triton's.
    with contextlib.suppress(ImportError):
        importlib.import_module("triton")
    # Mesa reads it when the context is made.
    os.environ.setdefault("LP_NUM_THREADS", "1")
    try:
        import moderngl
    except ImportError as error:
        raise BackendUnavailable(f"rendering needs moderngl; {FIX}") from error
    try:
        settings: dict[str, Any] = {"backend": "egl"}
        return moderngl.create_context(standalone=True, require=330, **settings)
    except Exception as error:  # moderngl raises its loader's own errors, of no common class
        raise BackendUnavailable(
            f"rendering needs OpenGL 3.3 through EGL ({error}); {FIX}"
        ) from error
