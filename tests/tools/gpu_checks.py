"""All that is checked and measured on a GPU, in the order of its worth, in a quarter of an hour.

python tests/tools/gpu_checks.py [-o DIR] [--seconds N] [--smoke]

First what must be right (`pytest -m gpu`), then the ladder of ways with the published way recorded
and compiled, the attention kernels, and the two engines: TensorRT and ONNX Runtime on CUDA. Each
part has its own limit, its log is written while it runs, and the summary after each: what is cut
off costs itself. Run again with the same DIR, parts that passed are left out and a suite goes on
from its last round. With --smoke the same commands run small, on a CPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

BENCH = [sys.executable, "-m", "bootpig_rt", "bench"]
BUILD = [sys.executable, "-m", "bootpig_rt", "build-engine", "--overwrite", "--quiet"]
VERIFY = [sys.executable, "-m", "bootpig_rt", "verify", "--record", "--quiet", "--json"]

_VERSIONS = """
import importlib.metadata as m, json, platform
names = ["torch", "triton", "diffusers", "transformers", "onnx", "onnxruntime", "onnxruntime-gpu",
         "tensorrt", "tensorrt-cu12", "tensorrt-cu13", "tensorrt-rtx", "cuda-python",
         "flash-attn-3", "xformers"]
def version(name):
    try:
        return m.version(name)
    except m.PackageNotFoundError:
        return None
found = {name: version(name) for name in names}
import torch
has = torch.cuda.is_available()
found["gpu"] = torch.cuda.get_device_name(0) if has else None
print(json.dumps({"python": platform.python_version(), **found}, indent=1))
"""


@dataclass(frozen=True)
class Part:
    """Commands that belong together.

    Attributes:
        name: Of its log.
        commands: Run one after the other, until one fails.
        limit_s: For all of them.
        needs: Import names without which it is left out, one of which is enough.
    """

    name: str
    commands: tuple[tuple[str, ...], ...]
    limit_s: float
    needs: tuple[str, ...] = ()

    @property
    def missing(self) -> str:
        """Why it is left out; empty where it can run."""
        if not self.needs or any(map(importlib.util.find_spec, self.needs)):
            return ""
        return f"none of {', '.join(self.needs)} is installed"


def parts(out: Path, *, is_smoke: bool) -> Iterator[Part]:
    """What is run, in order."""
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    device, work = ("cpu", out / "work") if is_smoke else ("cuda", Path("bench"))
    yield Part("about", ((sys.executable, "-c", _VERSIONS),), 45)
    chosen = ["--collect-only"] if is_smoke else ["-x", f"--junitxml={out}/gpu-tests.xml"]
    yield Part(
        "gpu-tests", ((*pytest, "-m", "gpu", *chosen, "tests/kernels", "tests/backends"),), 120
    )
    smoke = ["--smoke"] if is_smoke else ["--rounds", "10"]
    suite = [*BENCH, "--device", device, "--work", str(work), *smoke, "--suite"]
    # The headline first, against the published way recorded as a graph: it needs no compiler.
    recorded = [] if is_smoke else ["--baseline", "published_graph", "--references", "1"]
    ours = ["--only", "ours_text", "--only", "ours_new", "--only", "ours_known"]
    yield Part(
        "headline",
        ((*suite, "baselines", *recorded, *ours, "-o", str(out / "headline.json")),),
        120,
    )
    one = [] if is_smoke else ["--references", "1"]
    only = ours if is_smoke else []
    yield Part("ladder", ((*suite, "baselines", *one, *only, "-o", str(out / "ladder.json")),), 225)
    case = ["--only", "64 px, 1" if is_smoke else "512 px, 1"]
    yield Part("kernels", ((*suite, "kernels", *case, "-o", str(out / "kernels.json")),), 70)
    yield from _engines(pytest, out, device, work, is_smoke=is_smoke)


def _engines(
    pytest: list[str], out: Path, device: str, work: Path, *, is_smoke: bool
) -> Iterator[Part]:
    """TensorRT and ONNX Runtime: built there, the gate there, times there."""
    size = "toy" if is_smoke else "small"
    pair = str(work / "pairs" / size)
    write = (sys.executable, "-m", "bootpig_rt.benchmarks.pairs", size, pair)
    for name, target, needs in (
        ("tensorrt", "local", ("tensorrt",)),
        ("onnxruntime", "cpu" if is_smoke else "cuda", ("onnxruntime",)),
    ):
        bundle = str(work / f"bundle-{name}")
        draw = [*BENCH, "--device", device, "--suite", "latency", "--model", bundle]
        draw += ["--work", str(work), *(["--smoke"] if is_smoke else ["--rounds", "10"])]
        runs = f"{name} step" if not is_smoke else "onnxruntime step"
        tested = ((*pytest, "-m", "trt", "tests/backends"),) if name == "tensorrt" else ()
        yield Part(
            name,
            (
                write,
                (*BUILD, "--pair", pair, "--target", target, "--max-batch", "1",
                 "--max-references", "1", "-o", bundle),
                (*VERIFY, bundle, "--pair", pair),
                (*draw, "--only", runs, "-o", str(out / f"{name}.json")),
                *tested,
            ),
            100,
            needs,
        )  # fmt: skip


def run(part: Part, log: Path, seconds: float) -> dict[str, object]:
    """Run the commands of a part; what became of them."""
    start = time.monotonic()
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONSAFEPATH": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, (str(Path.cwd()), os.environ.get("PYTHONPATH")))
    )
    state = part.missing and f"left out: {part.missing}"
    with log.open("w") as file:
        for command in part.commands if not state else ():
            file.write(f"$ {' '.join(command).splitlines()[0][:300]}\n")
            file.flush()
            left = min(part.limit_s, seconds) - (time.monotonic() - start)
            try:
                done = subprocess.run(
                    command, stdout=file, stderr=subprocess.STDOUT, timeout=max(1.0, left),
                    env=environment, check=False,
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                state = f"cut off after {part.limit_s:.0f} s"
                break
            if done.returncode:
                state = f"failed: exit code {done.returncode}"
                break
    return {"state": state or "passed", "seconds": round(time.monotonic() - start, 1)}


def main() -> int:
    """Run all parts within the time that there is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("bench/gpu"), metavar="DIR")
    parser.add_argument("--seconds", type=float, default=780.0, help="for all of it (default: 780)")
    parser.add_argument("--smoke", action="store_true", help="small, on a CPU")
    parser.add_argument("--only", action="append", default=[], metavar="PART")
    args = parser.parse_args()
    out: Path = args.output
    out.mkdir(parents=True, exist_ok=True)
    summary = out / "summary.json"
    told: dict[str, dict[str, object]] = {}
    if summary.is_file():
        told = json.loads(summary.read_text(encoding="utf-8"))
    end = time.monotonic() + args.seconds
    for part in parts(out, is_smoke=args.smoke):
        if args.smoke:  # a CPU is slower, and others may be on it
            part = replace(part, limit_s=10 * part.limit_s)
        passed = told.get(part.name, {}).get("state") == "passed"
        if passed or (args.only and part.name not in args.only):
            continue
        left = end - time.monotonic()
        if left < 10:
            told[part.name] = {"state": "not begun: the time was over"}
        else:
            told[part.name] = run(part, out / f"{part.name}.txt", left)
        summary.write_text(json.dumps(told, indent=1), encoding="utf-8")
        print(f"{part.name}: {told[part.name]['state']}", flush=True)
    return any(str(each["state"]).startswith("failed") for each in told.values())


if __name__ == "__main__":
    sys.exit(main())
