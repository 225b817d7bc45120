"""The stages on many GPUs or machines, by Ray Data.

Ray Data holds a pool of workers that have built the stage, gives them blocks of items, starts a
worker that died again, and gives its block to a worker once more. Each item's outcomes come back
once. As many items are with the cluster at a time as its memory bears (`ray_desk.py`), and workers
live as long as the stage, so that models are loaded once. What is done with the outcomes is
`run.py`'s business, as with the runner of one process.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bootpig_rt.errors import BackendUnavailable, BootPIGError, ConfigError, EngineLost
from bootpig_rt.training.bootstrap.ray_desk import Desk, Outcomes, fetch, table_of
from bootpig_rt.training.bootstrap.stage import Items, MakeStage, run_here

MAX_BLOCK_ITEMS = 64
BLOCKS_A_WORKER = 4
"""At least, where there are so many items: a worker that is done early takes what others have."""
WINDOW_SHARE = 0.3
"""Of the cluster's object store, for items on their way; as much again for their outcomes."""


@dataclass(frozen=True)
class RayOptions:
    """Where Ray is, and what a worker takes.

    Attributes:
        address: Of a running cluster (`auto`, `ray://host:10001`); "" starts one on this machine.
        workers: How many build the stage; 0 is one for each GPU, or each `cpus` without GPUs.
        cpus: Of a worker.
        gpus: Of a worker, as shares where several fit on one; None is 1 where the cluster has any.
        retries: How often a block is given out again after its worker died.
        window_bytes: Of items that are with the cluster at once; 0 is a share of its memory.
    """

    address: str = ""
    workers: int = 0
    cpus: float = 1.0
    gpus: float | None = None
    retries: int = 3
    window_bytes: int = 0

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        if min(self.workers, self.retries, self.window_bytes, self.gpus or 0) < 0 or self.cpus <= 0:
            raise ConfigError(
                "workers, retries, window_bytes and gpus must be 0 or more and cpus above 0, got "
                f"{self.workers}, {self.retries}, {self.window_bytes}, {self.gpus}, {self.cpus}"
            )


class RayRunner:
    """Puts items through a stage on a Ray cluster; see `Runner`.

    All machines have this package, and model folders under the paths of the settings.

    Raises:
        BackendUnavailable: Ray Data is not installed, or the cluster cannot be reached.
        ConfigError: The cluster has less than one worker takes.
    """

    def __init__(self, options: RayOptions | None = None) -> None:
        self._options = options or RayOptions()
        self._ray = _connected(self._options.address)
        self._gpus, self._workers = self._pool()
        self._window_bytes = self._options.window_bytes or int(
            WINDOW_SHARE * self._ray.cluster_resources().get("object_store_memory", 1 << 30)
        )

    def __call__(self, make_stage: MakeStage, items: Items) -> Iterator[Outcomes]:
        """Yield (index of the item, its outcomes) for every item once, in any order.

        Raises:
            EngineLost: A block's workers died again and again.
            BootPIGError: What the stage itself raised.
        """
        size = -(-len(items) // (BLOCKS_A_WORKER * self._workers))
        made = Desk(
            self._ray,
            items,
            size=max(1, min(MAX_BLOCK_ITEMS, size)),
            most_bytes=self._window_bytes,
            num_fetching=2 * self._workers,
        )
        with made as desk:
            yield from desk.once(self._collected(self._through(make_stage, desk), make_stage))

    def _pool(self) -> tuple[float, int]:
        """GPUs of a worker, and how many workers there are."""
        options, there = self._options, self._ray.cluster_resources()
        there_cpus, there_gpus = there.get("CPU", 0.0), there.get("GPU", 0.0)
        gpus = min(1.0, there_gpus) if options.gpus is None else options.gpus
        most = int(there_cpus // options.cpus)
        if gpus:
            most = min(most, int(there_gpus // gpus))
        if most < max(1, options.workers):
            raise ConfigError(
                f"the cluster has {there_cpus:g} CPUs and {there_gpus:g} GPUs, too few for "
                f"{max(1, options.workers)} workers of {options.cpus:g} CPUs and {gpus:g} GPUs; "
                "ask for fewer, or let a worker take less"
            )
        return gpus, options.workers or most

    def _through(self, make_stage: MakeStage, desk: Desk) -> Any:
        data, workers = self._ray.data, min(self._workers, desk.num_blocks)
        # Other CPUs than those of the workers, so that Ray Data does not make one step of both.
        fetched = data.from_arrow(desk.tickets()).map_batches(
            fetch,
            fn_kwargs=desk.fetching(),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=0,
            compute=data.TaskPoolStrategy(size=desk.num_fetching),
        )
        return fetched.map_batches(
            _Worker,
            fn_constructor_args=(make_stage,),
            batch_size=None,
            batch_format="pyarrow",
            compute=data.ActorPoolStrategy(size=workers),
            num_cpus=self._options.cpus,
            num_gpus=self._gpus,
            max_restarts=-1,
            max_task_retries=self._options.retries,
        )

    def _collected(self, done: Any, make_stage: MakeStage) -> Iterator[Outcomes]:
        exceptions = self._ray.exceptions
        try:
            # Nothing ahead: Ray would keep one block's outcomes until the next came back, which
            # may wait for the room of that one.
            batches = done.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
            for table in batches:
                for each in table["data"].to_pylist():
                    outcomes = pickle.loads(each)
                    if isinstance(outcomes, BootPIGError):
                        raise outcomes
                    yield outcomes
        except exceptions.RayTaskError:
            raise  # a fault of the stage, with its own traceback
        except exceptions.RayError as error:
            stage = getattr(make_stage, "func", make_stage)
            raise EngineLost(
                f"workers of {getattr(stage, '__name__', stage)} died "
                f"{self._options.retries + 1} times over the same items "
                f"({' '.join(str(error).split())[:200]}); look for memory that runs out, then run "
                "the same command again: what is done is kept"
            ) from error


class _Worker:
    """Lives on a machine of the cluster: builds the stage once, and puts blocks through it."""

    def __init__(self, make_stage: MakeStage) -> None:
        self._make_stage = make_stage
        self._stage: Any = None

    def __call__(self, block: Any) -> Any:
        items = [pickle.loads(each) for each in block["data"].to_pylist()]
        try:
            if self._stage is None:
                self._stage = self._make_stage()
            done: list[Any] = list(run_here(lambda: self._stage, items))
        except BootPIGError as error:
            done = [error]  # as it is: Ray would wrap it
        return table_of([pickle.dumps(each) for each in done])


def _connected(address: str) -> Any:
    """Ray, with a cluster: the one that this process has already, that of the address, or our own.

    Raises:
        BackendUnavailable: No Ray Data, or nobody answers.
    """
    try:
        import ray
        import ray.data
        import ray.exceptions
    except ImportError as error:
        raise BackendUnavailable(
            "the runner 'ray' needs Ray Data, which is not installed; "
            "pip install 'bootpig-rt[bootstrap-ray]'"
        ) from error
    if not ray.is_initialized():
        try:
            if address:
                ray.init(address=address, log_to_driver=False)
            else:
                ray.init(include_dashboard=False, log_to_driver=False)
        except (ConnectionError, OSError, ValueError, RuntimeError) as error:
            raise BackendUnavailable(
                f"cannot reach Ray at {address or 'this machine'!r} "
                f"({' '.join(str(error).split())[:200]}); start it with `ray start --head`, or "
                "leave the address out"
            ) from error
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    return ray
