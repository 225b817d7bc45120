"""Graphs of a bundle compiled by OpenVINO: with free shapes, or fixed ones. Each is made once.

Knows graphs by name, file and shapes; knows nothing about what they compute.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import openvino as ov
from openvino.preprocess import PrePostProcessor

from bootpig_rt.backends.host_memory import free_memory_bytes
from bootpig_rt.backends.openvino.cache import BlobCache
from bootpig_rt.backends.openvino.precision import HINT, HINTS
from bootpig_rt.errors import BootPIGError, BundleError, EngineError, OutOfDeviceMemory, one_line

logger = logging.getLogger(__name__)

Shapes: TypeAlias = tuple[tuple[str, tuple[int, ...]], ...]
"""Input and its sizes, -1 for one that stays free; empty: all are as in the graph."""

OV_ERRORS: tuple[type[Exception], ...] = (RuntimeError, MemoryError)
"""What OpenVINO raises; `failed` makes our errors of them."""

_NARROW = ("k_", "v_", "text_k_", "text_v_", "features")
"""Inputs and outputs that are kept in the type of the arithmetic: tables, texts and features."""

_MADE_AS = 2
"""Counts the ways in which models were made of graphs: one of another way is compiled anew."""

_NO_ROOM = ("bad_alloc", "out of memory", "cannot allocate")


@dataclass(frozen=True)
class GraphFile:
    """A graph that was checked.

    Attributes:
        path: The file; weights lie beside it.
        sha256: Of the file.
    """

    path: Path
    sha256: str


class Models:
    """The compiled models of one bundle.

    Args:
        core: OpenVINO.
        find: Name of a graph -> its file, checked as it is asked for.
        config: Name of a graph -> properties of the CPU plugin that it is compiled with.
        narrow: Type of tables, texts and features, whatever their graph is computed in; None leaves
            them as in the graphs.
        cache: Of compiled models; None: none are kept in files.
        most: Models that stay loaded, least recently used out first; 0 keeps all that there is room
            for.
    """

    def __init__(
        self,
        core: ov.Core,
        find: Callable[[str], GraphFile],
        *,
        config: Callable[[str], Mapping[str, Any]],
        narrow: ov.Type | None,
        cache: BlobCache | None,
        most: int = 0,
    ) -> None:
        """Nothing is loaded yet."""
        self._core, self._find = core, find
        self._config, self._narrow, self._cache = config, narrow, cache
        self._most, self._lock = most, threading.Lock()
        # In the order of their last use.
        self._futures: OrderedDict[tuple[str, Shapes], Future[ov.CompiledModel]] = OrderedDict()

    def get(self, name: str, shapes: Shapes = (), *, is_urgent: bool = True) -> ov.CompiledModel:
        """The model of a graph for some shapes; threads that ask for it at once share one.

        Args:
            name: Of the graph.
            shapes: That are fixed.
            is_urgent: Where there is no room, others make it, the longest unused first.

        Raises:
            BundleError: OpenVINO cannot read the graph.
            OutOfDeviceMemory: There is no room for it.
        """
        key = (name, shapes)
        with self._lock:
            future = self._futures.get(key)
            is_ours = future is None
            if future is None:
                while self._most and len(self._futures) >= self._most:
                    self._futures.popitem(last=False)  # who runs it holds it until the end
                future = self._futures[key] = Future()
            self._futures.move_to_end(key)
        if is_ours:
            try:
                future.set_result(self._make(name, shapes, is_urgent=is_urgent))
            except BaseException as error:
                with self._lock:
                    self._futures.pop(key, None)
                future.set_exception(error)
        try:
            return future.result()
        except OutOfDeviceMemory:
            if is_ours or not is_urgent:
                raise
        return self.get(name, shapes)  # who loaded it ahead of need made no room for it

    def begin(self, wanted: Iterable[tuple[str, Shapes]]) -> None:
        """Make models that will be needed soon, one after another, beside what runs now.

        What goes wrong is raised by `get`, should the graph be needed after all. Does nothing where
        few are kept: each is made when it is asked for.
        """
        if self._most:
            return

        def make_all(wanted: list[tuple[str, Shapes]]) -> None:
            for name, shapes in wanted:
                with contextlib.suppress(BootPIGError):
                    self.get(name, shapes, is_urgent=False)

        threading.Thread(target=make_all, args=(list(wanted),)).start()

    def _make(self, name: str, shapes: Shapes, *, is_urgent: bool) -> ov.CompiledModel:
        file, config = self._find(name), dict(self._config(name))
        facts = {
            "config": config,
            "narrow": "" if self._narrow is None else self._narrow.get_type_name(),
            "graph_sha256": file.sha256,
            "shapes": [[key, list(s)] for key, s in shapes],
            "made_as": _MADE_AS,
        }
        try:
            blob = None if self._cache is None else self._cache.read(name, facts)
            if blob is not None:
                return self._core.import_model(blob, "CPU", config)
            model = self._read(file, shapes)
            wanted_bytes = compiled_bytes(model, is_narrow=config.get(HINT) == HINTS["bfloat16"])
            self._make_room(name, wanted_bytes, is_urgent=is_urgent)
            compiled = self._core.compile_model(model, "CPU", config)
            if self._cache is not None:
                stream = io.BytesIO()
                compiled.export_model(stream)
                self._cache.write(name, facts, stream.getvalue())
            return compiled
        except OV_ERRORS as error:
            if is_out_of_memory(error):
                raise OutOfDeviceMemory(f"loading the graph {name}") from error
            raise BundleError(
                f"graph {name} in {file.path.parent} is none that openvino {ov.__version__} reads: "
                f"{one_line(str(error), 200)}; build the bundle again with bootpig-rt "
                "build-engine --target openvino",
                file.path,
            ) from error

    def _make_room(self, name: str, wanted_bytes: int, *, is_urgent: bool) -> None:
        """Let go of finished models, the longest unused first, until another one fits.

        Raises:
            OutOfDeviceMemory: It does not fit beside the others, and is not urgent.
        """
        while (free := free_memory_bytes()) is not None and free < wanted_bytes:
            with self._lock:
                idle = [key for key, future in self._futures.items() if future.done()]
                if not is_urgent:
                    raise OutOfDeviceMemory(f"loading the graph {name} ahead")
                if not idle:
                    return  # the system has the last word
                del self._futures[idle[0]]
            logger.info("graph %s makes room for %s", idle[0][0], name)

    def _read(self, file: GraphFile, shapes: Shapes) -> ov.Model:
        """The graph with its shapes fixed, and what is kept in the narrow type in that."""
        model = self._core.read_model(file.path)
        if shapes:
            given = dict(shapes)
            model.reshape(
                {
                    value.any_name: ov.PartialShape(list(given[value.any_name]))
                    for value in model.inputs
                    if value.any_name in given
                }
            )
        if self._narrow is None:
            return model
        convert = PrePostProcessor(model)
        for value in model.inputs:
            if value.any_name.startswith(_NARROW):
                convert.input(value.any_name).tensor().set_element_type(self._narrow)
        for value in model.outputs:
            if value.any_name.startswith(_NARROW):
                convert.output(value.any_name).tensor().set_element_type(self._narrow)
        return convert.build()


def compiled_bytes(model: ov.Model, *, is_narrow: bool) -> int:
    """Memory of its own that a model takes at most while it is compiled.

    Weights are laid out for the arithmetic, in bfloat16 if that `is_narrow`. In float32 they are
    read where their file is mapped; those in float16 are widened first, and the copy stays.
    """
    total = 0
    for op in model.get_ops():
        if op.get_type_name() == "Constant":
            numbers, dtype = math.prod(op.get_output_shape(0)), op.get_output_element_type(0)
            copied = 4 if dtype == ov.Type.f16 else 0
            total += numbers * (copied + (2 if is_narrow else 4))
    return total


def failed(what: str, error: Exception) -> BootPIGError:
    """Our error for one of `OV_ERRORS`.

    Args:
        what: Was done, for the message.
        error: What OpenVINO raised.
    """
    if is_out_of_memory(error):
        return OutOfDeviceMemory(what)
    return EngineError(
        f"openvino {ov.__version__} failed while {what}: {one_line(str(error))}; verify the bundle "
        "with bootpig-rt verify DIR"
    )


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error of OpenVINO means that there was no room."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(word in text for word in _NO_ROOM)
