"""What a run was measured on: hardware, versions, commit, command, and how busy it was."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import msgspec
import numpy as np

from bootpig_rt import __version__
from bootpig_rt.benchmarks.stats import spread

PACKAGES = (
    "torch", "onnxruntime", "onnxruntime-gpu", "onnx", "diffusers", "transformers", "numpy",
    "openvino", "openvino-genai", "nncf", "tensorrt-rtx", "tensorrt", "triton",
)  # fmt: skip

BF16_FLAGS = ("avx512_bf16", "amx_bf16")
"""What /proc/cpuinfo says of a processor that multiplies bfloat16 numbers itself."""

FEATURES = (
    "avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16",
    "amx_int8", "amx_fp16", "asimd", "bf16", "i8mm",
)  # fmt: skip
"""What /proc/cpuinfo says of a processor that decides how quick products of matrices are."""

BUSY_SHARE = 0.10
NOISY = 0.10

_WRITTEN = ("benchmarks/results", "docs", "README.md")
"""What `make figures` writes: it must not mark its own later results as of a changed checkout."""


class Machine(msgspec.Struct, frozen=True):
    """Hardware, versions, commit, command and load of a run.

    Attributes:
        processor: Its name.
        cores: Cores that this process may use.
        memory_bytes: Of the machine.
        system: Kernel and architecture.
        python: Version.
        versions: Of the packages that are installed, by name.
        commit: Of the checkout; with `-dirty` where files differ from it, results and what is made
            of them apart; empty in a wheel.
        command: What was run.
        started: UTC, ISO 8601.
        threads: Pinned, of torch and ONNX Runtime.
        busy_share: Share of the cores that other processes took while the suite ran, 0 to 1;
            None where the system does not tell.
        noise: The largest of three: half the interquartile range over the median of a fixed piece
            of arithmetic before the first row, the same after the last one, and the median of that
            of all rows.
        is_busy: Others took more than a tenth of the machine, or the noise is above a tenth:
            absolute times are then not worth quoting. The noise may be of the machine's host, of
            which this system knows nothing.
        gpu: Name, architecture, memory and libraries of the GPU, as far as they are known.
        features: Those of `FEATURES` that the processor has; None: not asked for then.
    """

    processor: str
    cores: int
    memory_bytes: int
    system: str
    python: str
    versions: dict[str, str]
    commit: str
    command: str
    started: str
    threads: int
    busy_share: float | None
    noise: float
    is_busy: bool
    gpu: dict[str, str | int] = {}
    features: tuple[str, ...] | None = None

    @property
    def name(self) -> str:
        """What computed: the GPU where there is one, else the processor."""
        return str(self.gpu.get("name", self.processor))

    @property
    def arithmetic(self) -> str:
        """What the processor multiplies with, and whether that is AMX; empty where unknown."""
        if self.features is None or self.gpu:
            return ""
        has_amx = any(name.startswith("amx") for name in self.features)
        shown = ", ".join(self.features) or "no vector unit that is known"
        return shown if has_amx else f"{shown}; no AMX here"


class Watch:
    """Watches the machine from its making to `machine()`."""

    def __init__(self, threads: int, device: str = "cpu") -> None:
        """Measure the noise and start to count."""
        self._threads, self._device = threads, device
        self._started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._noise = _noise()
        self._before = _busy_seconds()
        self._clock = time.perf_counter()

    def machine(self, spreads: Sequence[float] = ()) -> Machine:
        """What was seen since.

        Args:
            spreads: Half the interquartile range of each row, over its median.
        """
        rows = float(np.median(spreads)) if len(spreads) else 0.0
        after, wall_s = _busy_seconds(), time.perf_counter() - self._clock
        noise = max(self._noise, _noise(), rows)
        cores = _cores()
        others: float | None = None
        if self._before is not None and after is not None and wall_s > 0:
            total = after[0] - self._before[0]
            ours = after[1] - self._before[1]
            # Of all cores: others may be on those that this process keeps off.
            everywhere = wall_s * (os.cpu_count() or cores)
            others = round(min(1.0, max(0.0, (total - ours) / everywhere)), 4)
        return Machine(
            processor=processor(),
            cores=cores,
            memory_bytes=_memory_bytes(),
            system=f"{platform.system()} {platform.release()} {platform.machine()}",
            python=platform.python_version(),
            versions=versions(),
            commit=commit(),
            command=command(),
            started=self._started,
            threads=self._threads,
            busy_share=others,
            noise=round(noise, 4),
            is_busy=(others or 0.0) > BUSY_SHARE or noise > NOISY,
            gpu=gpu() if self._device.startswith("cuda") else {},
            features=features(),
        )


def processor() -> str:
    """The processor's name."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def bf16_flag() -> str | None:
    """Which of `BF16_FLAGS` this processor has; None: it would compute them by float32."""
    flags = _cpuinfo("flags").split()
    return next((flag for flag in reversed(BF16_FLAGS) if flag in flags), None)


def features() -> tuple[str, ...]:
    """Those of `FEATURES` that this processor has."""
    flags = set((_cpuinfo("flags") or _cpuinfo("Features")).split())
    return tuple(name for name in FEATURES if name in flags)


def _cpuinfo(field: str) -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    return next((x.partition(":")[2].strip() for x in lines if x.startswith(field)), "")


def gpu() -> dict[str, str | int]:
    """Name, architecture, memory, versions of the libraries, and what the driver says."""
    import torch

    found = torch.cuda.get_device_properties(0)
    names = ("driver_version", "power.limit", "clocks.max.sm")
    try:
        query = ["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader"]
        asked = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        asked = ""
    told = dict(
        zip(names, (part.strip() for part in asked.split("\n")[0].split(",")), strict=False)
    )
    return {
        "name": found.name,
        "architecture": f"sm_{found.major}{found.minor}",
        "memory_bytes": found.total_memory,
        "cuda": str(torch.version.cuda),
        "cudnn": int(torch.backends.cudnn.version() or 0),
        **{name: value for name, value in told.items() if value},
    }


def versions() -> dict[str, str]:
    """Versions of this package and those that it may compute with."""
    found = {"bootpig-rt": __version__}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The commit of the checkout that this file lies in; empty outside of one."""
    return commit_of(Path(__file__).resolve().parents[1])


def commit_of(root: Path) -> str:
    """The commit of a checkout, see `Machine.commit`; empty where `root` is none."""
    others = [f":(exclude){path}" for path in _WRITTEN]
    try:
        name = _git(root, "rev-parse", "--short=12", "HEAD")
        # As `git describe --dirty`: files that git does not know do not count.
        changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", *others)
    except (OSError, subprocess.SubprocessError):
        return ""
    return f"{name}-dirty" if changed else name


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", *words], cwd=folder, capture_output=True, text=True, timeout=20, check=True
    )
    return done.stdout.strip()


def command() -> str:
    """The command line of this process, as one would type it."""
    program = Path(sys.argv[0])
    name = "bootpig-rt" if program.name == "__main__.py" else program.name
    return shlex.join([name, *sys.argv[1:]])


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 0


def _busy_seconds() -> tuple[float, float] | None:
    """Processor seconds of everyone, and of this process with its children; Linux only."""
    try:
        words = Path("/proc/stat").read_text(encoding="utf-8").split("\n", 1)[0].split()[1:]
        ticks = [int(word) for word in words]
    except (OSError, ValueError):
        return None
    # user, nice, system, idle, iowait, irq, softirq, steal
    everyone = sum(ticks[:3]) + sum(ticks[5:8])
    ours = os.times()
    return (
        everyone / os.sysconf("SC_CLK_TCK"),
        ours.user + ours.system + ours.children_user + ours.children_system,
    )


def _noise(repeats: int = 40) -> float:
    """Spread of a fixed product of matrices, the same on every call."""
    a = np.random.default_rng(0).standard_normal((256, 256), dtype=np.float32)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(8):
            a @ a
        times.append(time.perf_counter() - start)
    return spread(times[5:])
