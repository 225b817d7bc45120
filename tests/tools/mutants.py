"""How many small faults put into the code by mutmut the tests see: `make mutants`.

The modules below are those where a wrong number, byte or lock would not be noticed by anybody who
looks at a picture. Of each, `--per-module` mutants are drawn by a fixed seed; each is run with
those of the tests below that reach its function. Messages of errors are not mutated. Mutants of
which mutmut finds no test count as survivors; so do those that change nothing.

The work happens in a copy of the tree, `.mutants/`, where `mutmut show NAME` prints a survivor.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / ".mutants"
SEED = 18

MODULES = (
    "bootpig_rt/diffusion/*.py",
    "bootpig_rt/engine/*.py",
    "bootpig_rt/reference/schedule.py",
    "bootpig_rt/reference/reference_table.py",
    "bootpig_rt/backends/host_table.py",
    "bootpig_rt/backends/step_inputs.py",
    "bootpig_rt/storage/store.py",
    "bootpig_rt/storage/claim.py",
    "bootpig_rt/storage/folder.py",
    "bootpig_rt/bundle/files.py",
    "bootpig_rt/bundle/manifest.py",
    "bootpig_rt/bundle/signing.py",
    "bootpig_rt/models/attention.py",
    "bootpig_rt/models/rows.py",
    "bootpig_rt/kernels/eager.py",
    "bootpig_rt/training/world.py",
)
TESTS = (
    "tests/diffusion",
    "tests/engine",
    "tests/reference",
    "tests/backends/test_host_table.py",
    "tests/storage",
    "tests/bundle",
    "tests/models/test_rows.py",
    "tests/models/test_shared_rows.py",
    "tests/models/test_unet.py",
    "tests/kernels/test_eager.py",
    "tests/training/test_world.py",
)
SETTINGS = """
[tool.mutmut]
source_paths = ["bootpig_rt"]
also_copy = ["tests", "pyproject.toml", "kernels", "export", "training", "benchmarks"]
only_mutate = {modules}
do_not_mutate_patterns = ["^ *raise ", "^ *_?log(ger)?[.]", "^ *warnings[.]", "cast[(]"]
pytest_add_cli_args = ["-p", "no:cacheprovider", "-q", "-m", "not slow and not gpu and not trt"]
pytest_add_cli_args_test_selection = {tests}
"""


def copy_tree(modules: list[Path], tests: list[str]) -> None:
    """Fill `WORK` with the tree, real folders in place of links, and mutmut's settings."""
    shutil.rmtree(WORK, ignore_errors=True)
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("bootpig_rt", "tests"):
        shutil.copytree(ROOT / name, WORK / name, ignore=ignore)
    for link in ("kernels", "export", "training", "benchmarks"):
        (WORK / link).symlink_to(Path("bootpig_rt") / link)
    settings = SETTINGS.format(modules=[str(path) for path in modules], tests=tests)
    (WORK / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text() + settings)


def names_of(module: Path) -> list[str]:
    """The names of all mutants of a module, in order."""
    from mutmut.mutation.file_mutation import mutate_file_contents
    from mutmut.utils.format_utils import get_mutant_name

    made = mutate_file_contents(str(module), module.read_text())
    return [get_mutant_name(module, name) for name in made.mutant_names]


def run_mutmut(*words: str) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["PYTHONSAFEPATH"] = ""
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
    parser.add_argument("--tests", nargs="*", default=list(TESTS), help="in place of those listed")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    wants = parser.parse_args()
    found = [path.relative_to(ROOT) for pattern in MODULES for path in sorted(ROOT.glob(pattern))]
    modules = [
        path
        for path in found
        if path.name != "__init__.py"
        and (not wants.modules or any(part in str(path) for part in wants.modules))
    ]
    copy_tree(modules, wants.tests)
    os.chdir(WORK)  # mutmut reads its settings here
    drawn, existing = [], Counter[str]()
    for path in modules:
        names = names_of(path)
        existing[str(path)] = len(names)
        drawn += random.Random(SEED).sample(names, min(wants.per_module, len(names)))
    with tempfile.TemporaryDirectory() as shared:
        os.environ["BOOTPIG_RT_TESTS_SHARE"] = shared
        run_mutmut("run", "--max-children", str(wants.workers), *drawn)
    status = dict(
        line.strip().rsplit(": ", 1) for line in run_mutmut("results", "--all", "true").splitlines()
    )
    report(drawn, status, existing)


def report(drawn: list[str], status: dict[str, str], existing: Counter[str]) -> None:
    """Print survivors, then a line a module."""
    killed, tried = Counter[str](), Counter[str]()
    for name in drawn:
        module = name.rpartition(".x")[0].replace(".", "/") + ".py"
        tried[module] += 1
        if status[name] in ("survived", "no tests"):
            print(f"{status[name]}: {name}")
        else:
            killed[module] += 1
    for module, count in existing.items():
        if tried[module]:
            share = f"{100 * killed[module] / tried[module]:5.0f} %"
            print(f"{module:50} {count:5} mutants, {tried[module]:4} tried, {share} killed")
    total = sum(tried.values())
    print(f"{sum(killed.values())} of {total} killed: {100 * sum(killed.values()) / total:.1f} %")


if __name__ == "__main__":
    main()
