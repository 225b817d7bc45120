"""How many small faults put into the code by mutmut the tests see: `make mutants`.

The modules below are those where a wrong number, byte or lock would not be noticed by anybody who
looks at a picture. Of each, `--per-module` mutants are drawn by a fixed seed; each is run with
those tests of its group that reach its function, quick ones first; where a test has a case for each
backend, that of torch. Messages of errors are not mutated. A mutant under which tests hang is
killed; mutants that no test reaches count as survivors, and so do those that change nothing.

The work happens in a copy of the tree, `.mutants/`, where `mutmut show NAME` prints a survivor of
the last group.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from mutmut.configuration import reset_config
from mutmut.mutation.file_mutation import mutate_file_contents
from mutmut.utils.format_utils import get_mutant_name

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / ".mutants"
SEED = 18

GROUPS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("bootpig_rt/diffusion/*.py",), ("tests/diffusion",)),
    (("bootpig_rt/engine/*.py",), ("tests/engine",)),
    (
        ("bootpig_rt/reference/schedule.py", "bootpig_rt/reference/reference_table.py"),
        ("tests/reference", "tests/backends/test_host_table.py"),
    ),
    (
        ("bootpig_rt/backends/host_table.py", "bootpig_rt/backends/step_inputs.py"),
        (
            "tests/backends/test_host_table.py",
            "tests/backends/test_onnxruntime_tables.py",
            "tests/backends/test_step_inputs.py",
        ),
    ),
    (("bootpig_rt/storage/*.py",), ("tests/storage",)),
    (
        (
            "bootpig_rt/bundle/files.py",
            "bootpig_rt/bundle/manifest.py",
            "bootpig_rt/bundle/signing.py",
        ),
        ("tests/bundle",),
    ),
    (
        (
            "bootpig_rt/models/attention.py",
            "bootpig_rt/models/rows.py",
            "bootpig_rt/kernels/eager_ops.py",
        ),
        (
            "tests/models/test_attention.py",
            "tests/models/test_rows.py",
            "tests/models/test_shared_rows.py",
            "tests/models/test_table_entry.py",
            "tests/models/test_unet.py",
            "tests/kernels/test_eager.py",
            "tests/kernels/interpreter/test_module.py",
        ),
    ),
)
"""Modules, and the tests that are to see their faults."""

SETTINGS = """
[tool.mutmut]
source_paths = ["bootpig_rt"]
also_copy = [
    "tests", "pyproject.toml", "kernels", "export", "training", "benchmarks", "quick_first.py"
]
only_mutate = {modules}
do_not_mutate_patterns = ["^ *raise ", "^ *_?log(ger)?[.]", "^ *warnings[.]", "cast[(]"]
pytest_add_cli_args = [
    "-p", "no:cacheprovider", "-p", "quick_first", "-q", "--hypothesis-profile=ci",
    "-m", "not slow and not gpu and not trt"
]
timeout_multiplier = 3
timeout_constant = 20
pytest_add_cli_args_test_selection = {tests}
"""

QUICK_FIRST = '''
import json
from pathlib import Path

OTHERS = ("onnxruntime", "openvino", "recorded")


def is_of_another_backend(item):
    cases = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return any(other in str(case) for case in cases for other in OTHERS)


def pytest_collection_modifyitems(items):
    """A mutant is run until a test fails: quick ones first, as the first run timed them.

    What is drawn on each backend is drawn on torch alone.
    """
    items[:] = [item for item in items if not is_of_another_backend(item)]
    timed = Path("mutmut-stats.json")
    if timed.exists():
        took_s = json.loads(timed.read_text())["duration_by_test"]
        items.sort(key=lambda item: took_s.get(item.nodeid, 0.0))
'''


def copy_tree(modules: list[Path], tests: list[str]) -> None:
    """Fill `WORK` with the tree, real folders in place of links, and mutmut's settings."""
    shutil.rmtree(WORK, ignore_errors=True)
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("bootpig_rt", "tests"):
        shutil.copytree(ROOT / name, WORK / name, ignore=ignore)
    for link in ("kernels", "export", "training", "benchmarks"):
        (WORK / link).symlink_to(Path("bootpig_rt") / link)
    (WORK / "quick_first.py").write_text(QUICK_FIRST)
    settings = SETTINGS.format(modules=[str(path) for path in modules], tests=tests)
    (WORK / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text() + settings)


def names_of(module: Path) -> list[str]:
    """The names of all mutants of a module, in order."""
    made = mutate_file_contents(str(module), module.read_text())
    return [get_mutant_name(module, name) for name in made.mutant_names]


def run_mutmut(*words: str) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"PYTHONSAFEPATH": "", "TRITON_INTERPRET": "1"}
    log = WORK / f"{words[0]}.log"
    with log.open("w") as out:
        command = [sys.executable, "-m", "mutmut", *words]
        done = subprocess.run(command, cwd=WORK, env=environment, stdout=out, check=False)
    if done.returncode:
        sys.exit(log.read_text()[-4000:])
    return log.read_text()


def main() -> None:
    """Draw mutants, run them, print a table and the survivors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="*", help="parts of module paths; default: all listed")
    parser.add_argument("--per-module", type=int, default=60, help="most mutants of one module")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    wants = parser.parse_args()
    killed, tried = 0, 0
    for patterns, tests in GROUPS:
        found = [path for pattern in patterns for path in sorted(ROOT.glob(pattern))]
        modules = [
            path.relative_to(ROOT)
            for path in found
            if path.name != "__init__.py"
            and (not wants.modules or any(part in str(path) for part in wants.modules))
        ]
        if modules:
            seen, drawn = run_group(modules, list(tests), wants.per_module, wants.workers)
            killed, tried = killed + seen, tried + drawn
    print(f"{killed} of {tried} killed: {100 * killed / tried:.1f} %")


def run_group(
    modules: list[Path], tests: list[str], per_module: int, workers: int
) -> tuple[int, int]:
    """Killed and drawn mutants of some modules; prints a line a module and the survivors."""
    os.chdir(ROOT)
    copy_tree(modules, tests)
    os.chdir(WORK)  # mutmut reads its settings here
    reset_config()
    names = {path: names_of(path) for path in modules}
    drawn = {
        path: random.Random(SEED).sample(all_names, min(per_module, len(all_names)))
        for path, all_names in names.items()
    }
    with tempfile.TemporaryDirectory() as shared:
        os.environ["BOOTPIG_RT_TESTS_SHARE"] = shared
        chosen = [name for sample in drawn.values() for name in sample]
        run_mutmut("run", "--max-children", str(workers), *chosen)
    lines = run_mutmut("results", "--all", "true").splitlines()
    status = dict(line.strip().rsplit(": ", 1) for line in lines if ": " in line)
    killed = 0
    for path, sample in drawn.items():
        survivors = [name for name in sample if status[name] not in ("killed", "timeout")]
        for name in survivors:
            print(f"{status[name]}: {name}")
        if sample:
            seen = len(sample) - len(survivors)
            share = f"{100 * seen / len(sample):.0f} % killed"
            print(f"{path}: {len(names[path])} mutants, {len(sample)} tried, {share}", flush=True)
            killed += seen
    return killed, sum(map(len, drawn.values()))


if __name__ == "__main__":
    main()
