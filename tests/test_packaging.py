"""What a wheel holds: real files of every package, and nothing else."""

from __future__ import annotations

import email.parser
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hatchling.builders.wheel import WheelBuilder

from bootpig_rt import __version__

LINKS = ["kernels", "export", "training"]
EXTRAS = {
    "adam8bit",
    "int8",
    "openvino",
    "peers",
    "render",
    "background",
    "cpu",
    "gpu",
    "torch",
    "export",
    "tensorrt",
    "kernels",
    "sign",
    "trackers",
    "train",
    "eval",
    "bench",
    "serve",
    "otel",
    "provenance",
    "ray",
    "bootstrap",
    "bootstrap-ray",
    "import",
    "safety",
    "deploy",
    "docs",
    "dev",
}


@pytest.fixture(scope="module")
def wheel(root: Path, share: Any) -> zipfile.ZipFile:
    def fill(folder: Path) -> None:
        list(WheelBuilder(str(root)).build(directory=str(folder), versions=["standard"]))

    (built,) = share("wheel", fill).glob("*.whl")
    return zipfile.ZipFile(built)


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> dict[str, list[str]]:
    name = f"bootpig_rt-{__version__}.dist-info/METADATA"
    message = email.parser.Parser().parsestr(wheel.read(name).decode())
    return {key: message.get_all(key, []) for key in message}


@pytest.mark.parametrize("name", LINKS)
def test_the_links_in_the_package_are_relative(root: Path, name: str) -> None:
    link = root / "bootpig_rt" / name
    assert link.is_symlink()
    assert os.readlink(link) == f"../{name}"
    assert (root / name / "__init__.py").is_file()


@pytest.mark.parametrize("name", LINKS)
def test_the_wheel_holds_the_linked_folders_as_real_files(
    wheel: zipfile.ZipFile, root: Path, name: str
) -> None:
    on_disk = {
        f"bootpig_rt/{name}/{path.relative_to(root / name).as_posix()}"
        for path in (root / name).rglob("*.py")
    }
    assert on_disk <= set(wheel.namelist())
    for entry in wheel.infolist():
        assert (entry.external_attr >> 16) & 0o170000 != 0o120000, f"{entry.filename} is a link"


def test_the_wheel_holds_the_package_and_its_metadata_alone(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert tops == {"bootpig_rt", f"bootpig_rt-{__version__}.dist-info"}
    odd = re.compile(r"(^|/)(tests?|__pycache__|\.\w+_cache)/|\.pyc$|\.pt$|\.ckpt$")
    assert [name for name in wheel.namelist() if odd.search(name)] == []


def test_the_wheel_holds_the_type_marker_and_the_licence(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    assert "bootpig_rt/py.typed" in names
    assert f"bootpig_rt-{__version__}.dist-info/licenses/LICENSE" in names


def test_the_wheel_holds_the_page(wheel: zipfile.ZipFile, root: Path) -> None:
    page = root / "bootpig_rt" / "server" / "page"
    files = {path.relative_to(root).as_posix() for path in page.rglob("*") if path.is_file()}
    assert "bootpig_rt/server/page/index.html" in files
    assert files <= set(wheel.namelist())


def test_the_wheel_installs_the_command(wheel: zipfile.ZipFile) -> None:
    entry_points = wheel.read(f"bootpig_rt-{__version__}.dist-info/entry_points.txt").decode()
    assert "bootpig-rt = bootpig_rt.cli.main:main" in entry_points


def test_every_extra_is_there_and_the_core_needs_no_torch(metadata: dict[str, list[str]]) -> None:
    assert set(metadata["Provides-Extra"]) == EXTRAS
    core = [line for line in metadata["Requires-Dist"] if "extra ==" not in line]
    names = {re.split(r"[^\w-]", line)[0] for line in core}
    few = "filelock ml-dtypes msgspec numpy packaging pillow safetensors tokenizers tqdm"
    assert names == set(few.split())


def test_the_wheel_stays_small(wheel: zipfile.ZipFile) -> None:
    assert sum(entry.compress_size for entry in wheel.infolist()) < 45 * 2**20


def test_ranges_in_the_project_and_exact_versions_in_the_constraints(
    metadata: dict[str, list[str]], root: Path
) -> None:
    assert [line for line in metadata["Requires-Dist"] if "==" in line.split(";")[0]] == []
    lines = (root / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert [pin for pin in pins if not re.match(r"[\w.-]+==[\w.]+(; .+)?$", pin)] == []
    assert "torch==2.13.0" in pins
